"""Converts the JSON at the store's `config` key to a checked `NetworkConfig`, and back."""

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.network_config import FAST_PATHS, KEYS, NetworkConfig
from pyflannel.wire.json_values import (
    LONGEST,
    bad_value,
    beyond_bound,
    boolean,
    decode,
    escape,
    fold,
    ipv4_address,
    ipv4_network,
    ipv6_address,
    ipv6_network,
    members,
    prefix_length,
    shown,
)

# The subnets that can be leased: their length, the first and the last, computed and checked.
#
# Source: flannel 0.28.9. The first subnet of a network is not used unless SubnetMin names it.

_FEWEST_BITS = 2
"""Minimum number of bits for the subnets of a network, and for the addresses of a subnet: two bits mean four
subnets or addresses."""


def subnet_range(
    network: IPv4Network | IPv6Network, length: int, first: int, last: int
) -> tuple[int, int, int]:
    """Return the prefix length of a subnet, and the base addresses of the first and the last subnet, as
    numbers.

    0 means that a value is not configured.

    Raises:
        ConfigError: a value is invalid; the message contains the key of the value, with the prefix IPv6 for
            the family IPv6.
    """
    length = _subnet_length(network, length)
    size = 1 << (network.max_prefixlen - length)
    lowest, highest = int(network.network_address), int(network.broadcast_address)
    minimum, maximum = first or lowest + size, last or highest + 1 - size
    _check_bounds(network, length, minimum, maximum)
    return length, minimum, maximum


def _subnet_length(network: IPv4Network | IPv6Network, length: int) -> int:
    """Return the given length. Without a given length, return the default, or a longer length that divides
    the network by four.
    """
    family, usual = ("", 24) if network.version == 4 else ("IPv6", 64)
    longest = network.max_prefixlen - _FEWEST_BITS
    if length > longest:
        raise ConfigError(
            f"{family}SubnetLen must be less than /{longest + 1}: {family}SubnetLen={length}",
            hint=f"Write a {family}SubnetLen of at most {longest}, or omit {family}SubnetLen.",
        )
    if length and length < network.prefixlen + _FEWEST_BITS:
        raise ConfigError(
            "network must be able to accommodate at least four subnets:"
            f" {family}SubnetLen={length} {family}Network={network}",
            hint=f"Write a {family}SubnetLen of {network.prefixlen + _FEWEST_BITS} or more, or omit "
            f"{family}SubnetLen.",
        )
    if length:
        return length
    smallest = longest - _FEWEST_BITS
    if network.prefixlen > smallest:
        name = "network" if network.version == 4 else "IPv6Network"
        raise ConfigError(
            f"{name} is too small. Minimum useful network prefix is /{smallest}: {family}Network={network}",
            hint=f"Write a {family}Network with the prefix length {smallest} or less.",
        )
    return max(usual, network.prefixlen + _FEWEST_BITS)


def _check_bounds(network: IPv4Network | IPv6Network, length: int, minimum: int, maximum: int) -> None:
    family, address = ("", IPv4Address) if network.version == 4 else ("IPv6", IPv6Address)
    bounds = (f"{family}SubnetMin", address(minimum)), (f"{family}SubnetMax", address(maximum))
    for key, bound in bounds:
        if bound not in network:
            raise ConfigError(
                f"{key} is not in the range of the {family}Network: {key}={bound} {family}Network={network}",
                hint=f"Write {key} as the base address of a subnet inside {network}, or omit the key.",
            )
    host_bits = (1 << (network.max_prefixlen - length)) - 1
    for key, bound in bounds:
        if int(bound) & host_bits:
            base = address(int(bound) & ~host_bits)
            raise ConfigError(
                f"{key} is not on a SubnetLen boundary: {bound} {family}SubnetLen={length}",
                hint=f"Write {key} as the base address of a subnet, here {base}.",
            )
    if minimum > maximum:
        raise ConfigError(
            f"{family}SubnetMin is greater than {family}SubnetMax, so there is no subnet to lease:"
            f" {' '.join(f'{key}={bound}' for key, bound in bounds)}",
            hint=f"Write the smaller address as {family}SubnetMin.",
        )


