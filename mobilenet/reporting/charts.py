"""The pictures of a report: each function draws one from figures, or returns `None` without any."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mobilenet.configs import released_models
from mobilenet.evaluation import confusion
from mobilenet.reporting.themed_svg import ACCENT, INK, MUTED, RED, SERIES, SOFT, Canvas, Picture
from mobilenet.text_tables import one_line
from mobilenet.training.stage_data import Kernel
from mobilenet.typing import IntArray

_MOST_BARS = 80  # in one picture
_LONGEST_NAME = 26  # characters of a name in a picture
_MOST_COUNTED = 20  # classes of which the counts can be read
_LEAST_GAP = 0.075  # between labels of lines, of the height of the axes

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a plot over epochs, which may have gaps.

    Attributes:
        label: at its end.
        points: epoch and value.
        color: of the line.
        is_dashed: a target.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    color: str = ACCENT
    is_dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A model in a plot of accuracy against cost.

    Attributes:
        label: next to it.
        cost: on a logarithmic axis.
        top1: percent.
        color: of the mark.
    """

    label: str
    cost: float
    top1: float
    color: str = ACCENT


def finite(value: Any) -> float | None:
    """A number that can be drawn, else `None`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def points(
    histories: Iterable[Rows], name: str, scale: float = 1.0
) -> tuple[tuple[float, float], ...]:
    """Epoch and value of a figure in the histories of stages, one after the other.

    Args:
        histories: of each stage, a row an epoch.
        name: of the figure.
        scale: values are multiplied by it.
    """
    values, start = [], 0
    for rows in histories:
        for number, row in enumerate(rows, start + 1):
            value = finite(row.get(name))
            if value is not None:
                values.append((float(number), scale * value))
        start += len(rows)
    return tuple(values)


def curves(
    name: str,
    title: str,
    unit: str,
    lines: Sequence[Curve],
    stages: Sequence[tuple[str, int]] = (),
    least: float | None = None,
) -> Picture | None:
    """Lines over the epochs of all stages.

    Args:
        name: of the picture.
        title: above it.
        unit: of the values; after the title, as "top-1, %" is.
        lines: those without points are left out.
        stages: name and number of epochs, for the bands of the stages.
        least: where the vertical axis begins.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    text = f"{title} by epoch: {', '.join(line.label for line in lines)}"
    heading = f"{title}, {unit}" if unit else title
    with Canvas(name, text, title=heading) as canvas:
        axes = canvas.axes
        for line in lines:
            epochs, values = zip(*line.points, strict=True)
            axes.plot(
                epochs,
                values,
                color=line.color,
                linewidth=1.4 if line.is_dashed else 2.2,
                linestyle=(0, (4, 3)) if line.is_dashed else "-",
                marker="o" if len(line.points) < 3 else None,
                markersize=5,
                solid_capstyle="round",
            )
        last = max(line.points[-1][0] for line in lines)
        axes.set_xlim(1, max(last, sum(epochs for _, epochs in stages), 2))
        _integer_axis(axes)
        axes.grid(False, axis="x")
        if least is not None:
            highest = max(value for line in lines for _, value in line.points)
            axes.set_ylim(least, least + 1.08 * (highest - least or 1.0))
        axes.set_xlabel("epoch")
        _stage_bands(axes, stages)
        _label_ends(axes, lines)
    return canvas.picture


