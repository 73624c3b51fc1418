"""Each family of a network, as a network with this family alone."""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from pyflannel.model.item import Item
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.link import Link
from pyflannel.model.network_config import Family, IpNetwork
from pyflannel.model.route import Route
from pyflannel.model.status import RefusedPeer, Status, UnderlayStatus


def families_of(status: Status) -> tuple[Family, ...]:
    """Return the families that this host carries, the first family of its network first; (4,) if unknown."""
    network, lease, underlay = status.network, status.lease, status.underlay
    first = _first_family(status)
    if underlay is not None and underlay.ipv6_address is None:
        return (first,)
    has_ipv6 = (network is not None and network.ipv6_network is not None) or (
        lease is not None and lease.ipv6_subnet is not None
    )
    return (first, 6) if first == 4 and has_ipv6 else (first,)


def _first_family(status: Status) -> Family:
    network, lease = status.network, status.lease
    if lease is not None and lease.subnet is not None:
        return lease.subnet.version
    is_ipv6_alone = network is not None and network.network is None and network.ipv6_network is not None
    return 6 if is_ipv6_alone else 4


def status_in(status: Status, family: Family, leases: Iterable[LeaseEntry]) -> Status:
    """Return the status as in a network with this family alone.

    `leases`: the leases of all hosts, with both families.
    """
    first = _first_family(status)
    if family == first:
        paths = tuple(one for one in status.path_mtus if one.ipv6_subnet in (None, one.subnet))
        return replace(status, path_mtus=paths)
    if family == 4:
        return replace(status, network=None, lease=None, underlay=None, backend=None)
    network, lease, backend = status.network, status.lease, status.backend
    if backend is not None:
        backend = replace(
            backend, link=backend.ipv6_link or backend.link, port=backend.ipv6_port or backend.port
        )
    return replace(
        status,
        network=None if network is None else replace(network, network=None),
        lease=None if lease is None else replace(lease, subnet=lease.ipv6_subnet),
        underlay=_ipv6_underlay(status),
        backend=backend,
        refused_peers=tuple(_ipv6_refused(status.refused_peers, leases)),
        path_mtus=tuple(
            replace(one, subnet=one.ipv6_subnet) for one in status.path_mtus if one.ipv6_subnet is not None
        ),
    )


def network_of(status: Status, family: Family) -> IpNetwork | None:
    """Return the range of the network in a family; None if it is unknown, or the network lacks the family."""
    network = status.network
    if network is None:
        return None
    return network.network if family == 4 else network.ipv6_network


def _ipv6_underlay(status: Status) -> UnderlayStatus | None:
    underlay = status.underlay
    if underlay is None or underlay.ipv6_address is None:
        return None
    return replace(
        underlay,
        link=underlay.ipv6_link or underlay.link,
        address=underlay.ipv6_address,
        public_ip=underlay.public_ipv6 or underlay.ipv6_address,
        prefix_length=None,
    )


def _ipv6_refused(refused: Sequence[RefusedPeer], leases: Iterable[LeaseEntry]) -> Iterable[RefusedPeer]:
    """Yield the refused peers that have an IPv6 subnet."""
    subnets = {one.subnet: one.ipv6_subnet for one in leases}
    for peer in refused:
        if (subnet := subnets.get(peer.subnet)) is not None:
            yield replace(peer, subnet=subnet)


def leases_in(leases: Iterable[LeaseEntry], family: Family) -> list[LeaseEntry]:
    """Return the leases with a part in this family, as in a network with this family alone."""
    return [found for one in leases if (found := one.in_family(family)) is not None]


def items_in(items: Iterable[Item], family: Family, *, is_first: bool) -> tuple[Item, ...]:
    """Return the objects of a family. Objects of the whole host belong to the first family."""
    return tuple(one for one in items if _family_of(one) == family or (is_first and _family_of(one) is None))


def _family_of(item: Item) -> Family | None:
    match item:
        case Route():
            return item.destination.version
        case Link() if item.vxlan is not None and item.vxlan.local is not None:
            return item.vxlan.local.version
        case _:
            return None
