"""Seconds as curves, which grow with a number of hosts or leases."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drawing.frame import FIRST_LINE, frame, words

_LEFT, _TOP, _HEIGHT = 70, FIRST_LINE + 10, 340
_LEGEND_STEP = 18
_QUARTERS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Seconds by numbers, as pairs of number and seconds.

    Attributes:
        beside: a curve for comparison, in dashes.
    """

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    beside: Sequence[tuple[int, float]] = ()


def draw_curves(
    title: str, curves: Sequence[Curve], notes: Iterable[str], *, marks: Sequence[int], width: int
) -> str:
    """Return the curves as an SVG, numbers to the right and seconds upwards.

    `marks` are the labelled numbers below the curves. The last mark is the largest number, `width` pixels to
    the right.
    """
    most, seconds = marks[-1], [s for curve in curves for _, s in (*curve.points, *curve.beside)]
    most_s = max(seconds, default=0.0) or 1.0

    def x(number: int) -> float:
        return _LEFT + width * number / most

    def y(seconds: float) -> float:
        return _TOP + _HEIGHT * (1 - seconds / most_s)

    def line(points: Sequence[tuple[int, float]], colour: str, stroke: str) -> str:
        places = " ".join(f"{x(number):.1f},{y(seconds):.1f}" for number, seconds in points)
        return f'<polyline points="{places}" fill="none" stroke="{colour}" {stroke}/>'

    drawn: list[str] = []
    for row, curve in enumerate(curves):
        drawn.append(line(curve.points, curve.colour, 'stroke-width="2"'))
        drawn.append(line(curve.beside, curve.colour, 'stroke-dasharray="4"'))
        drawn += [
            f'<circle cx="{x(number):.1f}" cy="{y(seconds):.1f}" r="3" fill="{curve.colour}"/>'
            for number, seconds in curve.points
        ]
        drawn.append(
            words(_LEFT + 20, _TOP + 20 + _LEGEND_STEP * row, curve.name, style=f'fill="{curve.colour}"')
        )
    for level in (most_s * quarter / 4 for quarter in _QUARTERS):
        drawn.append(f'<path d="M{_LEFT} {y(level)}h{width}" stroke="#dddddd"/>')
        drawn.append(words(_LEFT - 8, y(level) + 4, f"{level:.1f} s", style='text-anchor="end"'))
    below = _TOP + _HEIGHT
    drawn += [words(x(mark), below + 18, str(mark), style='text-anchor="middle"') for mark in marks]
    return frame(title, drawn, foot=below + 44, notes=notes)
