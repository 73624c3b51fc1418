"""The udp backend's way past user space: which programs stand where, and what their tables hold.

Mode *safe*: what leaves by the device is encapsulated there, behind all hooks of the host's firewall; what
arrives at the underlay is decapsulated into the device, before them; and a frame that a bridge would only
carry to a container goes to the container's port straight away.
"""

from collections.abc import Iterable, Iterator

from pyflannel.model.bpf_container import BpfContainer
from pyflannel.model.bpf_peer import BpfPeer
from pyflannel.model.bpf_program import BpfProgram, Role, Tunnel
from pyflannel.model.bridge import Bridge
from pyflannel.model.host import Host
from pyflannel.model.lease import PARTIAL_CHECKSUM, Lease


def plan_programs(host: Host, port: int) -> Iterator[BpfProgram]:
    """Yield the programs of a host, whatever bridges it has; none where there is no fast path."""
    if host.has_fast_path:
        tunnel = _tunnel(host, port)
        yield BpfProgram(link=host.device, role=Role.ENCAPSULATE, tunnel=tunnel)
        yield BpfProgram(link=host.underlay.link, role=Role.DECAPSULATE, tunnel=tunnel)


def plan_peer_entry(peer: Lease, host: Host, port: int) -> Iterator[BpfPeer]:
    """Yield the entry of a peer that listens at `port`.

    Where no hardware finishes checksums, only a peer whose lease says that it bears with that is sent to by
    the kernel; the original in user space would get no TCP at all.
    """
    if host.has_fast_path:
        yield BpfPeer(
            device=host.device,
            subnet=peer.subnet,
            address=peer.attributes.public_ip,
            port=port,
            is_direct=PARTIAL_CHECKSUM in peer.attributes.reads or not host.underlay.is_virtual,
        )


def plan_last_hops(bridges: Iterable[Bridge], host: Host, port: int) -> Iterator[BpfProgram | BpfContainer]:
    """Yield the programs at the bridges of our subnet that do nothing but carry, and the ways past them."""
    if not host.has_fast_path:
        return
    for bridge in bridges:
        if bridge.obstacles or not any(address in host.lease.subnet for address in bridge.addresses):
            continue
        yield BpfProgram(link=bridge.name, role=Role.LAST_HOP, tunnel=_tunnel(host, port))
        for container in bridge.containers:
            if container.address in host.lease.subnet:
                yield BpfContainer(
                    device=host.device, address=container.address, mac=container.mac, link=container.port
                )


def _tunnel(host: Host, port: int) -> Tunnel:
    return Tunnel(
        device=host.device,
        underlay=host.underlay.link,
        address=host.underlay.address,
        subnet=host.lease.subnet,
        port=port,
    )
