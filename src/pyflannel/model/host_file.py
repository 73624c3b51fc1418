"""Files on the host that other programs read."""

from dataclasses import dataclass

from pyflannel.model.item import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile:
    """A file with exactly this text, mode 0644, replaced atomically."""

    path: str
    text: str

    @property
    def key(self) -> Key:
        """What makes two values one file."""
        return "file", self.path
