"""What is asked and answered over HTTP, as values."""

from dataclasses import dataclass

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that arrived whole.

    Attributes:
        method: as sent, upper case by convention; HEAD arrives as GET.
        path: the target without its query, not percent-decoded.
    """

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer, whole; its length and date are added when it is sent."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()) -> "Response":
        """Return an answer of one line for people."""
        return cls(status=status, body=f"{text}\n".encode(), content_type=TEXT, headers=headers)
