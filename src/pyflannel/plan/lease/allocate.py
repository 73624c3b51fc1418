"""Which subnet to take: one of all that are free, each as likely as any other."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.network_config import NetworkConfig


def pick(
    config: NetworkConfig, occupied: Iterable[IPv4Network], draw: Callable[[int], int]
) -> IPv4Network | None:
    """Return a subnet of the config that overlaps none of `occupied`, or None when there is none.

    `draw(n)` gives a number below n. The cost grows with the number of leases, not with the size of the
    network: the free subnets are counted, not listed.
    """
    if config.subnet_min is None or config.subnet_max is None:
        return None
    size = 1 << (32 - config.subnet_length)
    first, count = int(config.subnet_min), (int(config.subnet_max) - int(config.subnet_min)) // size + 1
    taken = _taken(occupied, first, size, count)
    free = count - len(taken)
    if free <= 0:
        return None
    index = _nth_free(taken, draw(free))
    return IPv4Network((IPv4Address(first + index * size), config.subnet_length))


def _taken(occupied: Iterable[IPv4Network], first: int, size: int, count: int) -> list[int]:
    """Return the indexes of the subnets that are not free, in order."""
    indexes: set[int] = set()
    for network in occupied:
        # Not by broadcast_address: each network would keep it for good.
        offset = int(network.network_address) - first
        begin, end = offset // size, (offset + (1 << (32 - network.prefixlen)) - 1) // size
        indexes.update(range(max(begin, 0), min(end, count - 1) + 1))
    return sorted(indexes)


def _nth_free(taken: list[int], nth: int) -> int:
    """Return the index of the nth free subnet: taken[i] has taken[i] - i free ones before it."""
    return nth + bisect_right(range(len(taken)), nth, key=lambda i: taken[i] - i)
