"""The plot of a partition. Import this on use: matplotlib takes longer to import than the whole package."""

from __future__ import annotations

from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fedkd.core.errors import unknown_name
from fedkd.partition.report.counts import PartitionCounts

INK, PALE, ALERT, BLUE = "#22313f", "#f3f4f6", "#d1495b", "#2c7fb8"
KINDS = ("heat", "bubble")


class PartitionFigure(Figure):
    """A figure that a notebook shows as an image, also if it has not used pyplot."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def draw(report: PartitionCounts, kind: str = "heat") -> PartitionFigure:
    """Draw images by class and client. Above them one bar per client shows the size of its shard.

    A heat map of up to 20 x 20 cells shows the count in each cell. A cross marks every client without images.

    Args:
        report: The counts to draw.
        kind: ``heat``, a color for each count, or ``bubble``, an area proportional to it.

    Returns:
        A figure without a pyplot window: the caller need not close it.

    Raises:
        FedKDError: If there is no such kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of plot", kind, KINDS)
    num_clients, num_classes = report.counts.shape
    width = float(np.clip(3.4 + 0.56 * num_clients, 7, 14))
    height = float(np.clip(2.8 + 0.4 * num_classes, 4, 13))
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = PartitionFigure(figsize=(width, height), layout=layout, facecolor="white")
    sizes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[1.1, height - 2.1])
    figure.suptitle(report.summary(), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    _draw_sizes(sizes, report)
    if kind == "heat":
        bar = figure.colorbar(_draw_cells(counts, report), ax=counts, pad=0.015, aspect=28)
        bar.set_label("images", color=INK)
        bar.ax.yaxis.set_major_formatter("{x:,.0f}")
        bar.outline.set_visible(False)
    else:
        cell = 72 * min(0.8 * width / max(num_clients, 1), 0.8 * (height - 2.1) / max(num_classes, 1))  # points
        _draw_bubbles(counts, report, cell)
    _label_counts(counts, report)
    for ax in figure.axes:
        ax.tick_params(which="both", length=0, colors=INK, labelsize=9)
    return figure


def _draw_sizes(ax: Axes, report: PartitionCounts) -> None:
    """Draw one bar per client, above the client's column of the heat map."""
    ax.fill_between(
        np.arange(report.num_clients + 1) - 0.5,
        np.append(report.sizes, report.sizes[-1:]),
        step="post",
        color=BLUE,
        linewidth=0,
    )
    if report.num_clients <= 120:
        ax.vlines(np.arange(report.num_clients + 1) - 0.5, 0, report.sizes.max(initial=1), color="white", linewidth=1)
    if empty := report.empty_clients:  # an empty line would still enter the layout and distort it
        size = 5 if report.num_clients <= 120 else 2
        ax.plot(empty, np.zeros(len(empty)), "x", color=ALERT, markersize=size, clip_on=False, zorder=3)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_ylabel("images", color=INK)
    ax.tick_params(labelbottom=False)
    ax.spines[:].set_visible(False)


def _draw_cells(ax: Axes, report: PartitionCounts) -> AxesImage:
    """Draw the heat map. A pale cell is exactly 0, and every count above 0 has a visibly different color."""
    num_clients, num_classes = report.counts.shape
    counts = np.ma.masked_equal(report.counts.T, 0)  # (num_classes, num_clients)
    colors = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.12, 1, 256))).with_extremes(bad=PALE)
    # A square-root scale shows shards of very different sizes.
    norm = PowerNorm(0.5, vmin=0, vmax=max(int(report.counts.max(initial=0)), 1))
    image = ax.imshow(counts, cmap=colors, norm=norm, aspect="auto")
    if num_clients <= 20 and num_classes <= 20:
        for (k, client), count in np.ndenumerate(report.counts.T):
            if count:
                color = "white" if norm(count) > 0.55 else INK
                ax.text(client, k, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    return image


def _draw_bubbles(ax: Axes, report: PartitionCounts, cell: float) -> None:
    """Draw a disc for each count above 0; the largest one's diameter is ``cell``, in points."""
    clients, classes = np.nonzero(report.counts)
    counts = report.counts[clients, classes]
    areas = cell**2 * counts / report.counts.max(initial=1)
    ax.scatter(clients, classes, s=np.maximum(areas, 0.3), color=BLUE, linewidths=0)  # even one image is visible
    ax.set_xlim(-0.5, report.num_clients - 0.5)
    ax.set_ylim(len(report.classes) - 0.5, -0.5)
    ax.set_facecolor(PALE)


def _label_counts(ax: Axes, report: PartitionCounts) -> None:
    """Label clients and classes, and draw lines between them if there are not too many."""
    num_clients, num_classes = report.counts.shape
    ax.set_xticks(_some(num_clients, 25), [f"{i:,}" for i in _some(num_clients, 25)])
    ax.set_yticks(_some(num_classes, 50), [report.classes[i] for i in _some(num_classes, 50)])
    ax.set_xlabel("client", color=INK)
    ax.spines[:].set_visible(False)
    for size, ticks, limit in ((num_clients, ax.set_xticks, 120), (num_classes, ax.set_yticks, 60)):
        if size <= limit:
            ticks(np.arange(1, size) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)


def _some(size: int, limit: int) -> range:
    """Return positions 0, s, 2s, ... below ``size``, at most ``limit``, where s is 1, 2 or 5 times a power of ten."""
    steps = (scale * 10**power for power in range(12) for scale in (1, 2, 5))
    return range(0, size, next(step for step in steps if size <= step * limit))
