"""Quantities as bars. Each quantity has a separate scale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drawing.frame import FIRST_LINE, MARGIN, OURS, THEIRS, frame, words

_LONGEST = 440
_STEP, _HEIGHT = 18, 14
_TITLE_STEP, _GAP = 20, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value, with a text before and after it."""

    name: str
    value: float
    told: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars with one title and one scale, with a gap after each group."""

    title: str
    groups: Sequence[Sequence[Bar]]


def draw_bars(title: str, charts: Sequence[Chart], notes: Iterable[str]) -> str:
    """Return the charts as an SVG, one below the other."""
    names = [len(bar.name) for chart in charts for group in chart.groups for bar in group]
    left = 55 + 5 * max(names)  # leaves space for names from five to fifteen letters
    drawn, y = [], FIRST_LINE
    for chart in charts:
        y += _TITLE_STEP
        drawn.append(words(MARGIN, y, chart.title, style='font-weight="bold"'))
        longest = max(bar.value for group in chart.groups for bar in group) or 1.0
        for group in chart.groups:
            for bar in group:
                y += _STEP
                width = max(1, round(_LONGEST * bar.value / longest))
                colour = OURS if bar.is_ours else THEIRS
                drawn += [
                    words(MARGIN, y, bar.name),
                    f'<rect x="{left}" y="{y - 12}" width="{width}" height="{_HEIGHT}" fill="{colour}"/>',
                    words(left + width + 8, y, bar.told),
                ]
            y += _GAP
    return frame(title, drawn, foot=y + 26, notes=notes)
