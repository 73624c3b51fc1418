"""The JSON documents of the control socket and of flannelctl: status, leases, config, errors.

Each document is one object. Source: docs/reference/flannelctl.md. A reader ignores unknown keys, so that an
older flannelctl works with a newer daemon.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from pyflannel.errors import (
    BusyError,
    ConfigError,
    FlannelError,
    NotReadyError,
    StoreError,
    StoreTimeoutError,
    UsageError,
    WireError,
)
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.model.network_config import AnyNetwork, IpNetwork
from pyflannel.model.probe import PingReport, TraceReport
from pyflannel.model.reach_matrix import Matrix
from pyflannel.model.status import Finding, JournalEntry, PlanPreview, Status, StoreTimes
from pyflannel.wire.json_values import ADDRESSES, address_of_text

_FAMILIES = {
    family.__name__: family
    for family in (
        BusyError,
        ConfigError,
        NotReadyError,
        StoreError,
        StoreTimeoutError,
        UsageError,
        WireError,
    )
}

_Document = TypeVar("_Document")


class Leases(Struct, frozen=True):
    """The document of `leases`."""

    leases: list[LeaseEntry]


class Peers(Struct, frozen=True):
    """The document of `peers`. `matrix` is null without `--matrix`."""

    peers: list[PeerEntry]
    matrix: Matrix | None = None


class _PeerBytes(Struct, frozen=True):
    sent: dict[AnyNetwork, int]


class _Subnets(Struct, frozen=True):
    subnets: list[AnyNetwork]


class Events(Struct, frozen=True):
    """The document of `events`."""

    events: list[JournalEntry]


class Examination(Struct, frozen=True):
    """The document of `doctor`. `ok` is false if a finding is an error; `fixed` contains the commands that
    `--fix` performed.
    """

    ok: bool
    findings: tuple[Finding, ...]
    fixed: tuple[str, ...] = ()


class _Config(Struct, frozen=True):
    text: str | None


class PublicKey(Struct, frozen=True):
    """The document of `flannelctl rotate-key`."""

    public_key: str


class SignedFile(Struct, frozen=True):
    """The document of `allow-list new-key` and `sign`. `counter` is null for a new key."""

    file: str
    operator: str
    counter: int | None = None


class ListChange(Struct, frozen=True):
    """The document of `allow-list publish`."""

    counter: int
    difference: list[str]
    written: bool


class AllowList(Struct, frozen=True):
    """The document of `allow-list get`."""

    counter: int
    operator: str
    text: str


class _Error(Struct, frozen=True, kw_only=True):
    kind: str
    message: str
    hint: str = ""


class _Failure(Struct, frozen=True):
    error: _Error


def format_status(status: Status) -> bytes:
    """Return the status as JSON, with the field names of the model."""
    return _encode(status)


def parse_status(document: bytes) -> Status:
    """Return the status of a daemon.

    Raises:
        WireError: the text is not the JSON of a status.
    """
    return _decode(document, Status)


def format_leases(leases: Sequence[LeaseEntry]) -> bytes:
    """Return the document `{"leases": [...]}`."""
    return _encode(Leases(list(leases)))


def parse_leases(document: bytes) -> list[LeaseEntry]:
    """Return the leases of `{"leases": [...]}`.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, Leases).leases


def format_peers(peers: Sequence[PeerEntry], matrix: Matrix | None = None) -> bytes:
    """Return the document `{"peers": [...], "matrix": ...}`."""
    return _encode(Peers(list(peers), matrix))