# Converts the JSON at the store's `config` key to a checked `NetworkConfig`, and back.
#
# docs/reference/network-config.md lists every key, default and check.
#
# Source: flannel 0.28.9. Messages contain the texts of the original, so that a search for these texts finds
# pyflannel's messages. The key and the value are appended to the text.


def parse_network_config(text: str | bytes, *, is_assigned: bool = False) -> NetworkConfig:
    """Return the network config, with computed values for all absent keys.

    With `is_assigned`, another program assigns the subnets, so the keys of subnets have no effect.

    Keys match in upper and lower case. Unknown keys are ignored and listed in `unread`. If a key occurs
    twice, the last value applies. A key with the value `null` is treated as absent, except for Network,
    IPv6Network, SubnetMin and SubnetMax.

    The time is linear in the length of the text. Length, number of keys and depth have limits.

    Raises:
        ConfigError: the text is not JSON or exceeds a limit, or a value is invalid; the message contains key
            and value.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if len(text) > LONGEST:
        raise beyond_bound(f"is longer than {LONGEST} characters")
    config = _as_written(text)
    if not (config.enable_ipv4 or config.enable_ipv6):
        raise ConfigError(
            "none defined stack: EnableIPv4=false EnableIPv6=false",
            hint="Omit EnableIPv4, or set EnableIPv6 to true.",
        )
    if config.enable_ipv4:
        config = _with_ipv4_range(config, is_assigned=is_assigned)
    if config.enable_ipv6:
        config = _with_ipv6_range(config, is_assigned=is_assigned)
    return replace(config, is_assigned=True) if is_assigned else config


def format_network_config(config: NetworkConfig) -> str:
    """Return the config with its computed values, as one line of JSON.

    Keys, their order and the form of absent values are the same as in the original. BackendType, which the
    original does not print, is added at the end. `parse_network_config` reads the same config from this line,
    except `unread`.
    """
    document: dict[str, object] = {
        "EnableIPv4": config.enable_ipv4,
        "EnableIPv6": config.enable_ipv6,
        "EnableNFTables": config.enable_nftables,
        "Network": str(config.network or "0.0.0.0/0"),
        "IPv6Network": str(config.ipv6_network or "::/0"),
        "SubnetMin": str(config.subnet_min or "0.0.0.0"),
        "SubnetMax": str(config.subnet_max or "0.0.0.0"),
        "IPv6SubnetMin": None if config.ipv6_subnet_min is None else str(config.ipv6_subnet_min),
        "IPv6SubnetMax": None if config.ipv6_subnet_max is None else str(config.ipv6_subnet_max),
        "SubnetLen": config.subnet_length,
        "IPv6SubnetLen": config.ipv6_subnet_length,
    }
    if config.fast_path != "safe":
        document["FastPath"] = config.fast_path
    if config.backend:
        document["Backend"] = config.backend
    document["BackendType"] = config.backend_type
    return escape(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


# The subnets that can be leased.


def _with_ipv4_range(config: NetworkConfig, *, is_assigned: bool) -> NetworkConfig:
    if config.network is None:
        raise _absent("Network", "10.3.0.0/16")
    if is_assigned:
        return config
    length, first, last = subnet_range(
        config.network, config.subnet_length, int(config.subnet_min or 0), int(config.subnet_max or 0)
    )
    return replace(config, subnet_length=length, subnet_min=IPv4Address(first), subnet_max=IPv4Address(last))


def _with_ipv6_range(config: NetworkConfig, *, is_assigned: bool) -> NetworkConfig:
    if config.ipv6_network is None:
        raise _absent("IPv6Network", "fd00:3::/48")
    if is_assigned:
        return config
    length, first, last = subnet_range(
        config.ipv6_network,
        config.ipv6_subnet_length,
        int(config.ipv6_subnet_min or 0),
        int(config.ipv6_subnet_max or 0),
    )
    return replace(
        config,
        ipv6_subnet_length=length,
        ipv6_subnet_min=IPv6Address(first),
        ipv6_subnet_max=IPv6Address(last),
    )


def _absent(key: str, example: str) -> ConfigError:
    return ConfigError(
        f"please define a correct {key} parameter in the flannel config:"
        f" {key} is absent, or covers all addresses",
        hint=f'Write {key} as a network, for example "{example}".',
    )


# The values that the text of the message contains.


def _as_written(text: str) -> NetworkConfig:
    example = 'Write an object, for example {"Network": "10.3.0.0/16"}.'
    try:
        document = decode(text)
    except ValueError as error:
        raise ConfigError(f"the network config is not JSON: {error}", hint=example) from error
    if document is None:
        return NetworkConfig()
    if not isinstance(document, dict):
        raise ConfigError(f"the network config is not a JSON object: {shown(text)}", hint=example)
    config = NetworkConfig()
    unread: dict[str, None] = {}
    for key, raw in members(text):
        if (name := _unread_name(key, raw)) is None:
            config = _with_member(config, key, raw)
        else:
            unread[name] = None
    return replace(config, unread=tuple(unread))


def _unread_name(key: str, raw: str) -> str | None:
    """Return the name of a key without effect for messages; None for a known key, or a key that may be
    ignored.
    """
    match fold(key):
        case "networks":
            return "Networks" if decode(raw) else None
        case "ipv6networks":
            return "IPv6Networks" if decode(raw) else None
        case folded if folded in _READ:
            return None
        case _:
            return shown(key if key.isprintable() and key else json.dumps(key))


_READ = {fold(key) for key in (*KEYS, "BackendType")}
"""The keys of the network config that this module reads. The function `format_network_config` writes the key
BackendType."""


def _with_member(config: NetworkConfig, key: str, raw: str) -> NetworkConfig:
    match fold(key):
        case "enableipv4":
            return replace(config, enable_ipv4=boolean("EnableIPv4", raw, config.enable_ipv4))
        case "enableipv6":
            return replace(config, enable_ipv6=boolean("EnableIPv6", raw, config.enable_ipv6))
        case "enablenftables":
            return replace(config, enable_nftables=boolean("EnableNFTables", raw, config.enable_nftables))
        case "fastpath":
            return replace(config, fast_path=_fast_path(raw))
        case "network":
            return replace(config, network=ipv4_network("Network", raw))
        case "ipv6network":
            return replace(config, ipv6_network=ipv6_network("IPv6Network", raw))
        case "subnetlen":
            return replace(config, subnet_length=prefix_length("SubnetLen", raw, config.subnet_length))
        case "ipv6subnetlen":
            return replace(
                config, ipv6_subnet_length=prefix_length("IPv6SubnetLen", raw, config.ipv6_subnet_length)
            )
        case "subnetmin":
            return replace(config, subnet_min=ipv4_address("SubnetMin", raw))
        case "subnetmax":
            return replace(config, subnet_max=ipv4_address("SubnetMax", raw))
        case "ipv6subnetmin":
            return replace(config, ipv6_subnet_min=ipv6_address("IPv6SubnetMin", raw))
        case "ipv6subnetmax":
            return replace(config, ipv6_subnet_max=ipv6_address("IPv6SubnetMax", raw))
        case "backend":
            backend = _backend(raw)
            return replace(config, backend=backend, backend_type=_backend_type(backend))
        case _:
            return config


def _fast_path(raw: str) -> str:
    value = decode(raw)
    if value is None:
        return "safe"
    if value not in FAST_PATHS:
        raise bad_value(
            "unknown fast path",
            "FastPath",
            raw,
            hint='Write FastPath as "safe", as "flow" to cache decisions of the firewall, or as "off" to move'
            " all packets through user space.",
        )
    return str(value)


def _backend(raw: str) -> Mapping[str, object]:
    backend = decode(raw)
    if backend is None:
        return {}
    if not isinstance(backend, dict):
        raise bad_value(
            "error decoding Backend property of config: not an object",
            "Backend",
            raw,
            hint='Write Backend as an object, for example {"Type": "udp"}.',
        )
    return backend


def _backend_type(backend: Mapping[str, object]) -> str:
    """Return the type in lower case. The plan checks whether a backend of this type exists."""
    name = ""
    for key, value in backend.items():
        if fold(key) != "type" or value is None:
            continue
        if not isinstance(value, str):
            raise bad_value(
                "error decoding Backend property of config: not a string",
                "Backend.Type",
                json.dumps(value),
                hint='Write Backend.Type as a string, for example "udp".',
            )
        name = value
    if not name:
        raise ConfigError(
            "unknown backend type: Backend has no Backend.Type",
            hint='Set Backend.Type, for example to "udp", or omit Backend.',
        )
    return name.lower()
