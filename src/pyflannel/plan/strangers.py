"""Explanations of the senders whose tunnel packets the guard drops: their leases, and the remedy."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import BOTH_FAMILIES, IpAddress, IpNetwork
from pyflannel.model.status import StrangerStatus

_ADDRESSES = (
    "Give the containers of that host only addresses in {}: run mk-docker-opts there, then restart Docker."
)


def explain(
    strangers: Sequence[Stranger], leases: Iterable[Lease], own: IpNetwork | None
) -> tuple[StrangerStatus, ...]:
    """Return each sender with its leases and the remedy, ordered by the number of packets, highest first.

    Args:
        strangers: senders that the guard rejected.
        leases: all known leases.
        own: this host's subnet.
    """
    if not strangers:
        return ()
    known = _Known(leases, {stranger.address for stranger in strangers})
    explained = [_explain(stranger, known, own) for stranger in strangers]
    return tuple(sorted(explained, key=_place))


def _place(one: StrangerStatus) -> tuple[object, ...]:
    return -one.packets, one.address.version, one.address, one.reason


class _Known:
    """Leases by their subnets, and by the addresses of the senders, in both families."""

    def __init__(self, leases: Iterable[Lease], addresses: set[IpAddress]) -> None:
        self._by_subnet: dict[IpNetwork, Lease] = {}
        self.by_address: dict[IpAddress, Lease] = {}
        for lease in leases:
            for part in filter(None, map(lease.part, BOTH_FAMILIES)):
                self._by_subnet[part.subnet] = lease
                if part.address in addresses:
                    self.by_address.setdefault(part.address, lease)
        self._lengths = sorted({(each.version, each.prefixlen) for each in self._by_subnet}, reverse=True)

    def holder(self, address: IpAddress) -> Lease | None:
        """Return the lease with the longest prefix that contains an address."""
        subnets = (
            ip_network((address, length), strict=False)
            for version, length in self._lengths
            if version == address.version
        )
        return next((self._by_subnet[subnet] for subnet in subnets if subnet in self._by_subnet), None)


def _explain(stranger: Stranger, known: _Known, own: IpNetwork | None) -> StrangerStatus:
    lease = known.by_address.get(stranger.address)
    part = None if lease is None else lease.part(stranger.address.version)
    subnet = None if part is None else part.subnet
    what, hint = _judge(stranger, subnet, known.holder(stranger.inner_source), own)
    host = "it" if lease is None or lease.attributes.host_name is None else lease.attributes.host_name
    holds = "holds no lease" if subnet is None else f"holds {subnet}"
    return StrangerStatus(
        address=stranger.address,
        reason=stranger.reason,
        packets=stranger.packets,
        age_s=stranger.age_s,
        inner_source=stranger.inner_source,
        inner_destination=stranger.inner_destination,
        cause=f"{host} {holds}, and {what}",
        hint=hint,
    )


def _judge(
    stranger: Stranger, subnet: IpNetwork | None, holder: Lease | None, own: IpNetwork | None
) -> tuple[str, str]:
    """Return the reason why the latest packet was dropped, and the remedy if its sender is a host of the
    network.

    `subnet` is the subnet of the sender; None if the sender holds no lease.
    """
    unknown = (
        f"; if not, stop its program (ip neigh show to {stranger.address}). This host drops its packets."
    )
    match stranger.reason:
        case "not_ours":
            what = f"the inner destination {stranger.inner_destination} is not in {own or 'the own subnet'}"
            hint = "Compare flannelctl leases on both hosts: the sender may use the old address of a host"
            return what, hint + ("." if subnet is not None else unknown)
        case "impostor":
            whose = f"{holder.text} of {holder.attributes.host_text}" if holder else "another host's subnet"
            what = f"the inner source {stranger.inner_source} is in {whose}"
        case "stranger":
            what = f"no host has the inner source {stranger.inner_source}"
    if subnet is not None:
        return what, _ADDRESSES.format(subnet)
    if holder is not None:
        return what, f"If the sender is that host, set this address there (--public-ip, --iface){unknown}"
    return what, f"If the sender is a host of the network, start flanneld there{unknown}"
