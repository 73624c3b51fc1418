"""What a backend publishes in its lease: `BackendData` as JSON, and back.

    {"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}

Source: flannel 0.28.9. Release 0.6 writes no VNI.
"""

import re

import msgspec

from pyflannel.model.backend_data import BackendData, Vtep
from pyflannel.wire.json_text import fold

_MAC = re.compile(
    r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}",
    re.IGNORECASE | re.ASCII,
)
"""The spellings of six octets that the original reads (Go, net.ParseMAC)."""

_USUAL = re.compile(r'\{"VNI":([1-9][0-9]{0,8}),"VtepMAC":"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"\}', re.ASCII)
"""What nearly all leases say, which is read several times as fast: ten thousand come at a start."""

_SEPARATORS = re.compile(r"[:.-]")
_VNIS = range(2**32)
"""What the original's readers take."""


def format_backend_data(data: BackendData) -> str:
    """Return what a lease says of its host's VTEP, keys in the original's order."""
    vni = "" if data.vni is None else f'"VNI":{data.vni},'
    return f'{{{vni}"VtepMAC":"{data.mac}"}}'


def parse_vtep(text: str) -> Vtep | None:
    """Return the VTEP that a vxlan lease publishes; None when the text says of none.

    Keys are read in any case and unknown ones passed over. A bad text takes its peer alone out, so that it is
    no error of the lease.
    """
    if (usual := _USUAL.fullmatch(text)) is not None:
        return Vtep(mac=usual[2], vni=int(usual[1]))
    try:
        members = msgspec.json.decode(text, type=dict[str, object])
    except (ValueError, RecursionError):
        return None
    by_key = {fold(key): value for key, value in members.items()}
    mac, vni = by_key.get("vtepmac"), by_key.get("vni")
    if not isinstance(mac, str) or not _MAC.fullmatch(mac):
        return None
    if vni is not None and (type(vni) is not int or vni not in _VNIS):
        return None
    return Vtep(mac=bytes.fromhex(_SEPARATORS.sub("", mac)).hex(":"), vni=vni)
