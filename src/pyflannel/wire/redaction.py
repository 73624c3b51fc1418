"""Removes secrets from texts that leave a host: known values, and values next to the name of a secret."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

REMOVED = "(removed)"

_SHORTEST = 4
"""Minimum length of a known value that is removed, in characters. With a shorter value, parts of other
words would be removed."""

_SHORTEST_LEARNED = 8
"""Minimum length of a value that is a secret only because of the name next to it. A shorter value may be
`true` or `none`."""

_SECRET = (
    r"(?:passw|passphrase|secret|token|psk|pre-?shared|private[-_ ]?key|priv(?:ate)?key|credential"
    r"|authorization|api[-_]?key|access[-_]?key|auth[-_]?key|key-data|cookie)"
)
_NAMED_FILE = re.compile(r"(?:file|path|dir)\W*$", re.IGNORECASE)
"""A name with this suffix has a path as its value, for example `password-file`."""

# Peers and writers of the store can cause lines in the log. Therefore the time of each pattern is linear in
# the length of the text: a match begins only at the beginning of a word, and quantifiers do not backtrack.

_NAME = rf"(?<![\w.-])(?=[\w.-]*?{_SECRET})[\w.-]++(?:(?<=private) key[\w.-]*+)?"
_PEM = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----).*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_USER = re.compile(r"""(?<![^\s"'<>])(?P<before>(?>[^\s"'<>]*?://))(?P<user>[^\s"'<>]*)@""")
_BEARER = re.compile(r"\b(bearer|basic)(\s++)[A-Za-z0-9._~+/=-]{8,}+", re.IGNORECASE)
_JWT = re.compile(r"(?<![\w-])(?>([\w-]*?)\beyJ)[\w-]{8,}+\.[\w-]++(?:\.[\w-]*+)?")
_ASSIGNED = re.compile(
    rf"""(?P<name>{_NAME}\\?["']?)(?P<between>\s*+[:=]\s*+)"""
    r"""(?P<value>\\"[^"\\]*+\\"|"(?:[^"\\]|\\.)*+"|'[^']*+'|[^\s,;&"'}\]]++[^\n,;&"'}\]]*+)""",
    re.IGNORECASE,
)
_ARGUMENT = re.compile(rf"(?P<name>(?=-){_NAME})(?P<between>[ \t]++)(?P<value>[^\s-]\S*+)", re.IGNORECASE)
_SECRET_WORD = re.compile(_SECRET, re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Return whether the value of a variable, a flag or a key of this name is a secret."""
    return _SECRET_WORD.search(name) is not None and _NAMED_FILE.search(name) is None


class Redactor:
    """Removes secrets from texts.

    Attributes:
        removed: number of values that were removed.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        """Remove these values, and also their forms in JSON, in a URL, and in base64."""
        forms = {form for one in secrets if len(one) >= _SHORTEST for form in _forms(one)}
        self._known = sorted(forms, key=len, reverse=True)
        self.removed = 0

    def clean(self, text: str) -> str:
        """Return the text without secrets."""
        for form in self._known:
            rest = text.split(form)
            self.removed += len(rest) - 1
            text = REMOVED.join(rest)
        text = self._counted(_PEM, lambda found: f"{found[1]}{REMOVED}{found[2]}", text)
        text = self._counted(_USER, lambda found: f"{found['before']}{REMOVED}@", text)
        text = self._counted(_BEARER, lambda found: f"{found[1]}{found[2]}{REMOVED}", text)
        text = self._counted(_JWT, lambda found: f"{found[1]}{REMOVED}", text)
        for pattern in (_ASSIGNED, _ARGUMENT):
            text = self._counted(pattern, _without_value, text)
        return text

    def _counted(
        self, pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], text: str
    ) -> str:
        def replaced(found: re.Match[str]) -> str:
            new = replacement(found)
            self.removed += new != found[0]
            return new

        return pattern.sub(replaced, text)


def _without_value(found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    if _NAMED_FILE.search(name) or value.startswith(REMOVED):
        return found[0]
    for mark in ('\\"', '"', "'"):
        if value.startswith(mark):
            return f"{name}{found['between']}{mark}{REMOVED}{mark}"
    return f"{name}{found['between']}{REMOVED}"


def named_secrets(text: str) -> Iterator[str]:
    """Yield the values next to the names of secrets, and the passwords in URLs. The caller removes these
    values in other places too.
    """
    for pattern in (_ASSIGNED, _ARGUMENT):
        for found in pattern.finditer(text):
            value = found["value"].strip("\\\"'")
            if _NAMED_FILE.search(found["name"]) is None and len(value) >= _SHORTEST_LEARNED:
                yield value
    for url in _USER.finditer(text):
        password = url["user"].rpartition("@")[2].partition(":")[2]
        if len(password) >= _SHORTEST_LEARNED:
            yield password


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield json.dumps(secret)[1:-1]
    data = _bytes_of(secret)
    yield quote(data, safe="")
    yield b64encode(data).decode().rstrip("=")


def _bytes_of(secret: str) -> bytes:
    """Return the bytes of a secret. A lone surrogate is a byte that is not UTF-8, or an escape in JSON."""
    try:
        return secret.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return secret.encode(errors="surrogatepass")


def secrets_in(text: str) -> Iterator[str]:
    """Yield the secrets in the text of a file of keys: its lines, or the values of secret names in a JSON
    document.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict | list):
        yield from _named_in(document, is_named=False)
        return
    for line in text.splitlines():
        if (stripped := line.strip()) and not stripped.startswith("-----"):
            yield stripped


def _named_in(value: object, *, is_named: bool) -> Iterator[str]:
    match value:
        case str() if is_named:
            yield value
        case dict():
            for name, one in value.items():
                is_private = is_secret(str(name)) or str(name).lower() == "private"
                yield from _named_in(one, is_named=is_named or is_private)
        case list():
            for one in value:
                yield from _named_in(one, is_named=is_named)
        case _:
            pass
