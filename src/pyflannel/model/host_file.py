"""Files on the host that other programs read."""

from dataclasses import dataclass

from pyflannel.model.item import Item, Key, Marks, Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFile(Item):
    """A file with exactly this text, mode 0644, replaced atomically."""

    KIND = "file"
    PLURAL = "files"
    RANK = Rank.FILE

    path: str
    text: str

    @property
    def key(self) -> Key:
        """What makes two values one file."""
        return "file", self.path

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"file {self.path}"

    def is_marked(self, marks: Marks) -> bool:
        """Return False: a file at another path belongs to another program."""
        return False
