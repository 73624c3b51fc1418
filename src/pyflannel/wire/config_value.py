"""One value of the network config: from JSON as it stands in the text to what it means.

Addresses and networks are the text between the quotes, escapes not decoded, as the original reads them; a
value that is no string stands for its own text, which is then a bad address.

Source: flannel 0.28.9. Its texts are kept in messages, so that they can be searched for.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.errors import ConfigError
from pyflannel.wire.address_text import parse_ipv6

_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,8}")
_CIDR = re.compile(r"([0-9A-Fa-f.:]+)/([0-9]{1,9})")

_LONGEST_SHOWN = 80
"""Characters of a bad value that a message repeats."""


def boolean(key: str, raw: str, if_null: bool) -> bool:
    """Return whether the value is true."""
    match raw:
        case "true":
            return True
        case "false":
            return False
        case "null":
            return if_null
        case _:
            raise bad_value("not a boolean", key, raw, hint=f"Write {key} as true or false, without quotes.")


def prefix_length(key: str, raw: str, if_null: int) -> int:
    """Return a prefix length, not yet checked against any network."""
    if raw == "null":
        return if_null
    if not _PREFIX_LENGTH.fullmatch(raw):
        hint = f"Write {key} as a whole number without quotes, for example 24 for /24."
        raise bad_value("not a prefix length", key, raw, hint=hint)
    return int(raw)


def ipv4_network(key: str, raw: str) -> IPv4Network | None:
    """Return a network without host bits; None for 0.0.0.0/0, which is as good as absent."""
    hint = f'Write {key} as an IPv4 network, for example "10.3.0.0/16".'
    try:
        network = _network(raw)
    except ValueError as error:
        raise _bad_cidr(key, raw, hint) from error
    if not isinstance(network, IPv4Network):
        raise bad_value("invalid IPv4 CIDR format", key, raw, hint=hint)
    return None if network == IPv4Network("0.0.0.0/0") else network


def ipv6_network(key: str, raw: str) -> IPv6Network | None:
    """Return a network without host bits; None for ::/0, which is as good as absent.

    A network of IPv4-mapped addresses is refused: the original writes its subnets into keys as IPv4, and does
    not find them again.
    """
    hint = f'Write {key} as an IPv6 network, for example "fd00:3::/48".'
    try:
        network = _network(raw)
    except ValueError as error:
        raise _bad_cidr(key, raw, hint) from error
    if not isinstance(network, IPv6Network) or network.network_address.ipv4_mapped is not None:
        raise bad_value("invalid IPv6 CIDR format", key, raw, hint=hint)
    return None if network == IPv6Network("::/0") else network


def ipv4_address(key: str, raw: str) -> IPv4Address | None:
    """Return an address; None for 0.0.0.0, which is as good as absent."""
    hint = f'Write {key} as an IPv4 address, for example "10.3.1.0", or leave it out.'
    try:
        address = parse_ipv6(_unquoted(raw)).ipv4_mapped
    except ValueError as error:
        raise bad_value("invalid IP address format", key, raw, hint=hint) from error
    if address is None:
        raise bad_value("invalid IPv4 address format", key, raw, hint=hint)
    return address if int(address) else None


def ipv6_address(key: str, raw: str) -> IPv6Address | None:
    """Return an address, None for null; :: is as good as absent."""
    if raw == "null":
        return None
    try:
        return parse_ipv6(_unquoted(raw))
    except ValueError as error:
        hint = f'Write {key} as an IPv6 address, for example "fd00:3:0:1::", or leave it out.'
        raise bad_value("invalid IP address format", key, raw, hint=hint) from error


def bad_value(what: str, key: str, raw: str, *, hint: str) -> ConfigError:
    """Return the error that says what is wrong with the value of a key."""
    return ConfigError(f"{what}: {key}={shown(raw)}", hint=hint)


def shown(raw: str) -> str:
    """Return a value on one line, cut to a length that a log bears."""
    text = " ".join(raw.split())
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _network(raw: str) -> IPv4Network | IPv6Network:
    found = _CIDR.fullmatch(_unquoted(raw))
    if found is None:
        raise ValueError("not an address and a prefix length")
    family = IPv6Network if ":" in found[1] else IPv4Network
    return family(found[0], strict=False)


def _unquoted(raw: str) -> str:
    return raw.strip('"')


def _bad_cidr(key: str, raw: str, hint: str) -> ConfigError:
    return ConfigError(f"invalid CIDR address: {shown(_unquoted(raw))}, for {key}", hint=hint)
