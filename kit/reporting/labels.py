"""Labels beside points that keep clear of each other, of the points, and of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Point = tuple[float, float]

# Directions around a point, the nearest and most readable first, and how far out to look.
_AROUND = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0))
_REACH = (7, 14, 24, 36, 52, 72)
_CLEAR = 5.0
"""Points are squares of this half size, in points."""


def place_labels(
    canvas: Figure,
    axes: Axes,
    *,
    texts: Sequence[str],
    points: Sequence[Point],
    colours: Sequence[str],
) -> None:
    """Write each text near its point; a label that had to move away gets a thin line back.

    Greedy: the first place of few that overlaps nothing is taken, or else the one that overlaps
    least. Points that coincide share one label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(canvas).draw()
    frame = axes.get_window_extent()
    scale = canvas.dpi / 72
    merged = _merged(texts, [tuple(axes.transData.transform(p)) for p in points])
    at = [axes.transData.transform(point) for point in points]
    taken = [_box(x, y, _CLEAR * scale, _CLEAR * scale) for x, y in at]
    for index, text in merged.items():
        place = _free_place(axes, text, point=points[index], frame=frame, taken=taken)
        (dx, dy), box = place
        far = abs(dx) + abs(dy) > 26
        axes.annotate(
            text,
            points[index],
            xytext=(dx, dy),
            textcoords="offset points",
            ha=_side(dx),
            va="center",
            fontsize=9,
            color=colours[index],
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colours[index]} if far else None,
        )
        taken.append(box)


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


def _free_place(
    axes: Axes, text: str, *, point: Point, frame: Bbox, taken: Sequence[Bbox]
) -> tuple[tuple[float, float], Bbox]:
    best: tuple[float, tuple[float, float], Bbox] | None = None
    for reach in _REACH:
        for right, up in _AROUND:
            offset = (right * reach, up * reach)
            box = _extent(axes, text, point=point, offset=offset)
            cost = sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame)
            if cost == 0:
                return offset, box
            if best is None or cost < best[0]:
                best = (cost, offset, box)
    assert best is not None
    return best[1], best[2]


def _extent(axes: Axes, text: str, *, point: Point, offset: tuple[float, float]) -> Bbox:
    """The box of a label in pixels, with a pixel of air."""
    trial = axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha=_side(offset[0]),
        va="center",
        fontsize=9,
    )
    box = trial.get_window_extent()
    trial.remove()
    return box.padded(1)


def _side(dx: float) -> str:
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _box(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Bbox, frame: Bbox) -> float:
    area = box.width * box.height
    return area - _overlap(box, frame)
