"""subnet.env: what a host tells Docker, CNI and people about its lease.

One `NAME=value` a line, without quotes or blanks. Written by us in flannel's order, read in dotenv's
wider syntax: comments, `export`, quotes, blanks around the sign, CRLF.

Source: flannel 0.28.9, its subnet file.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network

from pyflannel.errors import WireError
from pyflannel.model.network_config import NetworkConfig

_LINE = re.compile(
    r"""
    \s* (?: export \s+ )? (?P<key> [\w.]+ ) \s* [=:] \s*
    (?: '(?P<single> [^']* )' | "(?P<double> (?: [^"\\] | \\. )* )" | (?P<plain> [^'"\#\s] .*? )? )
    \s* (?: (?: (?<=\s) | (?<=['"=:]) ) \#.* )?
    """,
    re.VERBOSE,
)


def format_subnet_env(
    *,
    config: NetworkConfig,
    subnet: IPv4Network | None,
    ipv6_subnet: IPv6Network | None = None,
    mtu: int,
    ip_masq: bool,
) -> str:
    """Return the text of subnet.env; each family's lines are there when the config enables it.

    FLANNEL_SUBNET is the first address after the base of our subnet, the one meant for the bridge.
    """
    lines = []
    if config.enable_ipv4 and subnet is not None:
        lines += [f"FLANNEL_NETWORK={config.network}", f"FLANNEL_SUBNET={_bridge_address(subnet)}"]
    if config.enable_ipv6 and ipv6_subnet is not None:
        lines += [
            f"FLANNEL_IPV6_NETWORK={config.ipv6_network}",
            f"FLANNEL_IPV6_SUBNET={_bridge_address(ipv6_subnet)}",
        ]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "".join(f"{line}\n" for line in lines)


def parse_subnet_env(text: str) -> Mapping[str, str]:
    """Return the values by name; the last of each name wins, nothing is expanded.

    Raises:
        WireError: a line is neither a comment nor `NAME=value`; the message quotes it.
    """
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise WireError(f"line {number}: {line!r} is not NAME=value", hint="Correct or delete the file.")
        values[found["key"]] = _value(found)
    return values


def previous_subnet(text: str) -> IPv4Network | None:
    """Return the subnet that an earlier run wrote, or None when the file names not exactly one.

    Raises:
        WireError: a line, or the value of FLANNEL_SUBNET, is malformed.
    """
    value = parse_subnet_env(text).get("FLANNEL_SUBNET")
    if value is None or "," in value:
        return None
    _, _, length = value.partition("/")
    try:
        if not length.isdecimal():
            raise ValueError("no prefix length")
        return IPv4Network(value, strict=False)
    except ValueError as error:
        raise WireError(
            f"FLANNEL_SUBNET={value} is not an IPv4 address with a prefix length: {error}",
            hint="Correct or delete the file.",
        ) from error


def _bridge_address(subnet: IPv4Network | IPv6Network) -> str:
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"


def _value(found: re.Match[str]) -> str:
    if found["double"] is not None:
        return re.sub(r"\\(.)", r"\1", found["double"])
    return str(found["single"] or found["plain"] or "")
