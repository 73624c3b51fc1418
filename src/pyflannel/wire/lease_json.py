"""Converts the JSON values of leases and claims to `LeaseAttributes` and `Claim`, and back."""

import re
from binascii import a2b_base64, b2a_base64
from ipaddress import IPv4Network
from sys import intern
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from pyflannel.errors import WireError
from pyflannel.model.lease import (
    KEY_BYTES,
    LARGEST_COUNTER,
    LONGEST_OWNER,
    MOST_PREVIOUS,
    NO_ADDRESS,
    SIGNATURE_BYTES,
    BackendData,
    BackendPart,
    Claim,
    LeaseAttributes,
    Vtep,
    WireguardData,
    is_host_name,
)
from pyflannel.model.wireguard import parse_key
from pyflannel.wire.json_values import escape, fold, members, parse_ipv4, parse_ipv6

# The data that a backend publishes in its lease: conversion of `BackendData` to JSON, and back.
#
# Examples: `{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}`, `{"PublicKey":"…","Port":51820}`
#
# Source: flannel 0.28.9. Release 0.6 writes no VNI, and release 0.20 writes no port.

_MAC = re.compile(
    r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}",
    re.IGNORECASE | re.ASCII,
)
"""The forms of a MAC address that the original reads (Go, net.ParseMAC)."""

_USUAL = re.compile(r'\{"VNI":([1-9][0-9]{0,8}),"VtepMAC":"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"\}', re.ASCII)
"""This expression matches the text of nearly all leases, and is several times as fast as a parser. A
network has thousands of leases."""

_SEPARATORS = re.compile(r"[:.-]")
_VNIS = range(2**32)
"""The values of a VNI that the original reads: an unsigned number of 32 bits."""


def format_backend_data(data: BackendData) -> str:
    """Return the backend data of a host's lease, from its VTEP or its public key. The JSON keys are in the
    original's order.
    """
    if isinstance(data, WireguardData):
        port = "" if data.port is None else f',"Port":{data.port}'
        return f'{{"PublicKey":"{data.public_key}"{port}}}'
    vni = "" if data.vni is None else f'"VNI":{data.vni},'
    return f'{{{vni}"VtepMAC":"{data.mac}"}}'


