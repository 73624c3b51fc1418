"""The MAC address of a host's VTEP: the one that its lease names already, or else made from who the host is.

So a device that was deleted and made again, one after a restart, or one that the original made has the
address that the peers know. The original draws one for each device, and all peers have to learn it anew.
"""

import hashlib
from functools import lru_cache
from typing import TypeGuard

from pyflannel.model.lease import Vtep

_LENGTH = 6
_LOCAL = 0x02
_GROUP = 0x01
"""Bits of the first octet: given by nobody's registry; not a single device's (IEEE 802, clause 8.2)."""

_LABEL = b"pyflannel VTEP\0"


@lru_cache(maxsize=16)  # asked for several times a peer
def vtep_of(owner: str, vni: int, prefix: bytes = b"") -> Vtep:
    """Return the VTEP that `owner` has of its own."""
    return Vtep(mac=vtep_mac(owner, prefix), vni=vni, mac_prefix=prefix)


def vtep_mac(owner: str, prefix: bytes = b"") -> str:
    """Return the MAC address of `owner`: lower case with colons, locally administered, of a single device.

    `prefix`, where given, is how it begins instead, whatever its bits say.
    """
    digest = bytearray(hashlib.sha256(_LABEL + owner.encode(errors="surrogateescape")).digest()[:_LENGTH])
    digest[0] = (digest[0] | _LOCAL) & ~_GROUP & 0xFF
    digest[: len(prefix)] = prefix
    return digest.hex(":")


def may_stay(standing: Vtep | None, wanted: Vtep) -> TypeGuard[Vtep]:
    """Return whether the VTEP that a lease of ours names already can go on being ours."""
    return standing is not None and standing.vni == wanted.vni and _fits(standing.mac, wanted.mac_prefix)


@lru_cache(maxsize=16)
def _fits(mac: str, prefix: bytes) -> bool:
    return is_of_one_device(mac) and bytes.fromhex(mac.replace(":", "")).startswith(prefix)


def is_of_one_device(mac: str) -> bool:
    """Return whether frames can be sent to this address alone: it is no group's, and not all zeros.

    In a vxlan device's FDB the address of all zeros is the way to everybody whom it does not know.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    return any(octets) and not octets[0] & _GROUP
