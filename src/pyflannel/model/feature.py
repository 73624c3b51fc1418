"""What the fast path uses of the kernel and of this process, and whether it is there."""

from dataclasses import dataclass
from typing import Literal

Answer = Literal["present", "absent", "unknown"]
"""Unknown: something hides it, a missing right or a seccomp filter. Only a trial tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One of these.

    Attributes:
        detail: what was seen.
        hint: what to do where it is not present.
        is_needed: without it no packet goes through the kernel; of the rest, something else takes the place.
    """

    name: str
    answer: Answer
    detail: str = ""
    hint: str = ""
    is_needed: bool = True

    @property
    def text(self) -> str:
        """The answer in a line."""
        word = "could not tell" if self.answer == "unknown" else self.answer
        return f"{self.name}: {word}" + (f", {self.detail}" if self.detail else "")