def parse_vtep(text: str) -> Vtep | None:
    """Return the VTEP that a vxlan lease publishes; None if the text contains no VTEP.

    Keys match in upper and lower case, and unknown keys are ignored. An invalid text is not an error of the
    lease: only this peer becomes unreachable.
    """
    if (usual := _usual_vtep(text)) is not None:
        return usual
    try:
        found = _last_of_each(text)
        mac, vni = (msgspec.json.decode(found.get(key, b"null")) for key in ("vtepmac", "vni"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(mac, str) or not _MAC.fullmatch(mac):
        return None
    if vni is not None and (type(vni) is not int or vni not in _VNIS):
        return None
    return Vtep(mac=bytes.fromhex(_SEPARATORS.sub("", mac)).hex(":"), vni=vni)


def _usual_vtep(text: str) -> Vtep | None:
    """Return the VTEP if `format_backend_data` wrote the text; None for any other text."""
    usual = _USUAL.fullmatch(text)
    return None if usual is None else Vtep(mac=usual[2], vni=int(usual[1]))


_PORTS = range(1, 65536)


def parse_wireguard(text: str) -> WireguardData | None:
    """Return the key and the port that a wireguard lease publishes; None if the text contains no key.

    Keys match in upper and lower case, and unknown keys are ignored. An invalid text only makes this peer
    unreachable.
    """
    try:
        found = _last_of_each(text)
        key, port = (msgspec.json.decode(found.get(name, b"null")) for name in ("publickey", "port"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(key, str) or (public_key := parse_key(key)) is None:
        return None
    if port is not None and port != 0 and (type(port) is not int or port not in _PORTS):
        return None
    return WireguardData(public_key=public_key, port=port or None)


# Converts the JSON values of leases and claims to `LeaseAttributes` and `Claim`, and back.
#
# A lease is written in the form of flannel 0.28.9, with one additional key at the end, which the original
# ignores:
#
#     {"PublicIP":"192.168.50.102","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1},
#      "BackendV6Data":{"VNI":1},"Pyflannel":{"Owner":"…","Host":"…","Port":8285,"Reads":["…"],"Key":"…",…}}
#
# Only pyflannel writes claims: {"Owner":"…","PublicIP":"192.168.50.102","Held":3600.5}.

LONGEST_LEASE = 4096
"""Maximum length of a lease or claim in bytes. Every release writes a few hundred bytes.

The length is limited because a host keeps each lease in memory. The time of the parsers is linear in the
length. If the depth exceeds the limit, msgspec raises RecursionError.
"""

_LONGEST_TYPE = 64
"""Maximum length of a backend's type in characters, because lists and messages contain it."""

_HINT = "Delete the key if its host is no longer in use. A running host writes the key again."


class _Ours(Struct, omit_defaults=True, rename="pascal"):
    """The additional data of a lease, for other hosts with pyflannel."""

    owner: Annotated[str, Meta(min_length=1, max_length=LONGEST_OWNER)]
    host: Any = None  # the name is only for people, so an invalid name must not hide the owner
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    reads: tuple[str, ...] = ()
    key: Any = None  # an invalid key is ignored, because it must not hide the owner
    counter: Any = None
    signature: Any = None
    also: Raw | UnsetType = UNSET


class _Part(Struct, omit_defaults=True, rename="pascal"):
    """A previous backend of the holder."""

    backend_type: Annotated[str, Meta(max_length=_LONGEST_TYPE)] = ""
    backend_data: Raw | UnsetType = UNSET
    backend_v6_data: Raw | UnsetType = UNSET
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None


class _LeaseValue(
    Struct,
    forbid_unknown_fields=True,
    rename={
        "public_ip": "PublicIP",
        "public_ipv6": "PublicIPv6",
        "backend_type": "BackendType",
        "backend_data": "BackendData",
        "backend_v6_data": "BackendV6Data",
        "ours": "Pyflannel",
    },
):
    """A lease, with its keys in the written order. Keys with the value UNSET are not written."""

    public_ip: str = "0.0.0.0"
    public_ipv6: str | None = None
    backend_type: Annotated[str, Meta(max_length=_LONGEST_TYPE)] | UnsetType | None = UNSET
    backend_data: Raw | UnsetType = UNSET
    backend_v6_data: Raw | UnsetType = UNSET
    ours: _Ours | UnsetType = UNSET


class _ClaimValue(
    Struct,
    omit_defaults=True,
    rename={"owner": "Owner", "host": "Host", "public_ip": "PublicIP", "held": "Held"},
):
    """A claim, with its keys in the written order."""

    owner: Annotated[str, Meta(min_length=1, max_length=LONGEST_OWNER)]
    public_ip: str
    host: Any = None
    held: Annotated[float, Meta(ge=0)] | None = None


_LEASE = msgspec.json.Decoder(_LeaseValue)
_LEASE_KEYS = {fold(name): name for name in _LeaseValue.__struct_encode_fields__}
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_OURS = msgspec.json.Decoder(_Ours)
_PARTS = msgspec.json.Decoder(list[_Part])
_CLAIM = msgspec.json.Decoder(_ClaimValue)


def parse_lease_attributes(value: bytes) -> LeaseAttributes:
    """Return the attributes in the value of a lease.

    Keys match in upper and lower case, unknown keys are ignored, and if a key occurs twice, its last value
    applies. An invalid Pyflannel object is ignored, and the host remains a peer.

    Raises:
        WireError: the value is not a lease. An IPv6 text as PublicIP is also refused; the original crashes
            when it reads a lease with this text.
    """
    try:
        _check_length(value)
        lease = _decode(value)
        data, vtep, wireguard = _backend_data(lease.backend_data, lease.backend_type)
        data_v6, vtep_v6, wireguard_v6 = _backend_data(lease.backend_v6_data, lease.backend_type)
        return LeaseAttributes(
            public_ip=parse_ipv4(lease.public_ip),
            public_ipv6=None if lease.public_ipv6 is None else parse_ipv6(lease.public_ipv6),
            backend_type=intern(lease.backend_type or ""),
            backend_data=data,
            vtep=vtep,
            wireguard=wireguard,
            backend_v6_data=data_v6,
            vtep_v6=vtep_v6,
            wireguard_v6=wireguard_v6,
            owner=lease.ours.owner if lease.ours else None,
            host_name=_host_name(lease.ours.host) if lease.ours else None,
            port=lease.ours.port if lease.ours else None,
            reads=tuple(sorted(lease.ours.reads)) if lease.ours else (),
            signing_key=_decoded(lease.ours.key, KEY_BYTES) if lease.ours else None,
            counter=_counter(lease.ours.counter) if lease.ours else None,
            signature=_decoded(lease.ours.signature, SIGNATURE_BYTES) if lease.ours else None,
            also=_parts(lease.ours.also) if lease.ours and lease.ours.also else (),
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a lease: {error}", hint=_HINT) from error


def format_lease_attributes(attributes: LeaseAttributes) -> bytes:
    """Return the value of a lease: the original's keys and, if the lease has an owner, the keys of
    pyflannel.
    """
    owner, ipv6 = attributes.owner, attributes.public_ipv6
    data = _data_text(attributes.backend_data, attributes.vtep)
    data_v6 = _data_text(attributes.backend_v6_data, attributes.vtep_v6)
    lease = _LeaseValue(
        public_ip=format_public_ip(attributes),
        # The original writes and reads an IPv4-mapped address as IPv4.
        public_ipv6=None if ipv6 is None else str(ipv6.ipv4_mapped or ipv6),
        backend_type=attributes.backend_type or UNSET,
        backend_data=UNSET if data is None else Raw(data),
        backend_v6_data=UNSET if data_v6 is None else Raw(data_v6),
    )
    if owner is not None:
        lease.ours = _Ours(
            owner=owner,
            host=attributes.host_name,
            port=attributes.port,
            reads=attributes.reads,
            key=_base64(attributes.signing_key),
            counter=attributes.counter,
            signature=_base64(attributes.signature),
            also=format_parts(attributes.also) if attributes.also else UNSET,
        )
    return escape(msgspec.json.encode(lease).decode()).encode()


def format_public_ip(attributes: LeaseAttributes) -> str:
    """Return the IPv4 address of the holder; 0.0.0.0 without an IPv4 address, as the original writes it."""
    return str(attributes.public_ip if attributes.public_ip.version == 4 else NO_ADDRESS)


def signed_form(value: bytes) -> bytes:
    """Return the content of a lease without its signature, in one form for all spellings and orders.

    The outermost keys are in lower case. Keys that this version does not know remain, so that it can check
    the signatures of later versions. The attributes of a lease depend only on this content.

    Raises:
        WireError: the value is not a JSON object, or too long.
    """
    try:
        _check_length(value)
        found = {key: _compact(member) for key, member in _last_of_each(value).items()}
        if found.get("pyflannel", "").startswith("{"):
            ours = _MEMBERS.decode(found["pyflannel"])
            ours.pop("Signature", None)
            found["pyflannel"] = msgspec.json.encode(ours, order="sorted").decode()
        return msgspec.json.encode({key: Raw(member) for key, member in found.items()}, order="sorted")
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a lease: {error}", hint=_HINT) from error


def parse_claim(value: bytes, subnet: IPv4Network, revision: int) -> Claim:
    """Return the claim on `subnet` that was written at `revision`.

    Raises:
        WireError: the value is not a claim.
    """
    try:
        _check_length(value)
        claim = _CLAIM.decode(value)
        public_ip = parse_ipv4(claim.public_ip)
    except (ValueError, RecursionError) as error:
        raise WireError(
            f"not a claim: {error}",
            hint="Delete the key. Hosts write claims again when necessary.",
        ) from error
    return Claim(
        subnet=subnet,
        owner=claim.owner,
        public_ip=public_ip,
        host_name=_host_name(claim.host),
        held_s=claim.held,
        revision=revision,
    )


def format_claim(claim: Claim) -> bytes:
    """Return the value of a claim. The key contains the subnet, and the store knows the revision."""
    return msgspec.json.encode(
        _ClaimValue(
            owner=claim.owner, public_ip=str(claim.public_ip), host=claim.host_name, held=claim.held_s
        )
    )


def _host_name(value: object) -> str | None:
    return value if isinstance(value, str) and is_host_name(value) else None


def _decoded(value: object, count: int) -> bytes | None:
    """Return this number of bytes from base64; None for any other text."""
    try:
        data = a2b_base64(value, strict_mode=True) if isinstance(value, str) else b""
    except ValueError:
        return None
    return data if len(data) == count else None


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b2a_base64(data, newline=False).decode()


def _counter(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= LARGEST_COUNTER else None


def _check_length(value: bytes) -> None:
    if len(value) > LONGEST_LEASE:
        raise ValueError(f"longer than {LONGEST_LEASE} bytes")


def _decode(value: bytes) -> _LeaseValue:
    """Return a lease. A lease usually contains only known keys; such a lease is decoded in one step."""
    try:
        return _LEASE.decode(value)
    except msgspec.ValidationError:
        return _LEASE.decode(msgspec.json.encode(_known_members(value)))


def _backend_data(
    data: Raw | UnsetType, backend_type: object
) -> tuple[str | None, Vtep | None, WireguardData | None]:
    """Return the data of the backend: as a VTEP if `format_backend_data` wrote the data, else as text."""
    if not data:
        return None, None, None
    if backend_type != "vxlan":
        text = _compact(data)
        return text, None, parse_wireguard(text) if backend_type == "wireguard" else None
    usual = _usual_vtep(bytes(data).decode(errors="replace"))
    if usual is not None:
        return None, usual, None
    text = _compact(data)
    return text, parse_vtep(text), None


def _data_text(data: str | None, vtep: Vtep | None) -> str | None:
    return format_backend_data(vtep) if data is None and vtep is not None else data


def _parts(data: Raw) -> tuple[BackendPart, ...]:
    """Return the previous backends of a holder; an empty tuple if they have another form."""
    try:
        return tuple(_part(one) for one in _PARTS.decode(data)[:MOST_PREVIOUS])
    except (ValueError, RecursionError):
        return ()


def _part(one: _Part) -> BackendPart:
    data, vtep, wireguard = _backend_data(one.backend_data, one.backend_type)
    data_v6, vtep_v6, wireguard_v6 = _backend_data(one.backend_v6_data, one.backend_type)
    return BackendPart(
        backend_type=intern(one.backend_type),
        backend_data=data,
        backend_v6_data=data_v6,
        port=one.port,
        vtep=vtep,
        vtep_v6=vtep_v6,
        wireguard=wireguard,
        wireguard_v6=wireguard_v6,
    )


def format_parts(parts: tuple[BackendPart, ...]) -> Raw:
    """Return the previous backends of a holder, in the form in which its lease contains them."""
    values = []
    for part in parts:
        text, text_v6 = (
            _data_text(part.backend_data, part.vtep),
            _data_text(part.backend_v6_data, part.vtep_v6),
        )
        values.append(
            _Part(
                backend_type=part.backend_type,
                backend_data=UNSET if text is None else Raw(text),
                backend_v6_data=UNSET if text_v6 is None else Raw(text_v6),
                port=part.port,
            )
        )
    return Raw(msgspec.json.encode(values))


def _known_members(value: bytes) -> dict[str, Raw]:
    """Return the known members of a lease with their usual names; the object of pyflannel is included only
    if it is valid.
    """
    known = {_LEASE_KEYS.get(key, ""): member for key, member in _last_of_each(value).items()}
    known.pop("", None)
    try:
        _OURS.decode(known.get("Pyflannel", b""))
    except (ValueError, RecursionError):
        known.pop("Pyflannel", None)
    return known


def _last_of_each(value: bytes | str) -> dict[str, Raw]:
    """Return the members of an object by key, in lower case. If a key occurs in several spellings, the last
    spelling applies.

    Raises:
        ValueError: the text is not an object.
        RecursionError: the object is nested too deeply.
    """
    found = _MEMBERS.decode(value)
    by_key = {fold(key): member for key, member in found.items()}
    if len(by_key) == len(found):
        return by_key
    # The decoder does not keep the order: a repeated key keeps its first place.
    by_key.clear()
    for key, member in members(value if isinstance(value, str) else value.decode(errors="replace")):
        if member != "null" or fold(key) not in _NULL_KEEPS:
            by_key[fold(key)] = Raw(member)
    return by_key


_NULL_KEEPS = {"backendtype", "vni"}
"""Keys of simple values. If the value is null, Go keeps the previous value of these keys, and clears the
value of other keys."""


def _compact(data: Raw) -> str:
    """Return the JSON of the backend in the form in which it is written, so that leases with equal content
    are equal.
    """
    return escape(msgspec.json.format(bytes(data), indent=-1).decode(errors="replace"))
