"""Addresses as text, read as the original reads them (Go, net.ParseIP): one parser for both families.

IPv4 text and the IPv6 text that maps it, `10.3.1.0` and `::ffff:10.3.1.0`, are the same address.
"""

import re
from ipaddress import IPv4Address, IPv6Address

_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DOTTED = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")


def parse_ipv4(text: str) -> IPv4Address:
    """Return the IPv4 address.

    Raises:
        ValueError: the text is no address, or an IPv6 address that maps none.
    """
    if ":" not in text:
        return parse_dotted(text)
    mapped = parse_ipv6(text).ipv4_mapped
    if mapped is None:
        raise ValueError(f"{text!r} is an IPv6 address, not an IPv4 one")
    return mapped


def parse_ipv6(text: str) -> IPv6Address:
    """Return the IPv6 address; of IPv4 text, the one that maps it.

    Raises:
        ValueError: the text is no address, or has a zone (`%eth0`), which means nothing to another host.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return IPv6Address(text if ":" in text else f"::ffff:{parse_dotted(text)}")


def parse_dotted(text: str) -> IPv4Address:
    """Return the IPv4 address of dotted text alone: the library's answer, several times as fast.

    Whoever follows a network reads one with each lease.

    Raises:
        ValueError: the text is no address.
    """
    found = _DOTTED.fullmatch(text)
    if found is None:
        return IPv4Address(text)  # which says what is wrong with it
    first, second, third, fourth = found.groups()
    return IPv4Address(int(first) << 24 | int(second) << 16 | int(third) << 8 | int(fourth))
