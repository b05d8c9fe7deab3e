"""A study's plot: accuracy by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from fedkd.core.storage import replacing
from fedkd.study.grid import REFERENCES, Run
from fedkd.study.results import curve_of, partitions_of


def plot_curves(runs: Sequence[Run], path: Path) -> None:
    """Draw the mean balanced accuracy by round as a PNG, with a panel for each partition and a line for each method."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    partitions = partitions_of(run.partition for run in runs)
    methods = list(dict.fromkeys(run.method for run in runs))
    columns = min(len(partitions), 3)
    rows = -(-len(partitions) // columns)
    figure = Figure(figsize=(5.0 * columns, 4.0 * rows + 0.1 * len(methods)), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in panels.flat[len(partitions) :]:
        unused.set_axis_off()
    for panel, partition in zip(panels.flat, partitions, strict=False):
        for i, method in enumerate(methods):
            own = [run for run in runs if run.method == method and run.partition in (partition, REFERENCES)]
            curves = [curve_of(run) for run in own]
            if curves:
                averages = [100 * statistics.mean(values) for values in zip(*curves, strict=False)]
                style = "--" if own[0].partition == REFERENCES else ("-", ":")[i // 20 % 2]
                panel.plot(range(1, len(averages) + 1), averages, style, color=colormaps["tab20"](i % 20), label=method)
        panel.set(title=partition, xlabel="round")
        panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("balanced accuracy, %")
    found = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels.flat]
    handles = {label: line for pairs in found for line, label in pairs}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
