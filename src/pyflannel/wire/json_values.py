"""Reads JSON text and single values in the same way as the original (Go, encoding/json, net.ParseIP)."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)

from pyflannel.errors import ConfigError

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TO_ESCAPE = re.compile("[<>&\u2028\u2029]")

ADDRESSES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
"""Types that documents of pyflannel contain as a string."""


def address_of_text(kind: type, text: object) -> object:
    """Return an address from its text: the `dec_hook` of msgspec, which expects this error for other types.

    Raises:
        NotImplementedError: the type is not an address type.
        ValueError: the value is not the text of an address.
    """
    # imported here, because the CNI plugin does not need these modules
    from pyflannel.model.network_config import AnyAddress, AnyNetwork

    either: Mapping[object, Callable[[str], object]] = {AnyAddress: ip_address, AnyNetwork: ip_network}
    if kind not in either and kind not in ADDRESSES:
        raise NotImplementedError(kind.__name__)
    if not isinstance(text, str):
        raise ValueError("an address is a string")
    return either.get(kind, kind)(text)


def fold(key: str) -> str:
    """Return the form of a key that is the same for all its spellings, in upper and lower case.

    The names of known keys are ASCII. Under Unicode simple folding, two other characters match ASCII letters:
    U+017F (long s) matches s, U+212A (the Kelvin sign) matches k.
    """
    return key.replace("\u017f", "s").lower()


def escape(document: str) -> str:
    """Return a JSON document with <, >, & and the line separators escaped. Only strings can contain these
    characters.
    """
    return _TO_ESCAPE.sub(lambda found: _ESCAPES[found.group()], document)


LONGEST = 64 * 1024
"""Maximum length of a network config in characters. A large network config has a thousand characters."""

_MOST_KEYS = 1000
"""Maximum number of keys of a network config, including the keys of inner objects, and repeated keys."""

_DEEPEST = 32
"""Maximum number of objects and arrays around a value."""


def decode(text: str) -> object:
    """Return the document in the text. If a key occurs twice, its last position and its last value apply.

    Raises:
        ValueError: the text is not JSON, or contains a number that is too large.
        ConfigError: the document has too many keys, or is nested too deeply.
    """
    keys = 0

    def read_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal keys
        keys += len(pairs)
        if keys > _MOST_KEYS:
            raise beyond_bound(f"has more than {_MOST_KEYS} keys")
        return _last_of_each(pairs)

    try:
        document = json.loads(
            text, object_pairs_hook=read_object, parse_float=_finite, parse_constant=_finite
        )
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(document)
    # JSON can contain half of a surrogate pair, which no output can encode. The original reads half of a pair
    # as U+FFFD.
    return json.loads(_LONE_SURROGATE.sub("\ufffd", json.dumps(document, ensure_ascii=False)))


def beyond_bound(how: str) -> ConfigError:
    """Return the error for a network config that exceeds a limit; the error names the limit."""
    return ConfigError(f"the network config {how}", hint="Remove the keys that flannel does not know.")


def _check_depth(document: object) -> None:
    level = _inner(document)
    for _ in range(_DEEPEST - 1):
        level = [inner for value in level for inner in _inner(value)]
    if level:
        raise _too_deep()


def _inner(value: object) -> list[object]:
    """Return the objects and arrays directly inside a value."""
    match value:
        case dict():
            return [inner for inner in value.values() if isinstance(inner, dict | list)]
        case list():
            return [inner for inner in value if isinstance(inner, dict | list)]
        case _:
            return []


def _too_deep() -> ConfigError:
    return beyond_bound(f"is nested more than {_DEEPEST} deep")


def members(text: str) -> Iterator[tuple[str, str]]:
    """Yield each member of the object in the text: its key, and its value as text.

    `decode` must accept the text and return an object.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, _skip(text, 0) + len("{"))
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + len(":"))
        _, at = decoder.raw_decode(text, start)
        yield key, text[start:at]
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + len(","))


def _skip(text: str, at: int) -> int:
    """Return the offset at which the white space that begins at `at` ends."""
    found = _WHITE_SPACE.match(text, at)
    return found.end() if found else at


def _last_of_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    last: dict[str, object] = {}
    for key, value in pairs:
        # Move the key to the end, because the spelling that was read last must also be the last in order.
        last.pop(key, None)
        last[key] = value
    return last


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number")
    return number


# Addresses in text form, with the syntax of the original (Go, net.ParseIP): one parser for both families.
#
# An IPv4 address and its IPv4-mapped IPv6 form, `10.3.1.0` and `::ffff:10.3.1.0`, are the same address.

