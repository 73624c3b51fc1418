"""Access to the web page: clients on this host use a loopback address, and clients on other hosts need a
token.
"""

import hmac
import logging
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from pyflannel.errors import UsageError
from pyflannel.http.server import Request, Response
from pyflannel.model.store_record import Secret

log = logging.getLogger(__name__)

LEAST_TOKEN = 16
"""Minimum number of characters of a token. A shorter token would be easy to guess."""

_LONGEST_TOKEN = 1024
_TOKEN = re.compile(rf"[!-~]{{{LEAST_TOKEN},{_LONGEST_TOKEN}}}")

_SAME_SITE = frozenset({"same-origin", "none"})
"""Values of the header Sec-Fetch-Site in requests of the page itself, and in requests for an address that a
user entered."""

PROTECTION = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
"""Headers that make a browser run only the scripts of the page, and hide the responses from other pages."""


def read_token(path: Path) -> Secret:
    """Return the token in a file. A token is one word of printable ASCII characters.

    Raises:
        UsageError: the file is unreadable, or contains no token of at least LEAST_TOKEN characters.
    """
    hint = f"Create it: head -c 32 /dev/urandom | base64 > {path}; chmod 600 {path}."
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_TOKEN + 2).decode("ascii", errors="replace").strip()
    except OSError as error:
        raise UsageError(f"--http-token-file={path}: {error.strerror}", hint=hint) from error
    if not _TOKEN.fullmatch(text):
        raise UsageError(
            f"--http-token-file={path}: the file contains no word of at least {LEAST_TOKEN} characters",
            hint=hint,
        )
    return Secret(text)


@dataclass(frozen=True, slots=True)
class Access:
    """Decides which requests the page answers.

    Attributes:
        ip: the address on which flanneld listens.
        token_file: file of the token that each request for a document must contain; None for no token, which
            is possible on a loopback address only.
    """

    ip: IPv4Address | IPv6Address
    token_file: Path | None = None
    _complaints: set[str] = field(default_factory=set, compare=False)

    def objection_to_file(self, request: Request) -> Response | None:
        """Return the response that refuses a request for a file of the page; None if the request is allowed.

        The files of the page contain no secret.
        """
        if self.token_file is not None:
            return None
        if not self.ip.is_loopback:
            return _refusal(403, "the page needs --http-token-file=FILE, except on a loopback address")
        if not _names_loopback(request.headers.get("host", "")):
            # The name of another web site may resolve to 127.0.0.1, so that a browser gives the responses to
            # that site.
            return _refusal(
                403, "the Host header names no loopback address: open http://127.0.0.1 or an SSH tunnel"
            )
        return None

    def objection_to_document(self, request: Request) -> Response | None:
        """Return the response that refuses a request for a document; None if the request is allowed."""
        if (refusal := self.objection_to_file(request)) is not None:
            return refusal
        if request.headers.get("sec-fetch-site", "none") not in _SAME_SITE:
            return _refusal(403, "a page of another site sent this request")
        return None if self.token_file is None else self._objection_to_token(self.token_file, request)

    def _objection_to_token(self, path: Path, request: Request) -> Response | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            token = read_token(path).reveal()
        except UsageError as error:
            if error.in_full not in self._complaints:  # any client can cause this log line
                log.error("Refused a request for the page: %s", error.in_full)
            self._complaints.add(error.in_full)
            return _refusal(503, "the file of the token is unusable: see the log of flanneld")
        self._complaints.clear()
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return None
        return Response.text(
            401, "the token is missing or wrong", headers=(("WWW-Authenticate", "Bearer"), *PROTECTION)
        )


def _refusal(status: int, text: str) -> Response:
    return Response.text(status, text, headers=PROTECTION)


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
