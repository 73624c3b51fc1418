"""The subnets that may be leased: their length, the first and the last, computed and checked.

Source: flannel 0.28.9. The first subnet of a network is left out unless the operator asks for it.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.errors import ConfigError

_FEWEST_BITS = 2
"""Two bits are four: the fewest subnets of a network, and the fewest addresses of a subnet."""


def subnet_range(
    network: IPv4Network | IPv6Network, length: int, first: int, last: int
) -> tuple[int, int, int]:
    """Return the prefix length of a subnet, and the base addresses of the first and the last, as numbers.

    0 stands for a value that the operator left out.

    Raises:
        ConfigError: a value makes no sense; the message names its key, with IPv6 before it for that family.
    """
    length = _subnet_length(network, length)
    size = 1 << (network.max_prefixlen - length)
    lowest, highest = int(network.network_address), int(network.broadcast_address)
    minimum, maximum = first or lowest + size, last or highest + 1 - size
    _check_bounds(network, length, minimum, maximum)
    return length, minimum, maximum


def _subnet_length(network: IPv4Network | IPv6Network, length: int) -> int:
    """Return the length given; else the usual one where the network holds four of it; else a quarter."""
    family, usual = ("", 24) if network.version == 4 else ("IPv6", 64)
    longest = network.max_prefixlen - _FEWEST_BITS
    if length > longest:
        raise ConfigError(
            f"{family}SubnetLen must be less than /{longest + 1}: {family}SubnetLen={length}",
            hint=f"Write a {family}SubnetLen of at most {longest}, or leave it out.",
        )
    if length and length < network.prefixlen + _FEWEST_BITS:
        raise ConfigError(
            "network must be able to accommodate at least four subnets:"
            f" {family}SubnetLen={length} {family}Network={network}",
            hint=f"Write a {family}SubnetLen of {network.prefixlen + _FEWEST_BITS} or more, or leave it out.",
        )
    if length:
        return length
    smallest = longest - _FEWEST_BITS
    if network.prefixlen > smallest:
        name = "network" if network.version == 4 else "IPv6Network"
        raise ConfigError(
            f"{name} is too small. Minimum useful network prefix is /{smallest}: {family}Network={network}",
            hint=f"Widen {family}Network to /{smallest} or a shorter prefix.",
        )
    return max(usual, network.prefixlen + _FEWEST_BITS)


def _check_bounds(network: IPv4Network | IPv6Network, length: int, minimum: int, maximum: int) -> None:
    family, address = ("", IPv4Address) if network.version == 4 else ("IPv6", IPv6Address)
    bounds = (f"{family}SubnetMin", address(minimum)), (f"{family}SubnetMax", address(maximum))
    for key, bound in bounds:
        if bound not in network:
            raise ConfigError(
                f"{key} is not in the range of the {family}Network: {key}={bound} {family}Network={network}",
                hint=f"Write {key} as the base address of a subnet inside {network}, or leave it out.",
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
            f"{family}SubnetMin is greater than {family}SubnetMax, so that there is no subnet to lease:"
            f" {' '.join(f'{key}={bound}' for key, bound in bounds)}",
            hint=f"Write the smaller address as {family}SubnetMin.",
        )