def parse_matrix(document: bytes) -> Matrix:
    """Return which hosts reach which other hosts.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, Matrix)


def format_peer_bytes(sizes: Mapping[IpNetwork, int]) -> bytes:
    """Return the document `{"sent": {subnet: bytes}}`."""
    return _encode({"sent": {str(subnet): size for subnet, size in sizes.items()}})


def parse_peer_bytes(document: bytes) -> dict[IpNetwork, int]:
    """Return the bytes by the subnet of the peer.

    Raises:
        WireError: the text does not have this form.
    """
    return dict(_decode(document, _PeerBytes).sent)


def format_subnets(subnets: Sequence[IpNetwork]) -> bytes:
    """Return the document `{"subnets": [...]}`."""
    return _encode({"subnets": list(map(str, subnets))})


def parse_subnets(document: bytes) -> list[IpNetwork]:
    """Return the subnets of `{"subnets": [...]}`.

    Raises:
        WireError: the text does not have this form.
    """
    return list(_decode(document, _Subnets).subnets)


def format_events(events: Sequence[JournalEntry]) -> bytes:
    """Return the document `{"events": [...]}`."""
    return _encode(Events(list(events)))


def parse_events(document: bytes) -> list[JournalEntry]:
    """Return the entries of `{"events": [...]}`.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, Events).events


def format_preview(preview: PlanPreview) -> bytes:
    """Return the document of `plan`."""
    return _encode(preview)


def parse_preview(document: bytes) -> PlanPreview:
    """Return the document of `plan`.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, PlanPreview)


def format_store_times(times: StoreTimes) -> bytes:
    """Return the durations of requests to the store as JSON."""
    return _encode(times)


def parse_store_times(document: bytes) -> StoreTimes:
    """Return the durations of requests to the store.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, StoreTimes)


def format_findings(findings: Sequence[Finding], *, is_ok: bool, fixed: Sequence[str] = ()) -> bytes:
    """Return `{"ok": ..., "findings": [...], "fixed": [...]}`."""
    return _encode(Examination(is_ok, tuple(findings), tuple(fixed)))


def format_trace(report: TraceReport) -> bytes:
    """Return the document of `flannelctl trace`."""
    return _encode(report)


def format_ping(report: PingReport) -> bytes:
    """Return the document of `ping`."""
    return _encode(report)


def format_config_text(text: str | None) -> bytes:
    """Return `{"text": ...}`: the text of the network config in the store, or null."""
    return _encode(_Config(text))


def parse_config_text(document: bytes) -> str | None:
    """Return the text of `{"text": ...}`.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, _Config).text


def format_public_key(public_key: str) -> bytes:
    """Return `{"public_key": ...}`: the new key of WireGuard after a rotation."""
    return _encode(PublicKey(public_key))


def parse_public_key(document: bytes) -> str:
    """Return the key of `{"public_key": ...}`.

    Raises:
        WireError: the text does not have this form.
    """
    return _decode(document, PublicKey).public_key


def format_document(document: object) -> bytes:
    """Return the JSON text of a document. The module of the command defines the type of the document."""
    return _encode(document)


def format_error(error: FlannelError) -> bytes:
    """Return `{"error": {"kind", "message", "hint"}}`; the kind is the name of the error's class."""
    return _encode(_Failure(_Error(kind=type(error).__name__, message=str(error), hint=error.hint)))


def parse_error(document: bytes) -> FlannelError:
    """Return the error of the daemon, with the same class if callers need the class.

    Raises:
        WireError: the text is not the JSON of an error.
    """
    error = _decode(document, _Failure).error
    return _FAMILIES.get(error.kind, FlannelError)(error.message, hint=error.hint)


def _encode(document: object) -> bytes:
    """Return the JSON text of a document. Bytes that are not UTF-8, for example in the name of a link, become
    question marks.
    """
    try:
        return msgspec.json.encode(document, enc_hook=_text_of_address)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(document, enc_hook=_text_of_address)
        return json.dumps(plain, ensure_ascii=False).encode(errors="replace")


def _decode(document: bytes, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(document, type=kind, dec_hook=address_of_text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"cannot read the response of the daemon: {error}",
            hint="Check that flannelctl is not older than flanneld, and that the socket belongs to flanneld.",
        ) from error


def _text_of_address(value: object) -> str:
    if isinstance(value, ADDRESSES):
        return str(value)
    raise NotImplementedError(type(value).__name__)
