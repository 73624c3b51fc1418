"""MAC addresses in netlink: six octets, where people write them in hexadecimal."""

from pyflannel.errors import WireError


def parse_mac(octets: bytes) -> str:
    """Return octets in lower-case hexadecimal, with colons; "" for none."""
    return octets.hex(":") if octets else ""


def mac_octets(mac: str) -> bytes:
    """Return the six octets of a MAC address.

    Raises:
        WireError: it is none.
    """
    try:
        octets = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        octets = b""
    if len(octets) != 6:
        raise WireError(
            f"a MAC address has six octets in hexadecimal, not {mac!r}",
            hint="Look at the peer's lease: its VtepMAC is wrong.",
        )
    return octets