def _integer_axis(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _stage_bands(axes: Any, stages: Sequence[tuple[str, int]]) -> None:
    """A line where a stage begins, and its name above."""
    if len(stages) < 2:
        return
    end = sum(epochs for _, epochs in stages)
    start = 0
    for name, epochs in stages:
        if start:
            axes.axvline(start + 0.5, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        low, high = max(start + 0.5, 1), min(start + epochs + 0.5, end)
        if high - low > 0.09 * end:
            axes.text(
                (low + high) / 2,
                1.0,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=11,
                color=MUTED,
            )
        start += epochs


def _label_ends(axes: Any, lines: Sequence[Curve]) -> None:
    """The label of each line at its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = (high - low) or 1.0
    last_points = sorted(
        (((line.points[-1][1] - low) / height, line) for line in lines),
        key=operator.itemgetter(0),
    )
    positions: list[float] = []
    for position, _ in last_points:
        positions.append(max([position, *(p + _LEAST_GAP for p in positions[-1:])]))
    for number in range(len(positions) - 1, -1, -1):  # the highest ones, back below the top
        above = [positions[number + 1] - _LEAST_GAP] if number + 1 < len(positions) else [0.97]
        positions[number] = min(positions[number], *above)
    for position, (_, line) in zip(positions, last_points, strict=True):
        axes.annotate(
            one_line(line.label, 18),
            (line.points[-1][0], position),
            (7, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            va="center",
            color=line.color,
            annotation_clip=False,
        )


def accuracy_by_cost(
    name: str,
    title: str,
    unit: str,
    marks: Sequence[Mark],
    published: Sequence[tuple[float, float]],
) -> Picture | None:
    """Top-1 against bytes or multiply-adds, on a logarithmic axis.

    Args:
        name: of the picture.
        title: above it.
        unit: of the cost.
        marks: the models of the run.
        published: cost and top-1 of other models, in gray.
    """
    if not marks:
        return None
    text = f"{title}: {', '.join(f'{m.label} {m.top1:.1f} %' for m in marks)}"
    with Canvas(name, text, title=title) as canvas:
        axes = canvas.axes
        if published:
            costs, scores = zip(*published, strict=True)
            axes.scatter(costs, scores, s=16, color=SOFT, alpha=0.8, linewidths=0)
            right = max(range(len(costs)), key=lambda n: costs[n])
            axes.annotate(
                "published, ImageNet",
                (costs[right], scores[right]),
                (-2, 8),
                textcoords="offset points",
                ha="right",
                fontsize=11,
                color=MUTED,
            )
        axes.set_xscale("log")
        axes.set(xlabel=unit, ylabel="top-1, %")
        axes.margins(x=0.12, y=0.14)
        for mark in marks:
            axes.scatter([mark.cost], [mark.top1], s=64, color=mark.color, zorder=4, linewidths=0)
        _label_marks(axes, marks)
        _plain_log(axes)
    return canvas.picture


def _label_marks(axes: Any, marks: Sequence[Mark]) -> None:
    """The label of each mark, at the side that has room; above and below by turns."""
    low, high = (math.log10(value) for value in axes.get_xlim())
    order = sorted(marks, key=lambda mark: (mark.cost, mark.top1))
    for number, mark in enumerate(order):
        is_left = (math.log10(mark.cost) - low) / ((high - low) or 1.0) < 0.6
        near = [m for m in order[:number] if _are_near(axes, m, mark)]
        axes.annotate(
            one_line(mark.label, 20),
            (mark.cost, mark.top1),
            (9 if is_left else -9, -4 - 14 * len(near) if near else -4),
            textcoords="offset points",
            ha="left" if is_left else "right",
            color=mark.color,
            fontsize=11,
            fontweight="bold",
        )


def _are_near(axes: Any, one: Mark, other: Mark) -> bool:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    width = math.log10(right / left) or 1.0
    across = abs(math.log10(one.cost / other.cost)) / width
    return across < 0.2 and abs(one.top1 - other.top1) / ((high - low) or 1.0) < 0.08


def _plain_log(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if _decades(axes) < 2.5 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _decades(axes: Any) -> float:
    low, high = axes.get_xlim()
    return math.log10(high / low)


def amount(value: float) -> str:
    """A count with a letter: `3 M`, `250 k`."""
    for limit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def published_models(kind: str, cost: str) -> list[tuple[float, float]]:
    """Cost and top-1 of the released models.

    Args:
        kind: `released_models.FLOAT`, `QUANTIZED`, or both if empty.
        cost: `macs`; or `bytes`, four a parameter of a float model and one of a quantized one.
    """
    pairs = []
    for release in released_models.ALL:
        if release.top1 is None or (kind and release.kind != kind):
            continue
        size = 1e6 * release.params_million * (4 if release.kind == released_models.FLOAT else 1)
        pairs.append((size if cost == "bytes" else 1e6 * release.macs_million, release.top1))
    return list(dict.fromkeys(pairs))


def bars(
    name: str,
    title: str,
    rows: Sequence[tuple[str, float, str]],
    unit: str,
    before: Sequence[float] = (),
    highest: float | None = None,
) -> Picture | None:
    """Horizontal bars, one a layer, the first layer at the top.

    Args:
        name: of the picture.
        title: above it.
        rows: layer, value and what is written at its end.
        unit: of the values.
        before: a value to compare with, one a row, as a mark.
        highest: end of the axis.
    """
    rows = rows[:_MOST_BARS]
    if not rows:
        return None
    height = 70 + 18 * len(rows)
    with Canvas(name, title, height=height, title=title) as canvas:
        axes = canvas.axes
        axes.grid(False, axis="y")
        positions, values = range(len(rows)), [value for _, value, _ in rows]
        if before:
            axes.barh(positions, before[: len(rows)], height=0.72, color=SOFT, alpha=0.35)
        axes.barh(positions, values, height=0.72, color=ACCENT)
        top = highest or max([*values, *before, 1e-9])
        for index, (_, value, text) in enumerate(rows):
            axes.text(value + 0.01 * top, index, text, va="center", fontsize=10.5, color=MUTED)
        axes.set_yticks(
            positions, [one_line(layer, _LONGEST_NAME) for layer, _, _ in rows], fontsize=10.5
        )
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, top * 1.14), xlabel=unit)
    return canvas.picture


def histogram(name: str, before: Kernel | None, after: Kernel) -> Picture:
    """The values of a kernel that are not zero, and in gray those before the stages."""
    text, zeros = f"weights of {after.layer}", f"{100 * after.sparsity:.0f} % zeros"
    caption = f"{after.layer}, {zeros}" if after.zeros else after.layer
    with Canvas(name, text, width=220, height=130, caption=caption) as canvas:
        axes = canvas.axes
        for kernel, color, width in ((before, SOFT, 0.0), (after, ACCENT, 1.6)):
            if kernel is None or not kernel.counts or kernel.high <= kernel.low:
                continue
            bounds = np.linspace(kernel.low, kernel.high, len(kernel.counts) + 1)
            is_filled = kernel is before
            axes.stairs(
                np.asarray(kernel.counts, float),
                bounds,
                fill=is_filled,
                color=color,
                linewidth=width,
                alpha=0.5 if is_filled else 1.0,
            )
        axes.grid(False)
        axes.axvline(0, color=MUTED, linewidth=0.6)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
        axes.set_ylim(bottom=0)
    return canvas.picture


def mask_changes(name: str, rows: Sequence[Sequence[int]]) -> Picture:
    """Weights that surgery removed and regrew, from refresh to refresh.

    Args:
        name: of the picture, `STAGE_mask_changes`.
        rows: step, weights removed and weights regrown until the next row.
    """
    from matplotlib.ticker import FuncFormatter

    steps, removed, regrown = np.asarray(rows).T
    text = f"{removed.sum():,} weights removed and {regrown.sum():,} regrown"
    title = f"Mask changes in {name.partition('_mask')[0]}"
    with Canvas(name, text, title=title) as canvas:
        axes = canvas.axes
        for counts, color, label in ((removed, RED, "removed"), (regrown, ACCENT, "regrown")):
            axes.step(
                steps,
                counts,
                where="post",
                color=color,
                linewidth=1.8,
                marker="." if len(steps) < 3 else None,
                label=f"{counts.sum():,} {label}",
            )
        axes.set_yscale("symlog", linthresh=1)
        axes.set(xlabel="step", ylabel="weights a refresh", ylim=(0, None))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        axes.grid(False, axis="x")
        axes.legend(loc="upper right", frameon=False, labelcolor="linecolor", fontsize=11)
    return canvas.picture


def confusion_matrix(labels: IntArray, predictions: IntArray, names: Sequence[str]) -> Picture:
    """Which classes are taken for which, as shares of each class.

    Of many classes those with most errors are drawn.

    Args:
        labels: class indices `[images]`.
        predictions: class indices `[images]`.
        names: of the classes.
    """
    matrix = confusion.confusion_matrix(labels, predictions, len(names))
    chosen, shares, counts = confusion.drawn_part(matrix)
    title = "Share of each class, by prediction"
    if len(chosen) < len(names):
        title = f"The {len(chosen)} classes with most errors of {len(names):,}"
    side = int(min(300 + 16 * len(chosen), 760))
    with Canvas("confusion_matrix", title, side + 60, side, title) as canvas:
        axes = canvas.axes
        colors = np.zeros((*shares.shape, 4))
        colors[..., :3] = _rgb(ACCENT)
        is_right = np.eye(len(chosen), dtype=bool)
        colors[~is_right, :3] = _rgb(RED)
        colors[..., 3] = np.where(shares > 0, 0.08 + 0.82 * shares, 0)
        axes.imshow(colors, interpolation="nearest", aspect="equal")
        shown = [one_line(names[index], 18) for index in chosen.tolist()]
        size = 11 if len(chosen) <= _MOST_COUNTED else 8.5
        rotation = 90 if max(map(len, shown)) > 2 else 0
        axes.set_xticks(range(len(shown)), shown, rotation=rotation, fontsize=size)
        axes.set_yticks(range(len(shown)), shown, fontsize=size)
        axes.set(xlabel="prediction", ylabel="class")
        axes.grid(False)
        if len(chosen) <= _MOST_COUNTED:
            for row, column in zip(*np.nonzero(counts), strict=True):
                axes.text(
                    *(column, row, amount(int(counts[row, column]))),
                    ha="center",
                    va="center",
                    fontsize=10.5,
                    color="white" if shares[row, column] > 0.4 else INK,
                )
    return canvas.picture


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return red, green, blue


def series_color(number: int) -> str:
    """The color of a run among others."""
    return SERIES[number % len(SERIES)]
