"""Explanations of the senders whose tunnel packets the guard drops: their leases, and the remedy."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease
from pyflannel.model.status import StrangerStatus

_ADDRESSES = "Give its containers only addresses in {}: run mk-docker-opts there, then restart Docker."


def explain(
    strangers: Sequence[Stranger], leases: Iterable[Lease], own: IPv4Network | None
) -> tuple[StrangerStatus, ...]:
    """Return each sender with its leases and the remedy, the sender of the most packets first.

    Args:
        strangers: senders that the guard rejected.
        leases: all known leases.
        own: this host's subnet.
    """
    if not strangers:
        return ()
    known = _Known(leases, {stranger.address for stranger in strangers})
    explained = [_explain(stranger, known, own) for stranger in strangers]
    return tuple(sorted(explained, key=lambda one: (-one.packets, one.address, one.reason)))


class _Known:
    """Leases by subnet, and by the addresses of the senders."""

    def __init__(self, leases: Iterable[Lease], addresses: set[IPv4Address]) -> None:
        self.by_subnet = {lease.subnet: lease for lease in leases}
        self.by_address: dict[IPv4Address, Lease] = {}
        for lease in self.by_subnet.values():
            if lease.attributes.public_ip in addresses:
                self.by_address.setdefault(lease.attributes.public_ip, lease)
        self._lengths = sorted({subnet.prefixlen for subnet in self.by_subnet}, reverse=True)

    def holder(self, address: IPv4Address) -> Lease | None:
        """Return the lease with the longest prefix that contains an address."""
        subnets = (IPv4Network((int(address), length), strict=False) for length in self._lengths)
        return next((self.by_subnet[subnet] for subnet in subnets if subnet in self.by_subnet), None)


def _explain(stranger: Stranger, known: _Known, own: IPv4Network | None) -> StrangerStatus:
    lease = known.by_address.get(stranger.address)
    what, hint = _judge(stranger, lease, known.holder(stranger.inner_source), own)
    host = "it" if lease is None or lease.attributes.host_name is None else lease.attributes.host_name
    holds = f"holds {lease.subnet}" if lease is not None else "holds no lease"
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
    stranger: Stranger, lease: Lease | None, holder: Lease | None, own: IPv4Network | None
) -> tuple[str, str]:
    """Return the fault of the latest packet, and the remedy if its sender is a host of the network."""
    unknown = (
        f"; if not, stop its program (ip neigh show to {stranger.address}). This host drops its packets."
    )
    match stranger.reason:
        case "not_ours":
            what = f"the inner destination {stranger.inner_destination} is not in {own or 'the own subnet'}"
            hint = "Compare flannelctl leases on both hosts: it may know an old address of another host"
            return what, hint + ("." if lease is not None else unknown)
        case "impostor":
            whose = f"{holder.subnet} of {holder.attributes.host_text}" if holder else "another host's subnet"
            what = f"the inner source {stranger.inner_source} is in {whose}"
        case "stranger":
            what = f"no host has the inner source {stranger.inner_source}"
    if lease is not None:
        return what, _ADDRESSES.format(lease.subnet)
    if holder is not None:
        return what, f"If it is that host, set this address there (--public-ip, --iface){unknown}"
    return what, f"If it is a host of the network, start flanneld there{unknown}"
