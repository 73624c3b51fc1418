"""Something that a person should know of, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remark:
    """A line each; `hint` is empty where there is nothing to do."""

    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.text}. {self.hint}" if self.hint else self.text
