"""The backends: a closed mapping from type name to backend. No backend registers itself."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from pyflannel.errors import ConfigError, UnknownBackendError
from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import BackendData, Lease, LeaseEntry, Vtep, host_text
from pyflannel.model.network_config import Family, IpAddress, IpNetwork, NetworkConfig
from pyflannel.model.probe import ProbedPath
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend import alloc, host_gw, udp, vxlan, wireguard
from pyflannel.plan.backend_keys import without_effect
from pyflannel.plan.peers import subnet_of
from pyflannel.plan.routes import Routed, network_notes


class Backend(Protocol):
    """The plans for one network, as pure functions. A value that is parsed from the network config.

    Functions with a `host` plan the address family of that host.
    """

    @property
    def lease_type(self) -> str:
        """The BackendType that the lease contains."""

    @property
    def way(self) -> str:
        """The identity of the data path, as text. During a change to another data path, hosts need both."""

    @property
    def port(self) -> int | None:
        """UDP port that the lease publishes, or None."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Packet formats that the host accepts and that the lease publishes."""

    @property
    def tunnel_port(self) -> int | None:
        """UDP port on which this host receives tunnel packets; None if the backend has no tunnel."""

    def tunnel_port_in(self, family: Family) -> int | None:
        """Return the UDP port of the tunnel of an address family; None if the backend has no tunnel."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The address families that the backend carries, IPv4 first."""

    @property
    def routed(self) -> Routed:
        """Destinations of the backend's routes."""

    @property
    def config_line(self) -> str | None:
        """The original's log line about the config, or None."""

    @property
    def config_warnings(self) -> tuple[str, ...]:
        """Warnings about a valid config, one line each: keys without effect."""

    @property
    def is_encrypted(self) -> bool:
        """True if every packet to another host is encrypted."""

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> BackendData | None:
        """Return the BackendData of the lease of the host with this identity."""

    def mtu(self, host: Host) -> int:
        """Return the size of the largest packet of a container, in bytes."""

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return notes about unusual properties of the backend on this host, one line each, including
        `config_warnings`.
        """

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return the missing condition if the backend cannot work on this host, as text; None if it can
        work.
        """

    def plan_host(self, host: Host) -> State:
        """Return the objects of the host itself, which do not depend on peers."""

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return the reason why this backend cannot reach a peer, as text for the log; None if it can
        reach the peer.
        """

    def foreseen(self, peer: Lease) -> Lease | None:
        """Return the lease that a peer will publish for this backend; None if the lease cannot be known in
        advance.
        """

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return the peers that yield to other peers which need the same object, by subnet, with the reason.

        The result does not depend on the order in which the peers were added.
        """

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the objects of one peer; empty for a peer with an objection."""

    def guarded_path(self, host: Host) -> GuardedPath | None:
        """Return the path of packets from other hosts to this host; None if the backend does not know this
        path.
        """

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return the objects for containers behind these bridges; empty for most backends."""


_PARSERS: Mapping[str, Callable[[NetworkConfig], Backend]] = {
    "alloc": alloc.parse,
    "host-gw": host_gw.parse,
    "udp": udp.parse,
    "vxlan": vxlan.parse,
    "wireguard": wireguard.parse,
}

# Types of backends of the original that pyflannel does not support. A config with one of these types is
# valid.
_LATER = frozenset({"ipip", "ipsec", "extension", "tencent-vpc"})


def config_warnings(config: NetworkConfig) -> tuple[str, ...]:
    """Return warnings about a valid config, one line each: parts that this version does not support.

    Raises:
        ConfigError: the original does not know the backend either, or its part of the config is invalid.
    """
    if config.backend_type in _LATER:
        later = f"Backend.Type {config.backend_type} is supported by the original, not by this version"
        return (later, *without_effect(config))
    return backend_of(config).config_warnings


