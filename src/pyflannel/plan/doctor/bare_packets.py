"""The finding that the underlay drops packets with addresses of containers.

The backend host-gw, and vxlan with DirectRouting, send the packets of containers without a tunnel. Switches
and routers then see addresses that they may not expect.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import EchoResult
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import some
from pyflannel.plan.doctor.peers import host_name


class BareProbe(NamedTuple):
    """The results of two packets to an address in the subnet of a peer, with a TTL of 1.

    The peer has to forward the packets, so it answers that their TTL has expired. Its filter rules for
    packets to itself do not apply, nor do rules that masquerade packets which leave the network.

    Attributes:
        peer: the lease of the peer.
        usual: the result of the packet from the public address of this host.
        bare: the result of the packet from the address of this host in its own subnet.
    """

    peer: LeaseEntry
    usual: EchoResult
    bare: EchoResult

    @property
    def is_decisive(self) -> bool:
        """True if the packet from the public address arrives, and the other packet was sent."""
        return self._is_from_peer(self.usual) and self.bare.state != "unsent"

    @property
    def is_lost(self) -> bool:
        """True if only the address of the sender decides that the packet is lost."""
        return self.is_decisive and not self._is_from_peer(self.bare)

    def _is_from_peer(self, result: EchoResult) -> bool:
        sender = result.sender
        return sender is not None and (sender == self.peer.public_ip or sender in self.peer.subnet)


def bare_findings(
    probes: Sequence[BareProbe], own: IpNetwork, source: IpAddress, public_ip: IpAddress, link: str
) -> Iterator[Finding]:
    """Yield the finding that packets with addresses of containers are lost between this host and its peers.

    Args:
        probes: the results.
        own: the subnet of this host.
        source: the address of this host in its subnet.
        public_ip: the address of this host on the underlay.
        link: the underlay.
    """
    lost = [one for one in probes if one.is_lost]
    if not lost:
        return
    count = f"{len(lost)} of {sum(one.is_decisive for one in probes)} peers"
    first = host_name(lost[0].peer)
    yield Finding(
        code="overlay-filtered",
        severity="error",
        cause=f"packets with addresses of containers from this host to {count} on the same link are lost,"
        " and packets with its public address arrive: a switch or a router between the hosts drops them (IP"
        f" source guard, anti-spoofing), or the peers drop them or have no route back to {own}",
        evidence=some(
            [
                f"from {source} to {one.peer.subnet} at {host_name(one.peer)}:"
                f" {one.bare.text or one.bare.state}; from {public_ip}: arrives"
                for one in lost
            ]
        ),
        fix=f"tcpdump -ni {link} src net {own}  # on {first}, while doctor runs here. No packet: permit {own}"
        " at the port of this host, in the switch, the router or the cloud (source/destination check)."
        f" Packets arrive: flannelctl doctor on {first}",
    )
