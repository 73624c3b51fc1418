"""Findings about packets to peers that are lost, although the peers answer."""

from collections.abc import Iterator, Mapping

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpNetwork
from pyflannel.model.probe import Loss
from pyflannel.model.status import Finding, Status
from pyflannel.plan.doctor.observed import some
from pyflannel.plan.doctor.peers import host_name, mtus_on_routes

_LOSS = 0.15
"""Minimum part of lost probes that is reported as a finding."""


def is_reported(loss: Loss) -> bool:
    """Return whether so many probes are lost that this is a finding."""
    return loss.lost >= loss.sent * _LOSS


def large_losses(
    small: Mapping[LeaseEntry, Loss], large: Mapping[LeaseEntry, Loss]
) -> dict[LeaseEntry, Loss]:
    """Return the losses of large packets to peers at which some arrive, unless the loss of small packets is a
    finding itself. A few lost small packets do not explain that most large packets are lost.
    """
    return {
        one: loss
        for one, loss in large.items()
        if loss.lost < loss.sent and not (one in small and is_reported(small[one]))
    }


def loss_findings(losses: Mapping[LeaseEntry, Loss], probed: int) -> Iterator[Finding]:
    """Yield the finding that a part of the packets to peers is lost.

    `losses`: the peers with lost probes. `probed`: number of probed peers.
    """
    lossy = {peer: loss for peer, loss in losses.items() if is_reported(loss)}
    if lossy:
        address = next(iter(lossy)).public_ip
        yield Finding(
            code="packets-lost",
            severity="warning",
            cause=f"a part of the packets to {len(lossy)} of {probed} probed peers is lost",
            evidence=some(
                [
                    f"{peer.subnet} at {host_name(peer)}: {loss.lost} of {loss.sent} probes lost"
                    for peer, loss in lossy.items()
                ]
            ),
            fix=f"ping -c 100 -i 0.1 {address}  # if these packets are lost too, the underlay loses them:"
            " tc -statistics qdisc show; ip -statistics link show, on both hosts and on the routers",
        )


def large_loss_findings(losses: Mapping[LeaseEntry, Loss], status: Status, probed: int) -> Iterator[Finding]:
    """Yield the finding that a part of the large packets to peers is lost, although small packets arrive.

    `losses`: the peers with lost probes of the planned size. `probed`: number of probed peers.
    """
    lossy = {peer: loss for peer, loss in losses.items() if is_reported(loss)}
    if lossy:
        peer = next(iter(lossy))
        size = (wanted_size(status, peer.subnet) or 0) - _ECHO_HEADERS[peer.public_ip.version]
        yield Finding(
            code="packets-lost",
            severity="warning",
            cause=f"a part of the large packets to {len(lossy)} of {probed} probed peers is lost, and small"
            " packets arrive: the MTU of the path is not the reason",
            evidence=some(
                [
                    f"{peer.subnet} at {host_name(peer)}: {loss.lost} of {loss.sent} probes of"
                    f" {wanted_size(status, peer.subnet)} bytes lost"
                    for peer, loss in lossy.items()
                ]
            ),
            fix=f"ping -c 100 -i 0.1 -s {max(0, size)} {peer.public_ip}"
            "  # if these packets are lost too, the underlay loses them: tc -statistics qdisc show;"
            " ip -statistics link show; nft list ruleset, on both hosts and on the routers",
        )


_ECHO_HEADERS: Mapping[Family, int] = {4: 28, 6: 48}
"""Bytes of the IP header and of the ICMP header of an echo request, by family."""


def wanted_size(status: Status, subnet: IpNetwork) -> int | None:
    """Return the size in bytes of the largest packets that this host sends to a peer; None if it is
    unknown.
    """
    wanted = status.backend.mtu if status.backend is not None else None
    return wanted and min(wanted, mtus_on_routes(status).get(subnet, wanted))