def notes_on(config: NetworkConfig, backend: Backend, host: Host) -> tuple[str, ...]:
    """Return notes about unusual properties of the network on this host, one line each."""
    if backend.routed == "nothing":
        return backend.notes(host)
    network = config.range_of(host.family)
    notes = (*backend.notes(host), *network_notes(network, host.underlay, host.surroundings))
    return tuple(dict.fromkeys(notes))


def own_variant(lease: Lease, backend: Backend, host: Host) -> Lease:
    """Return this host's lease with the part that a backend published, or the unchanged lease if it
    published no part.
    """
    data = backend.lease_data(host.owner, host.wireguard, host.family)
    for variant in lease.variants:
        attributes = variant.attributes
        vtep = attributes.vtep if host.family == 4 else attributes.vtep_v6
        if attributes.backend_type == backend.lease_type and (
            not isinstance(data, Vtep) or vxlan.may_stay(vtep, data)
        ):
            return variant
    return lease


def backend_of(config: NetworkConfig) -> Backend:
    """Return the backend of the config.

    Raises:
        ConfigError: the backend does not exist, its part of the config is invalid, or the store has no leases
            with IPv6 alone.
    """
    if not config.enable_ipv4 and not config.is_assigned:
        raise ConfigError(
            "EnableIPv4=false: etcd has no leases with IPv6 alone, because each key contains an IPv4 subnet",
            hint="Omit EnableIPv4 and set Network. For both families, also set EnableIPv6 and IPv6Network."
            " Networks with IPv6 alone need --kube-subnet-mgr.",
        )
    parser = _PARSERS.get(config.backend_type)
    if parser is None:
        later = " (not yet supported)" if config.backend_type in _LATER else ""
        raise UnknownBackendError(
            f"unknown backend type: {config.backend_type}{later}",
            hint=f"Set Backend.Type to one of: {', '.join(sorted(_PARSERS))}.",
        )
    return parser(config)


# The effects of another network config on running hosts, for people.

_UNDERLAY_MTU = 1500
_OVERHEADS: Mapping[str, Mapping[Family, int]] = {
    "udp": {4: udp.OVERHEAD},
    "vxlan": vxlan.OVERHEADS,
    "host-gw": {4: 0, 6: 0},
    "wireguard": {4: wireguard.OVERHEAD},
}
_IN_PLACE: Mapping[str, str] = {
    "port": "Port",
    "udp_port": "the port",
    "mac_prefix": "MacPrefix",
    "has_gbp": "GBP",
    "learns": "Learning",
}
"""Attributes of backends whose device cannot have both the old and the new value, with their names for
people."""

_NAMED = 5
"""Maximum number of hosts that an effect names."""


_MOST_COMPARED = 4000
"""Maximum number of lines of two configs that are compared. The time grows with the square of this number."""


def difference_of(old: str | None, new: str, *, name: str = "new") -> list[str]:
    """Return a unified diff of two configs; empty if they differ in white space only.

    If the configs are long, which only unknown keys cause, the diff removes all lines and adds all lines.
    """
    from difflib import unified_diff  # this import is needed only for a change of the config

    before, after = [] if old is None else _lines(old), _lines(new)
    names = "stored" if old is not None else "/dev/null", name
    if len(before) + len(after) <= _MOST_COMPARED:
        return list(unified_diff(before, after, *names, lineterm=""))
    changed = [*(f"-{line}" for line in before), *(f"+{line}" for line in after)]
    return [] if before == after else [f"--- {names[0]}", f"+++ {names[1]}", *changed]


