"""Addresses that this host has, has lost, or shares with other hosts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from shlex import quote

from pyflannel.model.host import Interface
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import DOCKER0, DOCKER_FIX, NAMED, Observed, some


def _bridge_subnet(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the containers of Docker have addresses outside this host's subnet, or that
    docker0 has lost its address in this subnet, which is their gateway.
    """
    own, docker0 = seen.membership.subnet, seen.interfaces.named(DOCKER0)
    if own is None or docker0 is None or seen.ports or not seen.docker0_ports:
        return
    held = ", ".join(
        str(one.address)
        for one in docker0.addresses
        if one.address.version == own.version and not one.address.is_link_local
    )
    if not held and not seen.is_first:
        return  # Docker may use IPv4 alone
    inside = [one for one in seen.containers if any(address in own for address in one.addresses)]
    if inside:
        yield Finding(
            code="container-gateway",
            severity="error",
            cause=f"{DOCKER0} has lost {own[1]}, the gateway of its containers",
            evidence=(
                f"ip address show {DOCKER0}: {held or 'no address'}",
                *some([f"{one.process} has an address in {own}" for one in inside]),
            ),
            fix=f"ip address add {own[1]}/{own.prefixlen} dev {DOCKER0}",
        )
        return
    yield Finding(
        code="bridge-subnet",
        severity="warning",
        cause=f"the containers at {DOCKER0} have no address of the subnet of this host, {own}",
        evidence=(f"{DOCKER0} has {held or 'no address'}, and {seen.docker0_ports} containers",),
        fix=DOCKER_FIX,
    )


def _addresses(seen: Observed) -> Iterator[Finding]:
    """Yield findings for interfaces with addresses of other hosts' subnets, because this host then
    receives the packets for them.
    """
    membership, status = seen.membership, seen.status
    network, own = membership.network, membership.subnet
    tunnel = status.backend.link if status.backend is not None else None
    if network is None or own is None:
        return
    held = [
        (one.name, address)
        for one in seen.interfaces.interfaces
        if one.name not in (tunnel, membership.underlay) and not one.name.startswith("flannel")
        for address in (held.address for held in one.addresses)
        if address.ip in network and address.ip not in own
    ]
    if held:
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="this host has addresses of subnets of other hosts, so it receives the packets for "
            "these addresses itself",
            evidence=some([f"{address} on {name}" for name, address in held]),
            fix=DOCKER_FIX
            if held[0][0] == DOCKER0
            else "; ".join(
                f"ip address delete {address} dev {quote(name)}" for name, address in held[:NAMED]
            ),
        )


def addresses_of_peers(seen: Observed) -> dict[IpAddress, tuple[str, str]]:
    """Return the public addresses of peers that an interface of this host has, with the name of the interface
    and the address with its prefix length.

    An address that this host publishes itself is not included: two hosts then share it by their leases.
    """
    underlay = seen.status.underlay
    own = () if underlay is None else (underlay.address, underlay.public_ip)
    peers = {address for address in seen.membership.peers.values() if address not in own}
    return {
        held.address.ip: (one.name, str(held.address))
        for one in seen.interfaces.interfaces
        for held in one.addresses
        if held.address.ip in peers
    }


