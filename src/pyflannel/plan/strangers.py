"""What is known of those whose tunnel packets the guard drops, and what helps."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease
from pyflannel.model.status import StrangerStatus

_ADDRESSES = "Give its containers addresses of {} only: mk-docker-opts there, then start Docker again."


def explain(
    strangers: Sequence[Stranger], leases: Iterable[Lease], own: IPv4Network | None
) -> tuple[StrangerStatus, ...]:
    """Return each stranger with what the leases say of it, those with most packets first.

    Args:
        strangers: of the guard.
        leases: all that are known.
        own: this host's subnet.
    """
    if not strangers:
        return ()
    known = _Known(leases, {stranger.address for stranger in strangers})
    explained = [_explain(stranger, known, own) for stranger in strangers]
    return tuple(sorted(explained, key=lambda one: (-one.packets, one.address, one.reason)))


class _Known:
    """Leases, by the addresses that are asked for and by subnet."""

    def __init__(self, leases: Iterable[Lease], addresses: set[IPv4Address]) -> None:
        self.by_subnet = {lease.subnet: lease for lease in leases}
        self.by_address: dict[IPv4Address, Lease] = {}
        for lease in self.by_subnet.values():
            if lease.attributes.public_ip in addresses:
                self.by_address.setdefault(lease.attributes.public_ip, lease)
        self._lengths = sorted({subnet.prefixlen for subnet in self.by_subnet}, reverse=True)

    def holder(self, address: IPv4Address) -> Lease | None:
        """Return the longest lease that has an address."""
        subnets = (IPv4Network((int(address), length), strict=False) for length in self._lengths)
        return next((self.by_subnet[subnet] for subnet in subnets if subnet in self.by_subnet), None)


def _explain(stranger: Stranger, known: _Known, own: IPv4Network | None) -> StrangerStatus:
    lease = known.by_address.get(stranger.address)
    what, hint = _judge(stranger, lease, known.holder(stranger.inner_source), own)
    holds = f"holds {lease.subnet}" if lease is not None else "holds no lease"
    return StrangerStatus(
        address=stranger.address,
        reason=stranger.reason,
        packets=stranger.packets,
        age_s=stranger.age_s,
        inner_source=stranger.inner_source,
        inner_destination=stranger.inner_destination,
        cause=f"it {holds}, and {what}",
        hint=hint,
    )


def _judge(
    stranger: Stranger, lease: Lease | None, holder: Lease | None, own: IPv4Network | None
) -> tuple[str, str]:
    """Return what is wrong with the latest packet, and what to do if its sender is a host of the network."""
    unknown = f"; if not, stop it there (ip neigh show to {stranger.address}): here its packets go nowhere."
    match stranger.reason:
        case "not_ours":
            what = f"the inner destination {stranger.inner_destination} is not in {own or 'our subnet'}"
            hint = "Compare flannelctl leases there and here: it takes this host for another"
            return what, hint + ("." if lease is not None else unknown)
        case "impostor":
            whose = f"{holder.subnet} of {holder.attributes.public_ip}" if holder else "another host's subnet"
            what = f"the inner source {stranger.inner_source} is in {whose}"
        case "stranger":
            what = f"no host has the inner source {stranger.inner_source}"
    if lease is not None:
        return what, _ADDRESSES.format(lease.subnet)
    if holder is not None:
        return what, f"If it is that host, let it publish this address (--public-ip, --iface){unknown}"
    return what, f"If it is a host of the network, start flanneld there{unknown}"