def _lines(text: str) -> list[str]:
    """Return the lines of the indented JSON, or of the text if it is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text.splitlines()


def effects_of(old: NetworkConfig, new: NetworkConfig, leases: Iterable[LeaseEntry]) -> list[str]:
    """Return the effects of another config on the running hosts with these leases, with one sentence for each
    effect.

    Raises:
        ConfigError: one of the configs is invalid.
    """
    entries = list(leases)
    return [*_backend_effects(old, new, entries), *_range_effects(new, entries)]


def _backend_effects(old: NetworkConfig, new: NetworkConfig, leases: list[LeaseEntry]) -> Iterator[str]:
    before, after = backend_of(old), backend_of(new)
    if before.way != after.way:
        yield (
            f"Hosts change the backend from {before.way} to {after.way}. They receive packets by both "
            "until all have changed, and no packet is lost. First open the new port on all hosts."
        )
        if others := sum(lease.owner is None for lease in leases):
            yield f"{others} leases belong to the original flannel, which must be restarted."
    elif type(before) is type(after):
        names = [
            text
            for name, text in _IN_PLACE.items()
            if getattr(before, name, None) != getattr(after, name, None)
        ]
        if names:
            yield (
                f"Hosts change {', '.join(names)} in place, so packets stop for a moment. To lose no packet,"
                " first change to another backend, and then to this config."
            )
    sizes = [_largest_packet(before, old), _largest_packet(after, new)]
    if None not in sizes and sizes[0] != sizes[1]:
        yield (
            f"The largest packet of a container changes from {sizes[0]} to {sizes[1]} bytes, on an underlay"
            f" with an MTU of {_UNDERLAY_MTU}. Restart Docker with the new options when its containers may"
            " stop."
        )
    if old.enable_nftables != new.enable_nftables:
        engines = "nftables", "iptables"
        this, other = engines if new.enable_nftables else reversed(engines)
        yield f"Hosts create their filter rules with {this}, and remove the rules of {other}."
    if new.backend_type == old.backend_type in ("udp", "vxlan") and old.fast_path != new.fast_path:
        if new.backend_type == "udp" and "off" in (new.fast_path, old.fast_path):
            yield f"Hosts turn the fast path {'off' if new.fast_path == 'off' else 'on'}. No packet is lost."
        if "flow" in (new.fast_path, old.fast_path):
            bypass = (
                "may bypass the firewall for up to a second"
                if new.fast_path == "flow"
                else "pass through the firewall"
            )
            yield f"Packets of known flows {bypass}. No packet is lost."


def _range_effects(new: NetworkConfig, leases: list[LeaseEntry]) -> Iterator[str]:
    """Yield the hosts that refuse the config because it excludes their subnets."""
    refusing = [lease for lease in leases if not new.admits(lease.subnet)]
    if not refusing:
        return
    named = ", ".join(
        f"{lease.subnet} of {host_text(lease.public_ip, lease.host_name)}" for lease in refusing[:_NAMED]
    )
    more = f" and {len(refusing) - _NAMED} more" if len(refusing) > _NAMED else ""
    yield (
        f"{len(refusing)} of {len(leases)} hosts refuse this config, because it does not admit their subnets:"
        f" {named}{more}. They keep running with the present config, and hosts with different configs refuse"
        " each other as peers. To change the network, run the new network beside the present network, move"
        " the containers, and then remove the present network."
    )


def path_to(backend: Backend, host: Host, peer: Lease) -> ProbedPath | None:
    """Return the path to a peer in the family of the host; None without a data path."""
    overheads, address = _overheads_of(backend), _underlay_address(peer, backend, host)
    if overheads is None or address is None or host.family not in backend.families:
        return None
    has_tunnel = backend.tunnel_port is not None
    return ProbedPath(
        end=subnet_of(peer, host.family).network_address if has_tunnel else address,
        underlay=address,
        mtu=backend.mtu(host),
        overhead=overheads[address.version],
        padding=wireguard.PADDING if isinstance(backend, wireguard.WireguardBackend) else 1,
    )


def has_probed_paths(backend: Backend) -> bool:
    """Return whether packets to peers have a path that probes can measure."""
    return _overheads_of(backend) is not None


def _overheads_of(backend: Backend) -> Mapping[Family, int] | None:
    """Return the bytes that the tunnel adds, by the family of the underlay; None without a data path."""
    if isinstance(backend, wireguard.WireguardBackend):
        return wireguard.OVERHEADS
    return _OVERHEADS.get(backend.lease_type or backend.way)


def _underlay_address(peer: Lease, backend: Backend, host: Host) -> IpAddress | None:
    """Return the address to which packets to a peer are sent; None if the peer has no such address."""
    if isinstance(backend, wireguard.WireguardBackend):
        return backend.address_of(peer, host)
    part = peer.part(host.family)
    return None if part is None else part.address


def _largest_packet(backend: Backend, config: NetworkConfig) -> int | None:
    """Return the MTU of containers if the MTU of the underlay is 1500; None if the backend has no data
    path.
    """
    overheads = _OVERHEADS.get(backend.lease_type or backend.way)
    if overheads is None:
        return None
    outer = getattr(backend, "outer_mtu", None) or _UNDERLAY_MTU
    return min(outer, _UNDERLAY_MTU) - max(overheads.get(family, 0) for family in config.families)


def deviations_of(lease: Lease, config: NetworkConfig) -> list[str]:
    """Return the differences between the lease of a running host and the config, with one phrase for each
    difference.

    A lease contains the subnets, the type of the backend, its port and its VNI. A lease does not show the
    other keys of the config that the host uses.

    Raises:
        ConfigError: the backend is unknown, or its part of the config is invalid.
    """
    return [*_subnet_deviations(lease, config), *_backend_deviations(lease, backend_of(config))]


def _subnet_deviations(lease: Lease, config: NetworkConfig) -> Iterator[str]:
    for subnet in (lease.subnet, lease.ipv6_subnet):
        if subnet is not None and not config.admits(subnet):
            yield f"the config does not admit its subnet {subnet}"
    if config.enable_ipv6 and lease.ipv6_subnet is None:
        yield "it has no IPv6 subnet"
    if not config.enable_ipv6 and lease.ipv6_subnet is not None:
        yield f"it has the IPv6 subnet {lease.ipv6_subnet}, and the config has no IPv6"


def _backend_deviations(lease: Lease, backend: Backend) -> Iterator[str]:
    attributes = lease.attributes
    if attributes.backend_type != backend.lease_type:
        yield f"its backend is {attributes.backend_type or 'udp'}, not {backend.lease_type or backend.way}"
        return
    if attributes.also:
        previous = ", ".join(part.backend_type or "udp" for part in attributes.also)
        yield f"it still receives packets by its previous backend {previous}"
    match backend:
        case udp.UdpBackend(port=wanted):
            name, found = "Port", attributes.port
        case vxlan.VxlanBackend(vni=wanted):
            vtep = attributes.vtep or attributes.vtep_v6
            name, found = "VNI", None if vtep is None else vtep.vni
        case wireguard.WireguardBackend(udp_port=wanted):
            name, found = "ListenPort", None if attributes.wireguard is None else attributes.wireguard.port
        case _:
            return
    if found not in (None, wanted):
        yield f"its {name} is {found}, not {wanted}"


def conflicts_of(config: NetworkConfig, other: NetworkConfig) -> Iterator[str]:
    """Yield the reasons why no host can run two networks with these configs, one phrase for each reason.

    A backend that this version does not know causes no known conflict.
    """
    for one in config.ranges:
        for another in other.ranges:
            if one.version == another.version and one.overlaps(another):
                yield f"its range {one} overlaps {another}"
    try:
        backends = backend_of(config), backend_of(other)
    except ConfigError:
        return
    match backends:
        case udp.UdpBackend(port=first), udp.UdpBackend(port=second):
            name = "Port"
        case vxlan.VxlanBackend(vni=first), vxlan.VxlanBackend(vni=second):
            name = "VNI"
        case wireguard.WireguardBackend(udp_port=first), wireguard.WireguardBackend(udp_port=second):
            name = "ListenPort"
        case _:
            return
    if first == second:
        yield f"it has the same {name} {first}"