def _peer_addresses(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that this host has addresses of peers on the underlay: it delivers the packets for
    them to itself, and drops packets that have one of its own addresses as source.
    """
    if held := addresses_of_peers(seen):
        refused = [one for one in seen.status.refused_peers if one.public_ip in held]
        yield Finding(
            code="peer-address",
            severity="error",
            cause="this host has addresses of other hosts, so it exchanges no packets with these hosts, and"
            " takes packets that are for them",
            evidence=some(
                [
                    *(f"{name} has {address}, the address of a peer" for name, address in held.values()),
                    *(f"consequence: {one.subnet} at {one.host_text} is refused" for one in refused),
                ]
            ),
            fix="; ".join(
                f"ip address delete {address} dev {quote(name)}" for name, address in [*held.values()][:NAMED]
            ),
        )


def address_taken(link: str, address: IPv4Address, mac: str) -> Finding:
    """Return the finding that another host on the link answers for the address of this host."""
    return Finding(
        code="address-taken",
        severity="error",
        cause=f"another host on the link of {link} also has {address}, so answers to this host go to the"
        " other host",
        evidence=(f"{mac} answers an ARP probe for {address} at {link}",),
        fix=f"ip -br link | grep -i {mac}  # finds the other host, if run on each host; there: ip address"
        f" delete {address} dev DEVICE",
    )


_VIRTUALBOX = IPv4Address("10.0.2.15")


def _other_interface(seen: Observed) -> str:
    """Return another interface with an IPv4 address outside the network; `eth1` if there is none."""
    network, underlay = seen.membership.network, seen.membership.underlay
    others = (
        one.name
        for one in seen.interfaces.interfaces
        if not one.is_loopback and one.is_up and one.name != underlay and not one.kind.startswith("bridge")
        for held in one.addresses
        if held.address.version == 4 and not held.address.is_link_local
        if network is None or held.address.ip not in network
    )
    return next(others, "eth1")


_PUBLIC_OPTION: Mapping[Family, str] = {4: "--public-ip", 6: "--public-ipv6"}


def _address_again(seen: Observed, link: Interface, address: IpAddress) -> str:
    """Return the command that gives a link its lost address again. Its prefix length is known if the link
    still reaches a prefix with the address, or flanneld saw the address before.

    With the last address in a prefix, the kernel also deletes the routes by gateways in this prefix.
    """
    near = [held.address.network for held in link.addresses] + list(link.on_link)
    prefix = max(
        (one for one in near if address in one and one.num_addresses > 1),
        key=lambda one: one.prefixlen,
        default=None,
    )
    interfaces = seen.interfaces
    defaults = interfaces.default_routes if address.version == 4 else interfaces.ipv6_default_routes
    route = (
        ""
        if address.version == 6 or any(one.link == link.name for one in defaults)
        else "; then add the default route, which the kernel deleted with the address"
    )
    underlay = seen.status.underlay
    length = (
        prefix.prefixlen if prefix is not None else underlay.prefix_length if underlay is not None else None
    )
    if length is not None:
        command = f"ip address add {address}/{length} dev {quote(link.name)}"
        return f"{command}  #{route.removeprefix(';')}" if route else command
    return (
        f"ip address show dev {quote(link.name)}  # the link needs {address} again: let the network service"
        " of this host configure the link, or add the address with the prefix length from the documentation"
        f" of the network{route}"
    )


def _public_address(seen: Observed) -> Iterator[Finding]:
    """Yield a finding for a public address at which peers cannot reach this host."""
    underlay = seen.status.underlay
    if underlay is None:
        return
    link = seen.interfaces.named(underlay.link)
    if underlay.public_ip == _VIRTUALBOX:
        yield Finding(
            code="nat-address",
            severity="error",
            cause="peers cannot reach 10.0.2.15, the address that VirtualBox gives to every guest",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix=f"flanneld --iface={_other_interface(seen)}  # the interface that reaches the other hosts",
        )
    elif link is not None and not link.holds(underlay.address):
        yield Finding(
            code="address-gone",
            severity="error",
            cause=f"{underlay.link} has lost {underlay.address}, the address of the tunnel",
            evidence=(f"ip address show {underlay.link}: no {underlay.address}",),
            fix=_address_again(seen, link, underlay.address),
        )
    elif (
        underlay.public_ip != underlay.address
        and seen.interfaces.holder(underlay.public_ip) is None
        and any(underlay.public_ip in prefix for prefix in seen.on_link)
    ):
        yield Finding(
            code="public-address",
            severity="error",
            cause=f"peers send to {underlay.public_ip}, which no interface of this host has",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix=f"flanneld {_PUBLIC_OPTION[seen.family]}={underlay.address}  # the address of"
            f" {underlay.link}; or start flanneld without this option",
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _bridge_subnet,
    _addresses,
    _peer_addresses,
    _public_address,
)