_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DOTTED = re.compile(rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}")


def parse_ipv4(text: str) -> IPv4Address:
    """Return the IPv4 address.

    Raises:
        ValueError: the text is not an address, or an IPv6 address that is not IPv4-mapped.
    """
    if ":" not in text:
        return parse_dotted(text)
    mapped = parse_ipv6(text).ipv4_mapped
    if mapped is None:
        raise ValueError(f"{text!r} is an IPv6 address, not an IPv4 address")
    return mapped


def parse_ipv6(text: str) -> IPv6Address:
    """Return the IPv6 address; for IPv4 text, the IPv4-mapped IPv6 address.

    Raises:
        ValueError: the text is not an address, or has a zone (`%eth0`), which is valid only on one host.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    return IPv6Address(text if ":" in text else f"::ffff:{parse_dotted(text)}")


def parse_dotted(text: str) -> IPv4Address:
    """Return the IPv4 address of dotted text only. The result is the same as that of the library, but this
    function is several times as fast.

    The speed matters because each lease contains an address in dotted form.

    Raises:
        ValueError: the text is not an address.
    """
    found = _DOTTED.fullmatch(text)
    if found is None:
        return IPv4Address(text)  # the error of this function names the reason
    first, second, third, fourth = found.groups()
    return IPv4Address(int(first) << 24 | int(second) << 16 | int(third) << 8 | int(fourth))


# Single values of the network config, converted from JSON text.
#
# An address or a network is the text between the quotes. Escapes are not decoded, as in the original. If a
# value is not a string, its JSON text is used, and is then an invalid address.
#
# Source: flannel 0.28.9. Messages contain the texts of the original, so that a search finds them.

_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,8}")
_CIDR = re.compile(r"([0-9A-Fa-f.:]+)/([0-9]{1,9})")

_LONGEST_SHOWN = 80
"""Maximum number of characters of an invalid value in a message."""


def boolean(key: str, raw: str, if_null: bool) -> bool:
    """Return True if the value is the boolean true."""
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
    """Return a prefix length, without a check against a network."""
    if raw == "null":
        return if_null
    if not _PREFIX_LENGTH.fullmatch(raw):
        hint = f"Write {key} as a whole number without quotes, for example 24 for /24."
        raise bad_value("not a prefix length", key, raw, hint=hint)
    return int(raw)


def ipv4_network(key: str, raw: str) -> IPv4Network | None:
    """Return a network without host bits; None for 0.0.0.0/0, which counts as absent."""
    hint = f'Write {key} as an IPv4 network, for example "10.3.0.0/16".'
    try:
        network = _network(raw)
    except ValueError as error:
        raise _bad_cidr(key, raw, hint) from error
    if not isinstance(network, IPv4Network):
        raise bad_value("invalid IPv4 CIDR format", key, raw, hint=hint)
    return None if network == IPv4Network("0.0.0.0/0") else network


def ipv6_network(key: str, raw: str) -> IPv6Network | None:
    """Return a network without host bits; None for ::/0, which counts as absent.

    A network of IPv4-mapped addresses is refused: the original writes the subnets of such a network as IPv4
    into keys, and cannot read such keys.
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
    """Return an address; None for 0.0.0.0, which counts as absent."""
    hint = f'Write {key} as an IPv4 address, for example "10.3.1.0", or omit the key.'
    try:
        address = parse_ipv6(_unquoted(raw)).ipv4_mapped
    except ValueError as error:
        raise bad_value("invalid IP address format", key, raw, hint=hint) from error
    if address is None:
        raise bad_value("invalid IPv4 address format", key, raw, hint=hint)
    return address if int(address) else None


def ipv6_address(key: str, raw: str) -> IPv6Address | None:
    """Return an address; None for null and for ::, which count as absent."""
    if raw == "null":
        return None
    try:
        return parse_ipv6(_unquoted(raw))
    except ValueError as error:
        hint = f'Write {key} as an IPv6 address, for example "fd00:3:0:1::", or omit the key.'
        raise bad_value("invalid IP address format", key, raw, hint=hint) from error


def bad_value(what: str, key: str, raw: str, *, hint: str) -> ConfigError:
    """Return the error for an invalid value of a key."""
    return ConfigError(f"{what}: {key}={shown(raw)}", hint=hint)


def shown(raw: str) -> str:
    """Return a value on one line, truncated for the log."""
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
