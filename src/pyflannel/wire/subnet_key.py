"""The last element of a lease's key: `10.5.52.0-24`, or `10.5.52.0-24&fd00:5:0:34::-64` with both families.

Source: flannel 0.28.9. There is no form for IPv6 alone.
"""

import re
from ipaddress import IPv4Network, IPv6Network

from pyflannel.errors import WireError
from pyflannel.wire.address_text import parse_dotted

# The original's expression is open at the left, so that 10.5.52.0.1-24 names 5.52.0.1/24; ours is not.
_LENGTH = "(0|[1-9][0-9]{0,2})"
_KEY = re.compile(f"([0-9.]+)-{_LENGTH}(?:&([0-9a-f:]+)-{_LENGTH})?")

# The original keeps an IPv4 length in 5 bits and an IPv6 length in 7: a single address has no key.
_LONGEST_IPV4 = 31
_LONGEST_IPV6 = 127


def parse_subnet_key(text: str) -> tuple[IPv4Network, IPv6Network | None]:
    """Return the subnets that a key names.

    A subnet has one key, the one that `format_subnet_key` writes. Addresses with host bits and lengths with
    leading zeros, which the original reads, would be second keys of a lease that has another already.
    IPv4-mapped IPv6 is refused because the original writes it as IPv4 and cannot read that back.

    Raises:
        WireError: the text is no such key.
    """
    found = _KEY.fullmatch(text)
    if found is None:
        raise _not_a_key(text, "it has another form")
    address, length, ipv6_address, ipv6_length = found.groups()
    try:
        subnet = _ipv4_subnet(address, length)
        ipv6_subnet = _ipv6_subnet(ipv6_address, ipv6_length) if ipv6_address else None
    except ValueError as error:
        raise _not_a_key(text, str(error)) from error
    return subnet, ipv6_subnet


def format_subnet_key(subnet: IPv4Network, ipv6_subnet: IPv6Network | None = None) -> str:
    """Return the key of a lease on these subnets."""
    key = f"{subnet.network_address}-{subnet.prefixlen}"
    if ipv6_subnet is not None:
        key += f"&{ipv6_subnet.network_address}-{ipv6_subnet.prefixlen}"
    return key


def _ipv4_subnet(address: str, length: str) -> IPv4Network:
    subnet = IPv4Network((int(parse_dotted(address)), int(length)))
    if subnet.prefixlen > _LONGEST_IPV4:
        raise ValueError(f"{subnet} is a single address")
    return subnet


def _ipv6_subnet(address: str, length: str) -> IPv6Network:
    subnet = IPv6Network(f"{address}/{length}")
    if subnet.prefixlen > _LONGEST_IPV6:
        raise ValueError(f"{subnet} is a single address")
    if subnet.network_address.ipv4_mapped is not None:
        raise ValueError(f"{subnet} is IPv4-mapped")
    if str(subnet.network_address) != address:
        raise ValueError(f"{address} is written {subnet.network_address}")
    return subnet


def _not_a_key(text: str, why: str) -> WireError:
    return WireError(
        f"not the key of a subnet: {text!r}: {why}",
        hint="Delete the key; that of a lease is base address, dash, prefix length, as in 10.5.52.0-24.",
    )
