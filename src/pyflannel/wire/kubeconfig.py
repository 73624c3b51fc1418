"""Reads a kubeconfig file: the server of its current context, and the credentials for it.

Source: client-go, k8s.io/client-go/tools/clientcmd/api/v1.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pyflannel.errors import WireError
from pyflannel.model.store_record import Secret

if TYPE_CHECKING:
    from yaml import SafeLoader

_HINT = "Write the kubeconfig as 'kubectl config view --raw --minify --flatten' prints it."

_LATER = ("exec", "auth-provider", "username", "password", "impersonate", "as")
"""Keys of a user that flanneld does not support."""


class Kubeconfig(Struct, frozen=True, kw_only=True):
    """A server and the credentials for it. Paths are not changed; a relative path begins at the file's
    directory.

    Attributes:
        server: URL of the API server; "" if the file names no server.
        ca, certificate, key: text in PEM, or a path; None if the file contains neither a text nor a path.
        server_name: expected name in the server's certificate; None if the name is the host of the URL.
        is_insecure: True if the server's certificate is not checked.
        token: bearer token; `token_file` has precedence.
    """

    server: str = ""
    ca: Secret | str | None = None
    certificate: Secret | str | None = None
    key: Secret | str | None = None
    server_name: str | None = None
    is_insecure: bool = False
    token: Secret | None = None
    token_file: str | None = None


def parse_kubeconfig(text: str) -> Kubeconfig:
    """Return the server and the credentials of the current context. The text is YAML, or JSON.

    Raises:
        WireError: the text is not a kubeconfig, or its user needs a method that flanneld does not support.
    """
    document = _document(text)
    if not isinstance(document, Mapping):
        raise WireError("not a mapping", hint=_HINT)
    context = _named(document, "contexts", _text(document, "current-context"), "context")
    cluster = _named(document, "clusters", _text(context, "cluster"), "cluster")
    user = _named(document, "users", name, "user") if (name := _text(context, "user")) else {}
    for key in _LATER:
        if user.get(key):
            raise WireError(
                f"the user has {key}, which flanneld does not support",
                hint="Use a token, a tokenFile or a client certificate.",
            )
    return Kubeconfig(
        server=_text(cluster, "server") or "",
        ca=_file(cluster, "certificate-authority"),
        certificate=_file(user, "client-certificate"),
        key=_file(user, "client-key"),
        server_name=_text(cluster, "tls-server-name"),
        is_insecure=cluster.get("insecure-skip-tls-verify") is True,
        token=Secret(token) if (token := _text(user, "token")) else None,
        token_file=_text(user, "tokenFile"),
    )


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        import yaml  # this import takes half a megabyte of memory, and a file in JSON does not need it

    try:
        node = yaml.compose(text, _loader())
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        # The last two are errors of int() and chr(), which the scanner of yaml does not catch.
        raise WireError(f"not YAML: {' '.join(str(error).split())}", hint=_HINT) from error
    return None if node is None else _value(node, set())


_DEEPEST = 32
"""Maximum depth of brackets. For each token, the scanner of yaml takes time in proportion to the depth."""


@cache
def _loader() -> type["SafeLoader"]:
    """Return the loader of yaml that refuses deep brackets.

    The faster parser of libyaml accepts other texts, and gives some values another type.
    """
    from yaml import SafeLoader
    from yaml.scanner import ScannerError

    class Loader(SafeLoader):
        def fetch_flow_collection_start(self, TokenClass: Any) -> None:
            if self.flow_level >= _DEEPEST:
                raise ScannerError(None, None, f"more than {_DEEPEST} nested brackets", self.get_mark())
            super().fetch_flow_collection_start(TokenClass)

    return Loader


_TAG = "tag:yaml.org,2002:"
_TRUE = ("true", "yes", "on")
_OTHER = object()
"""A value that is no text, such as a number or a date."""


def _value(node: Any, seen: set[int]) -> object:
    """Return the value of a node of yaml. Numbers, dates and objects are `_OTHER`.

    The constructor of yaml is not used, because it raises many errors for values that no kubeconfig contains.
    A list or a mapping that aliases repeat could make a short file expand exponentially.
    """
    if node.id != "scalar":
        if id(node) in seen:
            raise WireError("an alias of YAML repeats a list or a mapping", hint=_HINT)
        seen.add(id(node))
    match node.id, node.tag.removeprefix(_TAG):
        case "mapping", _:
            return {key.value: _value(each, seen) for key, each in node.value if key.id == "scalar"}
        case "sequence", _:
            return [_value(each, seen) for each in node.value]
        case _, "str":
            return node.value
        case _, "bool":
            return node.value.lower() in _TRUE
        case _, "null":
            return None
        case _:
            return _OTHER


def _named(document: Mapping[str, Any], group: str, name: object, kind: str) -> Mapping[str, Any]:
    """Return the entry of this name in a group of the file."""
    if not name:
        raise WireError(f"no {kind} is named" if kind != "context" else "no current-context", hint=_HINT)
    entries = document.get(group)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and entry.get("name") == name:
            found = entry.get(kind)
            if isinstance(found, Mapping):
                return found
    raise WireError(f"{group} contains no {kind} {str(name)!r}", hint=_HINT)


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise WireError(f"{key} is not a text", hint=_HINT)
    return value or None


def _file(entry: Mapping[str, Any], key: str) -> Secret | str | None:
    """Return the decoded text at `KEY-data`, otherwise the path at `KEY`."""
    data = _text(entry, f"{key}-data")
    if data is None:
        return _text(entry, key)
    try:
        return Secret(b64decode(data, validate=True).decode("ascii"))
    except ValueError as error:
        raise WireError(f"{key}-data is not base64 of a PEM text", hint=_HINT) from error
