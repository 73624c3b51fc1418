"""IP addresses in netlink: a family number and octets in network order."""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from pyflannel.errors import WireError

INET = 2
INET6 = 10
"""Address families of Linux (linux/socket.h)."""

IpValue = IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | IPv4Network | IPv6Network


def family_of(value: IpValue) -> int:
    """Return the family number of an address or a prefix."""
    return INET if value.version == 4 else INET6


def parse_address(octets: bytes) -> IPv4Address | IPv6Address:
    """Return the address of 4 or 16 octets.

    Raises:
        WireError: another number of octets.
    """
    if len(octets) == 4:
        return IPv4Address(int.from_bytes(octets, "big"))
    if len(octets) == 16:
        return IPv6Address(int.from_bytes(octets, "big"))
    raise WireError(
        f"an IP address has 4 or 16 octets, not {len(octets)}",
        hint="The kernel speaks another form of netlink: report its version.",
    )


def parse_interface(octets: bytes, length: int) -> IPv4Interface | IPv6Interface:
    """Return the address of 4 or 16 octets with its prefix length.

    Raises:
        WireError: another number of octets, or a length beyond the address.
    """
    address = parse_address(octets)
    _check_length(address, length)
    if isinstance(address, IPv4Address):
        return IPv4Interface((int(address), length))
    return IPv6Interface((int(address), length))


def parse_prefix(octets: bytes, length: int) -> IPv4Network | IPv6Network:
    """Return the prefix of 4 or 16 octets and a length; what lies beyond the length does not count.

    Raises:
        WireError: another number of octets, or a length beyond the address.
    """
    address = parse_address(octets)
    _check_length(address, length)
    beyond = address.max_prefixlen - length
    base = int(address) >> beyond << beyond
    if isinstance(address, IPv4Address):
        return IPv4Network((base, length))
    return IPv6Network((base, length))


def _check_length(address: IPv4Address | IPv6Address, length: int) -> None:
    if length > address.max_prefixlen:
        raise WireError(
            f"a prefix of {address} has at most {address.max_prefixlen} bits, not {length}",
            hint="The kernel speaks another form of netlink: report its version.",
        )
