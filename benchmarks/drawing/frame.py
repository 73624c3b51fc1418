"""The common parts of all pictures: a white background, a title, and notes below the drawing."""

from collections.abc import Iterable
from html import escape
from textwrap import wrap

WIDTH = 920
MARGIN = 20
FIRST_LINE = 40
"""The bottom of the title, in pixels from the top."""

OURS, THEIRS = "#1f77b4", "#999999"
"""Colours of flanneld's values and of values for comparison."""

_NOTE_STEP = 15
_NOTE_LETTERS = 190
"""Maximum number of characters in a line of the notes."""


def words(x: float, y: float, text: str, *, style: str = "") -> str:
    """Return a text with its line at `y`; `style` is additional attributes of SVG."""
    return f'<text x="{x}" y="{y}"{" " if style else ""}{style}>{escape(text, quote=False)}</text>'


def frame(title: str, drawn: Iterable[str], *, foot: float, notes: Iterable[str]) -> str:
    """Return the whole picture: `drawn` ends above `foot`, the position of the first note."""
    small = 'font-size="9" fill="#555555"'
    lines = [line for note in notes for line in wrap(note, _NOTE_LETTERS)]
    small_print = [
        words(MARGIN, foot + _NOTE_STEP * row, line, style=small) for row, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}"'
            f' height="{foot + _NOTE_STEP * len(lines)}" font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            words(MARGIN, 28, title, style='font-size="16"'),
            *drawn,
            *small_print,
            "</svg>\n",
        ]
    )
