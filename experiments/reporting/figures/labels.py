"""Names beside points, without overlaps."""

from __future__ import annotations

from typing import Any

SIZE = 7.5
"""Size of the letters, in points."""
_DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
_DISTANCES = (6, 12, 20, 30, 42, 56, 72)


def name_points(ax: Any, points: dict[str, tuple[float, float]], others: list[tuple[float, float]]) -> None:
    """Write each name near its point, within the axes and clear of names and points; a line joins distant ones.

    Args:
        ax: with its final limits, in a figure that is laid out, and must not be laid out again.
        points: name → x and y, in data coordinates.
        others: points without a name, likewise.
    """
    scale = ax.figure.dpi / 72
    frame = ax.get_window_extent()
    centres = {name: ax.transData.transform(point) for name, point in points.items()}
    dots = [*centres.values(), *(ax.transData.transform(point) for point in others)]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in dots]
    for name, (x, y) in sorted(centres.items(), key=lambda entry: -entry[1][1]):
        width, height = 0.58 * SIZE * scale * len(name), 1.25 * SIZE * scale
        found = None
        for distance in _DISTANCES:
            for right, up in _DIRECTIONS:
                left = x + right * distance * scale - (0 if right > 0 else width if right < 0 else width / 2)
                low = y + up * distance * scale - height / 2
                box = (left, low, left + width, low + height)
                inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
                if inside and not any(_overlap(box, other) for other in taken):
                    found = box, distance
                    break
            if found:
                break
        if not found:
            continue  # there is no room: the table has its numbers
        box, distance = found
        taken.append(box)
        offset = ((box[0] - x) / scale, ((box[1] + box[3]) / 2 - y) / scale)
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        ax.annotate(
            name,
            points[name],
            offset,
            textcoords="offset points",
            fontsize=SIZE,
            va="center",
            arrowprops=line if distance > _DISTANCES[0] else None,
        ).set_in_layout(False)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
