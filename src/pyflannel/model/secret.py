"""What must not be shown."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A password. Only `reveal` shows its text. An empty one is false."""

    _text: str

    def reveal(self) -> str:
        """Return the text, to hand it to whom it is meant for."""
        return self._text

    def __str__(self) -> str:
        return "***"

    __repr__ = __str__

    def __bool__(self) -> bool:
        return bool(self._text)
