"""Labels beside points that keep clear of each other, of the points, and of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Point = tuple[float, float]
Boxes = NDArray[np.float64]

# Directions around a point, the most readable first, and how far out to look.
_AROUND: tuple[Point, ...] = (
    (1, 0.6),
    (-1, 0.6),
    (1, -0.6),
    (-1, -0.6),
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
)
_REACH = (7, 12, 18, 26, 36, 48, 64)
_CLEAR = 5.0
"""Points are squares of this half size, in points."""
FONT_SIZE = 8.5


def place_labels(
    canvas: Figure,
    axes: Axes,
    *,
    texts: Sequence[str],
    points: Sequence[Point],
    colours: Sequence[str],
    thin: Sequence[tuple[Point, Point]] = (),
) -> None:
    """Write each text near its point; a label that had to move away gets a thin line back.

    Greedy, point by point: the cheapest of 56 places, where covering a label or a point costs most,
    lying along a thin line less, and distance a little. Points that coincide share one label.

    Args:
        canvas: the figure, everything else drawn.
        axes: where the points are.
        texts: (points,)
        points: in data coordinates.
        colours: (points,)
        thin: lines to keep clear of, from and to, in data coordinates.
    """
    settle(canvas)
    scale = canvas.dpi / 72
    at = [_pixel(axes, point) for point in points]
    taken = [_square(x, y, _CLEAR * scale) for x, y in at]
    dots = [d for ends in thin for d in _along(*(_pixel(axes, end) for end in ends))]
    lines = np.array([_square(x, y, 1.5) for x, y in dots]).reshape(-1, 4)
    frame = np.array(axes.get_window_extent().extents)
    for index, text in _merged(texts, at).items():
        size = _size(axes, text, points[index])
        offset, box = _best_place(
            at[index], size, scale=scale, frame=frame, taken=np.array(taken), lines=lines
        )
        far = abs(offset[0]) + abs(offset[1]) > 30
        _write(axes, text, points[index], offset, colours[index], far=far)
        taken.append(box)


def settle(canvas: Figure) -> None:
    """Lay the figure out once and for all: labels that were placed must not move afterwards."""
    if canvas.get_layout_engine() is not None:
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")


def spread_apart(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels at these values, moved so that neighbours are `gap` apart, in order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while (
            len(groups) > 1
            and _reach(groups[-2], values, gap)[1] > (_reach(groups[-1], values, gap)[0])
        ):
            last = groups.pop()
            groups[-1] += last
    placed = [0.0] * len(values)
    for group in groups:
        start = _reach(group, values, gap)[0] + gap / 2
        for step, index in enumerate(group):
            placed[index] = start + step * gap
    return placed


def _reach(group: list[int], values: Sequence[float], gap: float) -> tuple[float, float]:
    """Lower and upper end of a pile of labels, centred on the mean of its values."""
    middle = sum(values[i] for i in group) / len(group)
    return middle - gap * len(group) / 2, middle + gap * len(group) / 2


def _merged(texts: Sequence[str], pixels: Sequence[Point]) -> dict[int, str]:
    """Index of the point -> label; points within two pixels are one."""
    found: dict[int, str] = {}
    for index, (text, (x, y)) in enumerate(zip(texts, pixels, strict=True)):
        for first in found:
            if abs(pixels[first][0] - x) < 2 and abs(pixels[first][1] - y) < 2:
                found[first] += f" = {text}"
                break
        else:
            found[index] = text
    return found


def _best_place(
    at: Point, size: Point, *, scale: float, frame: Boxes, taken: Boxes, lines: Boxes
) -> tuple[Point, Boxes]:
    """The cheapest place for a label of this size in pixels: its offset in points, and its box."""
    width, height = size
    found: list[tuple[float, int, Point, Boxes]] = []
    for reach in _REACH:
        for right, up in _AROUND:
            x, y = at[0] + right * reach * scale, at[1] + up * reach * scale
            left = x if right > 0 else x - width if right < 0 else x - width / 2
            box = np.array([left, y - height / 2, left + width, y + height / 2])
            cost = 20 * _overlap(taken, box) + _overlap(lines, box) + 1.5 * reach
            cost += 50 * (width * height - _overlap(frame[None], box))
            found.append((cost, len(found), (right * reach, up * reach), box))
    _, _, offset, box = min(found, key=lambda place: place[:2])
    return offset, box


def _write(
    axes: Axes, text: str, point: Point, offset: Point, colour: str, *, far: bool = False
) -> Annotation:
    return axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha=_side(offset[0]),
        va="center",
        fontsize=FONT_SIZE,
        color=colour,
        arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colour} if far else None,
    )


def _size(axes: Axes, text: str, point: Point) -> Point:
    """Width and height of a label in pixels, with a pixel of air around it.

    Asked at a point that can be seen: a label outside the axes has no extent.
    """
    trial = _write(axes, text, point, (0, 0), "black")
    box = trial.get_window_extent()
    trial.remove()
    return float(box.width) + 2, float(box.height) + 2


def _side(dx: float) -> Literal["left", "center", "right"]:
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _pixel(axes: Axes, point: Point) -> Point:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _square(x: float, y: float, half: float) -> Boxes:
    return np.array([x - half, y - half, x + half, y + half])


def _along(start: Point, end: Point) -> list[Point]:
    """A line as a chain of dots, three pixels apart."""
    steps = max(1, round(max(abs(end[0] - start[0]), abs(end[1] - start[1])) / 3))
    shares = [k / steps for k in range(steps + 1)]
    return [
        (start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share)
        for share in shares
    ]


def _overlap(boxes: Boxes, box: Boxes) -> float:
    """Pixels of `box` that lie under `boxes`, (any, 4) of left, bottom, right, top."""
    width = np.minimum(boxes[:, 2], box[2]) - np.maximum(boxes[:, 0], box[0])
    height = np.minimum(boxes[:, 3], box[3]) - np.maximum(boxes[:, 1], box[1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None)).sum())
