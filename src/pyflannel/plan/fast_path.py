"""The fast path of the backends udp and vxlan: the programs at the hooks of links, and the entries of their
tables.

Mode *safe*, and the base of *flow*: packets that leave by the device are encapsulated there, after all hooks
of the host's firewall. Packets that arrive at the underlay are decapsulated into the device, before these
hooks. A frame that a bridge would forward to a container without further processing is sent directly to the
container's port. A program at the underlay keeps the Ethernet header of each peer for some milliseconds.

Mode *flow*: a program at the veth of each container sends packets of a known flow directly to the underlay.

With vxlan, the kernel's device carries all packets that do not bypass the firewall. The programs exist only
in mode flow.

With udp, if the underlay is a network card, TCP arrives in segments, because the kernel's GRO does not
support this tunnel. A veth pair with GRO coalesces these segments. The programs send the packets into one
end, and the other end passes the coalesced packets to the device.
"""

from collections.abc import Iterable, Iterator

from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Role, Tunnel
from pyflannel.model.host import Bridge, Host, IpsecPolicy
from pyflannel.model.lease import PARTIAL_CHECKSUM, Lease
from pyflannel.model.link import Link, Veth

_QUEUE_LENGTH = 1000
"""Length of the transmit queue in packets, which is the kernel's default for a veth."""


def plan_programs(host: Host, tunnel: Tunnel) -> Iterator[BpfProgram | Link]:
    """Yield the programs and the GRO veth of a host with the udp backend, except the programs of bridges;
    nothing if the fast path is off.
    """
    if host.has_fast_path:
        yield BpfProgram(link=host.device, role=Role.ENCAPSULATE, tunnel=tunnel)
        yield BpfProgram(link=host.underlay.link, role=Role.DECAPSULATE, tunnel=tunnel)
        yield BpfProgram(link=host.underlay.link, role=Role.NEXT_HOP, tunnel=tunnel)
        if _has_gro_link(host):
            near, far = _gro_pair(host)
            yield from (_end(near, far, host), _end(far, near, host))
            yield BpfProgram(link=far, role=Role.REJOIN, tunnel=tunnel)


def plan_vxlan_programs(host: Host, tunnel: Tunnel) -> Iterator[BpfProgram]:
    """Yield the programs of a host with the vxlan backend, except the programs of bridges."""
    for role in (Role.DECAPSULATE, Role.NEXT_HOP):
        yield BpfProgram(link=host.underlay.link, role=role, tunnel=tunnel)


def caches_vxlan_flows(host: Host, port: int) -> bool:
    """Return whether the programs may cache flows of the vxlan backend. The programs bypass IPsec."""
    return host.family == 4 and host.has_fast_path and host.caches_flows and not _policies(host, port)


def vxlan_ipsec_note(host: Host, port: int) -> str | None:
    """Return the note that no flow is cached because of IPsec; None if there are no such policies."""
    if host.family != 4 or not host.has_fast_path or not _policies(host, port):
        return None
    return "IPsec policies may concern the tunnel: no flow bypasses the firewall"


def ipsec_note(host: Host, port: int) -> str | None:
    """Return the note about peers whose packets take user space because of IPsec; None if IPsec concerns no
    peer.
    """
    policies = _policies(host, port)
    if not host.has_fast_path or not policies:
        return None
    prefixes = {policy.destination if policy.direction == "out" else policy.source for policy in policies}
    shown = ", ".join(map(str, sorted(prefixes)))
    return f"IPsec policies may concern the tunnel: packets of peers in {shown} take user space"


def _policies(host: Host, port: int) -> list[IpsecPolicy]:
    """Return the policies that may apply to the tunnel with any peer, on any port of the peer."""
    own = host.ipv4.address
    return [
        policy
        for policy in host.surroundings.policies
        if (policy.direction == "out" and policy.may_concern(own, None, None))
        or (policy.direction == "in" and policy.may_concern(None, own, port))
    ]


