"""The table of faults in docs/reliability.md: the number of pings that each fault may cost.

The tests of the level `faults` read their limits from this table, so that they prove each limit of the page.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PATHS = ("vxlan", "udp, fast path", "udp, user space", "host-gw")
"""The data paths, in the order of the columns."""

_PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"
_HEADING = "## Faults on real parts"
_LIMIT = re.compile(r"(?:at most )?([\d,]+)")
_UNTESTED = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One fault.

    Attributes:
        limits: number of pings that may be lost, by the data path on which the fault is tested.
        reason: the reason for the losses, or why no ping is lost.
    """

    fault: str
    limits: dict[str, int]
    reason: str


def fault_rows(page: Path = _PAGE) -> dict[str, FaultRow]:
    """Return the rows of the table by fault."""
    section = page.read_text().partition(f"{_HEADING}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {cells[0]: _row(cells) for cells in lines[1:]}


def _row(cells: list[str]) -> FaultRow:
    fault, *limits, reason = cells
    tested = zip(PATHS, limits, strict=True)
    return FaultRow(
        fault=fault, limits={path: _limit(text) for path, text in tested if text != _UNTESTED}, reason=reason
    )


def _limit(text: str) -> int:
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no number of pings")
    return int(found[1].replace(",", ""))
