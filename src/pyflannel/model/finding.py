"""Findings: what is wrong with a host, why, by what it shows, and what to type."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
"""Packets are lost or may be; something should be looked at; good to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a person should know.

    Attributes:
        code: what kind of thing it is; never renamed.
        cause: in one sentence.
        evidence: what was seen, a line each.
        fix: the command to type, or what to do.
    """

    code: str
    severity: Severity
    cause: str
    evidence: tuple[str, ...] = ()
    fix: str
