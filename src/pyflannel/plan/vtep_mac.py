"""The MAC address of a host's VTEP, made from who the host is.

So a device that was deleted and made again, or one after a restart, has the address that the peers know
already. The original draws one for each device, and all peers have to learn it anew.
"""

import hashlib
from functools import lru_cache

_LENGTH = 6
_LOCAL = 0x02
_GROUP = 0x01
"""Bits of the first octet: given by nobody's registry; not a single device's (IEEE 802, clause 8.2)."""

_LABEL = b"pyflannel VTEP\0"


@lru_cache(maxsize=16)  # asked for once a peer
def vtep_mac(owner: str, prefix: bytes = b"") -> str:
    """Return the MAC address of `owner`: lower case with colons, locally administered, of a single device.

    `prefix`, where given, is how it begins instead, whatever its bits say.
    """
    digest = bytearray(hashlib.sha256(_LABEL + owner.encode(errors="surrogateescape")).digest()[:_LENGTH])
    digest[0] = (digest[0] | _LOCAL) & ~_GROUP & 0xFF
    digest[: len(prefix)] = prefix
    return digest.hex(":")


def is_of_one_device(mac: str) -> bool:
    """Return whether frames can be sent to this address alone: it is no group's, and not all zeros.

    In a vxlan device's FDB the address of all zeros is the way to everybody whom it does not know.
    """
    octets = bytes.fromhex(mac.replace(":", ""))
    return any(octets) and not octets[0] & _GROUP