def _is_secured(peer: Lease, host: Host, port: int, peer_port: int) -> bool:
    """Return whether an IPsec policy may apply to the tunnel with a peer, because only user space applies
    policies.
    """
    own, address = host.ipv4.address, peer.ipv4.address
    return any(
        (policy.direction == "out" and policy.may_concern(own, address, peer_port))
        or (policy.direction == "in" and policy.may_concern(address, own, port))
        for policy in host.surroundings.policies
    )


def plan_peer_entry(peer: Lease, host: Host, port: int, peer_port: int) -> Iterator[BpfPeer]:
    """Yield the entry of a peer that listens at `peer_port`; nothing if an IPsec policy may apply to the
    tunnel with this peer.

    The programs bypass IPsec. The programs leave packets of a peer without an entry to user space, in both
    directions.

    If no hardware completes checksums, the kernel sends only to a peer whose lease accepts partial checksums.
    An original flannel in user space would otherwise receive no TCP packets.
    """
    if host.has_fast_path and not _is_secured(peer, host, port, peer_port):
        yield BpfPeer(
            device=host.device,
            subnet=peer.ipv4.subnet,
            address=peer.ipv4.address,
            port=peer_port,
            is_direct=PARTIAL_CHECKSUM in peer.attributes.reads or not host.underlay.is_virtual,
        )


def plan_last_hops(
    bridges: Iterable[Bridge], host: Host, tunnel: Tunnel
) -> Iterator[BpfProgram | BpfContainer]:
    """Yield programs for the bridges of this host's subnet, and one entry for each of their containers."""
    if not host.has_fast_path:
        return
    for bridge in bridges:
        if bridge.obstacles or not any(address in host.lease.subnet for address in bridge.addresses):
            continue
        yield BpfProgram(link=bridge.name, role=Role.LAST_HOP, tunnel=tunnel)
        served = [one for one in bridge.containers if one.address in host.lease.subnet]
        if host.caches_flows:
            for link in sorted({container.port for container in served}):
                yield BpfProgram(link=link, role=Role.SHORTCUT, tunnel=tunnel)
        for container in served:
            yield BpfContainer(
                device=host.device, address=container.address, mac=container.mac, link=container.port
            )


def udp_tunnel(host: Host, port: int, mtu: int) -> Tunnel:
    """Return the tunnel of the udp backend."""
    return Tunnel(
        device=host.device,
        underlay=host.underlay.link,
        address=host.ipv4.address,
        subnet=host.ipv4.subnet,
        port=port,
        mtu=mtu,
        gro_link=_gro_pair(host)[0] if _has_gro_link(host) else "",
        caches_flows=host.caches_flows,
    )


def vxlan_tunnel(host: Host, port: int, mtu: int, *, link: str, vni: int) -> Tunnel:
    """Return the tunnel of the vxlan backend whose device is `link`."""
    return Tunnel(
        device=host.device,
        underlay=host.underlay.link,
        address=host.ipv4.address,
        subnet=host.ipv4.subnet,
        port=port,
        mtu=mtu,
        caches_flows=True,
        vxlan_link=link,
        vni=vni,
    )


def _has_gro_link(host: Host) -> bool:
    """Return whether TCP segments are coalesced. Between hosts on a virtual underlay, packets are not
    segmented.
    """
    return host.gro == "on" or (host.gro == "auto" and not host.underlay.is_virtual)


def _gro_pair(host: Host) -> tuple[str, str]:
    """Return the names of the sending end and of the receiving end of the veth pair."""
    return f"{host.device}-gro", f"{host.device}-rx"


def _end(name: str, peer: str, host: Host) -> Link:
    return Link(
        name=name,
        kind="veth",
        mtu=host.underlay.mtu,
        queue_length=_QUEUE_LENGTH,
        alias=host.mark,
        veth=Veth(peer=peer, has_gro=True),
    )
