"""Run methods x partitions x seeds, each as one `fedkd fit`, and put the results into a table and a plot.

python examples/compare.py examples/compare_teachers.yaml --out runs/teachers [--jobs 2] [--data.dataset... VALUE]

The grid's YAML names a configuration of fedkd and what each partition and method changes in it, as on the command line;
whatever follows on this one goes to every run. Runs live in OUT/PARTITION/METHOD/seed-N. Started again, the command
leaves what is finished, goes on with what was interrupted from its last round, and runs what is new in the grid.
`references` are methods that no partition changes, such as one client that has all: they run once and stand beside all.
A grid may start from another: `base: FILE` beside it, of which its own sections and `arguments` replace what they name.
Where the grid says ${NAME}, it stands for what its own `names` say, or for --set NAME=VALUE.
OUT/results.csv has a row a run, OUT/table.md the means over the seeds, OUT/curves.png the accuracy by round.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

REFERENCES = "any partition"  # where methods stand that no partition changes


@dataclass(frozen=True)
class Run:
    """One method on one partition with one seed, and where it is kept."""

    partition: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return f"{self.partition}, {self.method}"

    @property
    def is_done(self) -> bool:
        """Whether all its rounds are on disk."""
        return (self.folder / "summary.json").is_file()

    def start(self) -> str | None:
        """Run it, from its last round if it was interrupted; return the line that says why it failed, if it did."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resume = ["--ckpt_path", "last"] if (self.folder / "metrics.csv").is_file() else []
        command = [
            sys.executable,
            "-m",
            "fedkd.cli",
            "fit",
            *self.arguments,
            "--run_dir",
            str(self.folder),
            *resume,
        ]
        with (self.folder / "output.log").open("a") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode == 0:
            return None
        lines = (self.folder / "output.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {done.returncode}"

    def row(self) -> dict[str, Any]:
        """Read its results; accuracies are fractions."""
        summary = json.loads((self.folder / "summary.json").read_text())
        per_class, teacher = summary["per_class_accuracy"], summary["teacher"] or {}
        return {
            "partition": self.partition,
            "method": self.method,
            "seed": self.seed,
            "rounds": summary["rounds"],
            "final": summary["balanced_accuracy"],
            "best": summary["best"]["balanced_accuracy"],
            "worst_class": min(per_class.values()),
            "teacher": teacher.get("balanced_accuracy"),
            "bytes_up": summary["bytes_up"],
            "minutes": summary["round_seconds"] / 60,
        }

    def curve(self) -> list[float]:
        """Read the balanced accuracy after each round."""
        with (self.folder / "metrics.csv").open() as file:
            return [float(row["balanced_accuracy"]) for row in csv.DictReader(file)]


def runs_of(grid: dict[str, Any], beside: Path, out: Path, further: Sequence[str]) -> Iterator[Run]:
    """Yield all runs of a grid, those of one seed before those of the next."""
    common = ["--config", str(beside / grid["config"]), *as_options(grid.get("arguments") or {}), *further]
    for seed in grid["seeds"]:
        for partition, changes in {**grid["partitions"], REFERENCES: {}}.items():
            methods = grid["methods"] if partition != REFERENCES else grid.get("references") or {}
            for method, own in methods.items():
                folder = out / slug(partition) / slug(method) / f"seed-{seed}"
                options = (*common, *as_options(changes or {}), *as_options(own or {}), "--seed_everything", str(seed))
                yield Run(partition, method, seed, folder, options)


def read_grid(path: Path, given: Sequence[str]) -> dict[str, Any]:
    """Read a grid's YAML, with its names put in."""
    grid = yaml.safe_load(path.read_text())
    if "base" in grid:
        base = yaml.safe_load((path.parent / grid.pop("base")).read_text())
        grid = {**base, **grid, "arguments": {**base["arguments"], **grid.get("arguments", {})}}
    names = grid.get("names") or {}
    chosen = dict(pair.split("=", 1) for pair in given)
    if unknown := set(chosen) - set(names):
        raise SystemExit(f"{path} has no name {', '.join(sorted(unknown))}; it has {', '.join(names) or 'none'}.")
    return put_in(grid, {**names, **chosen})


def put_in(value: Any, names: dict[str, Any]) -> Any:
    """Replace ${NAME} at any depth; a value that is nothing else takes the name's own type."""
    if isinstance(value, dict):
        return {key: put_in(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [put_in(item, names) for item in value]
    return yaml.safe_load(Template(value).substitute(names)) if isinstance(value, str) and "$" in value else value


def as_options(changes: dict[str, Any]) -> list[str]:
    """Turn {"data.views": 4} into ["--data.views", "4"]."""
    pairs = ((f"--{key}", value if isinstance(value, str) else json.dumps(value)) for key, value in changes.items())
    return [text for pair in pairs for text in pair]


def slug(name: str) -> str:
    """Make a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def mean(values: Sequence[float]) -> str:
    """Write a mean in percent, and the standard deviation of several seeds; nothing where there is none."""
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * statistics.stdev(values):.1f}"


def write_tables(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write Markdown, in the order of the grid: a table of all partitions, then all that was measured at each."""
    partitions = partitions_of(row["partition"] for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| last round | {' | '.join(partitions)} |", "|---" * (len(partitions) + 1) + "|"]
    for method in methods:
        cells = [mean([row["final"] for row in seeds_of(rows, partition, method)]) for partition in partitions]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    for partition in partitions:
        lines += ["", f"### {partition}", "", "| method | last round | best round | worst class | teacher | seeds |"]
        lines += ["|---|---|---|---|---|---|"]
        for method in methods:
            if own := seeds_of(rows, partition, method):
                cells = [mean([row[key] for row in own]) for key in ("final", "best", "worst_class")]
                taught = [row["teacher"] for row in own if row["teacher"] is not None]
                cells += [f"{100 * statistics.mean(taught):.1f}" if taught else "", str(len(own))]
                lines.append(f"| {method} | {' | '.join(cells)} |")
    path.write_text("\n".join([*lines, ""]))


def partitions_of(names: Iterable[str]) -> list[str]:
    """Return the partitions in their order, that of the references only where there is no other."""
    return [name for name in dict.fromkeys(names) if name != REFERENCES] or [REFERENCES]


def seeds_of(rows: Sequence[dict[str, Any]], partition: str, method: str) -> list[dict[str, Any]]:
    """Return a method's rows at a partition; a reference's stand for every partition."""
    return [row for row in rows if row["method"] == method and row["partition"] in (partition, REFERENCES)]


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a row a run."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw the mean balanced accuracy by round: a panel for each partition, a line for each method."""
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
            curves = [run.curve() for run in own]
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
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, then write the table and the plot of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="YAML: config, arguments, seeds, partitions, methods")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", default="", metavar="REGEX", help="run what has a match in 'PARTITION, METHOD'")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a name of the grid's")
    options, further = parser.parse_known_args()

    grid = read_grid(options.grid, options.set)
    runs = list(runs_of(grid, options.grid.parent, options.out, further))
    missing = [run for run in runs if not run.is_done and re.search(options.only, run.name)]
    print(f"{len(runs)} runs, {sum(run.is_done for run in runs)} of them done")
    failures = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for run, failure in zip(missing, pool.map(Run.start, missing), strict=True):
            failures += failure is not None
            said = failure or f"{run.row()['final']:.1%}"
            print(f"{run.name}, seed {run.seed}: {said}", flush=True)

    done = [run for run in runs if run.is_done]
    if done:
        rows = [run.row() for run in done]
        write_csv(rows, options.out / "results.csv")
        write_tables(rows, options.out / "table.md")
        plot(done, options.out / "curves.png")
        print((options.out / "table.md").read_text())
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
