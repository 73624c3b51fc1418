"""The vxlan backend: packets use a vxlan device of the kernel, one frame per datagram.

Each family has a device: `flannel.1` for IPv4, whose tunnel uses IPv4, and `flannel-v6.1` for IPv6, whose
tunnel uses IPv6. A device has the base address of this host's subnet as a /32 or /128. Each peer has three
objects: a neighbour with the base address of its subnet and the MAC address of its VTEP, an FDB entry from
this MAC address to the host, and a route to its subnet. As a result, no host sends ARP requests or learns
addresses.

Source: flannel 0.28.9 for the objects of a peer and the /32; RFC 7348.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_interface
from sys import intern
from typing import TypeGuard

from msgspec import Struct

from pyflannel.model.fast_path import Tunnel
from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import DIRECT, Lease, LeasePart, Vtep
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.network_config import BOTH_FAMILIES, Family, IpNetwork, NetworkConfig
from pyflannel.model.route import FdbEntry, Neighbour, Route, usual_metric
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import BackendKeys, ineffective
from pyflannel.plan.fast_path import (
    caches_vxlan_flows,
    plan_last_hops,
    plan_vxlan_programs,
    vxlan_ipsec_note,
    vxlan_tunnel,
)
from pyflannel.plan.peers import place_of
from pyflannel.plan.routes import NO_IPV6, Routed, direct_route, peer_objection

# The MAC address of a host's VTEP: the address in its existing lease, or otherwise an address derived from
# its identity.
#
# A device that is created again, after a restart or after the original, therefore has the address that the
# peers know. The original generates a new address for each device, and all peers must learn it.

_LENGTH = 6
_LOCAL = 0x02
_GROUP = 0x01
"""Bits of the first byte that mark it as locally administered, and as a group address (IEEE 802, clause
8.2)."""

_GROUP_DIGITS = "13579bdf"
"""The possible second hexadecimal digits of a group address."""

_ALL_ZEROS = "00:00:00:00:00:00"

_LABELS: Mapping[Family, bytes] = {4: b"pyflannel VTEP\0", 6: b"pyflannel VTEP 6\0"}


@lru_cache(maxsize=16)  # cached, because the function is called several times per peer
def vtep_of(owner: str, vni: int, prefix: bytes = b"", family: Family = 4) -> Vtep:
    """Return the VTEP that is derived from the identity `owner`."""
    return Vtep(mac=vtep_mac(owner, prefix, family), vni=vni, mac_prefix=prefix)


def vtep_mac(owner: str, prefix: bytes = b"", family: Family = 4) -> str:
    """Return the MAC address of `owner`: lower case with colons, locally administered, and the address of a
    single device.

    `prefix` replaces the first bytes of the address, regardless of the bits in `prefix`.
    """
    digest = bytearray(
        hashlib.sha256(_LABELS[family] + owner.encode(errors="surrogateescape")).digest()[:_LENGTH]
    )
    digest[0] = (digest[0] | _LOCAL) & ~_GROUP & 0xFF
    digest[: len(prefix)] = prefix
    return digest.hex(":")


def may_stay(standing: Vtep | None, wanted: Vtep) -> TypeGuard[Vtep]:
    """Return whether the host can keep the VTEP in its existing lease."""
    return standing is not None and standing.vni == wanted.vni and _fits(standing.mac, wanted.mac_prefix)


@lru_cache(maxsize=16)
def _fits(mac: str, prefix: bytes) -> bool:
    return is_of_one_device(mac) and bytes.fromhex(mac.replace(":", "")).startswith(prefix)


def is_of_one_device(mac: str) -> bool:
    """Return whether this is the address of one device, which means not a group address, and not all zeros.

    In the FDB of a vxlan device, the address of all zeros is the default destination.
    """
    return mac[1] not in _GROUP_DIGITS and mac != _ALL_ZEROS


# Kernels and drivers that write wrong checksums, unless the sending host computes the inner checksums in
# software.
#
# A container's packet may enter the tunnel with a partial checksum, which the network card completes. Kernels
# before the fix wrote a wrong checksum for masqueraded packets. The network cards of VMware do the same for
# tunnels on ports that they do not know. The receiver drops these packets, so that a connection needs a
# minute, or fails. Other hosts offload the checksum to the card, which increases the throughput considerably.
#
# Source: kubernetes issue 88986, whose fix is in Linux 5.7 and in the releases below.

_FIXED_SINCE = (5, 7)
_FIXED_IN: Mapping[tuple[int, int], int] = {(5, 6): 13, (5, 4): 41, (4, 19): 123, (4, 14): 181}
"""The first kernel release with the fix, by stable series."""

_DRIVERS = frozenset({"vmxnet3"})
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def checksum_trap(kernel: str, driver: str) -> str | None:
    """Return the reason in one line why a tunnel must not offload inner checksums to the device; None if it
    may do so.

    Args:
        kernel: release of the kernel, as far as known; "" if it is unknown.
        driver: driver of the interface that carries the tunnel; "" if it is unknown.
    """
    if driver in _DRIVERS:
        return f"the driver {driver} fills in wrong checksums inside tunnels"
    found = _RELEASE.match(kernel)
    if found is None:
        return None
    series, patch = (int(found[1]), int(found[2])), int(found[3] or 0)
    if series >= _FIXED_SINCE or (series in _FIXED_IN and patch >= _FIXED_IN[series]):
        return None
    return f"Linux {kernel} fills in wrong checksums of masqueraded packets inside tunnels"


KEYS = ("VNI", "Port", "GBP", "Learning", "DirectRouting", "MTU", "MacPrefix")

OVERHEADS: Mapping[Family, int] = {4: 50, 6: 70}
"""Bytes that the tunnel adds: IPv4 (20) or IPv6 (40), UDP (8), VXLAN (8), the inner Ethernet header (14)."""

DEFAULT_VNI = 1
KERNELS_PORT = 8472
"""Default port of the kernel's vxlan, which Port 0 selects."""

_VNIS = range(2**24)
_PORTS = range(65536)
_SMALLEST_MTUS: Mapping[Family, int] = {4: 68, 6: 1280}
"""Bytes that IPv4 (RFC 791) and IPv6 (RFC 8200) require of each link."""

_OUTER_MTUS = range(_SMALLEST_MTUS[4] + OVERHEADS[4], 65536)
_STEMS: Mapping[Family, tuple[str, str]] = {4: ("flannel.", "flannel.x"), 6: ("flannel-v6.", "flannel6x")}
"""Prefixes of the device's name before the decimal VNI, and before the hexadecimal VNI if the decimal
number is too long."""

_LONGEST_NAME = 15
"""Maximum number of bytes of a link's name (IFNAMSIZ without the NUL)."""

_LONGEST_SHOWN = 80
"""Maximum number of characters of invalid data in a message."""

_PREFIX = re.compile(r"([0-9A-Fa-f]{2})[-:]([0-9A-Fa-f]{2})")
_PUBLISHED_BITS = 0xFFFF
"""Release 0.20 publishes only these bits of its VNI."""


@lru_cache(maxsize=16)  # cached, because the function is called several times per peer
def _device_name(vni: int, family: Family) -> str:
    decimal, hexadecimal = _STEMS[family]
    name = f"{decimal}{vni}"
    return intern(name if len(name) <= _LONGEST_NAME else f"{hexadecimal}{vni:x}")


class VxlanBackend(Struct, frozen=True, kw_only=True):
    """The vxlan backend of one network.

    Attributes:
        udp_port: port of all hosts; 0 for the kernel's default.
        routes_directly: True if a peer on the underlay's link is the gateway of its subnet, without the
            tunnel.
        outer_mtu: size in bytes of the largest tunnel packet; None for the underlay's MTU.
        mac_prefix: required prefix of the VTEP's MAC address; empty if the config requires none.
        config_warnings: warnings about parts of the config without effect, one line each.
    """

    vni: int = DEFAULT_VNI
    udp_port: int = 0
    has_gbp: bool = False
    learns: bool = False
    routes_directly: bool = False
    outer_mtu: int | None = None
    mac_prefix: bytes = b""
    config_warnings: tuple[str, ...] = ()
    lease_type: str = "vxlan"
    port: None = None
    routed: Routed = "peers"
    families: tuple[Family, ...] = BOTH_FAMILIES
    is_encrypted: bool = False

    @property
    def config_line(self) -> str:
        """The original's log line about the config."""
        gbp, learns, direct = (
            str(flag).lower() for flag in (self.has_gbp, self.learns, self.routes_directly)
        )
        return (
            f"VXLAN config: VNI={self.vni} Port={self.udp_port} GBP={gbp} Learning={learns}"
            f" DirectRouting={direct}"
        )

    @property
    def way(self) -> str:
        """The identity of the data path: the VNI, and packets without the tunnel."""
        return f"vxlan with VNI {self.vni}{' and direct routing' if self.routes_directly else ''}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The packet formats that the lease publishes, because the guard of this host accepts packets
        without the tunnel.
        """
        return (DIRECT,) if self.routes_directly else ()

    @property
    def tunnel_port(self) -> int:
        """UDP port on which this host receives tunnel packets."""
        return self.udp_port or KERNELS_PORT

    def tunnel_port_in(self, family: Family) -> int:
        """Return the UDP port of the tunnel of an address family."""
        return self.tunnel_port

    def device(self, family: Family = 4) -> str:
        """Return the name of the device of a family: `flannel.1`, `flannel-v6.1`.

        If the decimal VNI is too long for a name, the names are, for example, `flannel.xffffff` and
        `flannel6xffffff`.
        """
        return _device_name(self.vni, family)

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> Vtep:
        """Return the VTEP that a new lease publishes; an existing lease keeps its VTEP."""
        return vtep_of(owner, self.vni, self.mac_prefix, family)

    def mtu(self, host: Host) -> int:
        """Return the size of the largest packet of a container, in bytes."""
        return self._mtu(host.underlay, host.family)

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return notes about unusual properties of the backend on this host, one line each."""
        notes = list(self.config_warnings)
        underlay = host.underlay
        if self.outer_mtu is not None and self.outer_mtu > underlay.mtu:
            notes.append(
                f"Backend.MTU is {self.outer_mtu}, and {underlay.link} carries up to {underlay.mtu}, which"
                f" is used; allowed on this host are {_OUTER_MTUS[0]} to {underlay.mtu}"
            )
        if (trap := _checksum_trap(host)) is not None:
            notes.append(f"checksums are not offloaded to {underlay.link}, which reduces throughput: {trap}")
        if (ipsec := vxlan_ipsec_note(host, self.tunnel_port)) is not None:
            notes.append(ipsec)
        return tuple(notes)

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return the missing condition, which is an MTU that is large enough for the tunnel."""
        family: Family = 4 if underlay.ipv6_address is None else 6
        underlay = underlay.in_family(family)
        if self._mtu(underlay, family) >= _SMALLEST_MTUS[family]:
            return None
        needed = _SMALLEST_MTUS[family] + OVERHEADS[family]
        if self.outer_mtu is not None and self.outer_mtu < min(underlay.mtu, needed):
            return f"a Backend.MTU of {needed} or more, which IPv6 needs, instead of {self.outer_mtu}"
        return f"an MTU of {needed} or more on {underlay.link}, which has {underlay.mtu}"

    def plan_host(self, host: Host) -> State:
        """Return the device of the host's family, its address, and the programs of mode flow."""
        device, base = self.device(host.family), host.subnet.network_address
        return State.of(
            Link(
                name=device,
                kind="vxlan",
                mtu=self.mtu(host),
                queue_length=0,
                has_ipv6=host.family == 6,
                alias=host.mark,
                owner=host.device_owner,
                mac=self._mac(host),
                vxlan=Vxlan(
                    vni=self.vni,
                    port=self.tunnel_port,
                    parent=host.underlay.link,
                    local=host.address,
                    has_gbp=self.has_gbp,
                    learns=self.learns,
                    offloads_checksums=_checksum_trap(host) is None,
                ),
            ),
            Address(link=device, address=ip_interface((base, base.max_prefixlen))),
            *(plan_vxlan_programs(host, self._tunnel(host)) if self._caches_flows(host) else ()),
        )

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return the reason why a peer cannot be reached: another backend or network, or invalid data."""
        return self._objection_to(peer, peer.part(host.family), host)

    def _objection_to(self, peer: Lease, part: LeasePart | None, host: Host) -> str | None:
        attributes = peer.attributes
        if attributes.backend_type != self.lease_type:
            return f"Ignoring non-vxlan subnet: type={attributes.backend_type}"
        if part is None:
            return NO_IPV6
        if (why := peer_objection(part, host)) is not None:
            return why
        if self._is_direct(peer, part, host):
            return None
        vtep = part.vtep
        if vtep is None:
            key, data = (
                ("BackendData", attributes.backend_data)
                if host.family == 4
                else ("BackendV6Data", attributes.backend_v6_data)
            )
            return f"error decoding subnet lease JSON: no VtepMAC in {key} {str(data)[:_LONGEST_SHOWN]}"
        if vtep.vni not in (None, self.vni, self.vni & _PUBLISHED_BITS):
            return f"its VNI is {vtep.vni}, not {self.vni}"
        if not is_of_one_device(vtep.mac):
            return f"its VtepMAC {vtep.mac} is not the address of one device"
        if vtep.mac == self._mac(host):
            # The kernel drops frames with the device's own source address.
            return f"its VtepMAC {vtep.mac} is that of this host: is the peer a copy of this host?"
        return None

    def foreseen(self, peer: Lease) -> None:
        """Return nothing, because packets of a peer are received without an object for it."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return the peers that yield to another peer, by subnet, with the reason.

        A MAC address belongs to one host. If peers at several addresses publish the same address, the host
        that published it first has precedence. Therefore a copy, a mistake or a forged lease does not
        redirect its packets. If no host was first, for example after a start without the store, the lowest
        subnet has precedence.
        """
        by_mac: dict[str, list[Lease]] = {}
        for peer in peers:
            vtep = peer.attributes.vtep if host.family == 4 else peer.attributes.vtep_v6
            if vtep is not None:
                by_mac.setdefault(vtep.mac, []).append(peer)
        return {
            subnet: reason
            for mac, sharing in by_mac.items()
            if len(sharing) > 1
            for subnet, reason in self._yielding(mac, sharing, host)
        }

    def guarded_path(self, host: Host) -> GuardedPath:
        """Return the tunnel, and the underlay's link if peers send inner packets directly."""
        direct = (host.underlay.link,) if self.routes_directly else ()
        device = self.device(host.family)
        tunnel = GuardedTunnel(link=device, port=self.tunnel_port, vni=self.vni)
        return GuardedPath(links=(device, *direct), tunnel=tunnel)

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return the programs and entries of bridges in mode flow."""
        if not self._caches_flows(host):
            return State.EMPTY
        return State.of(*plan_last_hops(bridges, host, self._tunnel(host)))

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the neighbour, FDB entry and route of a peer, or only the direct route."""
        part = peer.part(host.family)
        if part is None or self._objection_to(peer, part, host) is not None:
            return State.EMPTY
        if self._is_direct(peer, part, host):
            return State.of(direct_route(part, host))
        device, vtep, base = self.device(host.family), part.vtep, part.subnet.network_address
        assert vtep is not None  # otherwise, there would have been an objection
        return State.of(
            FdbEntry(link=device, mac=vtep.mac, destination=part.address),
            Neighbour(link=device, address=base, mac=vtep.mac),
            Route(
                destination=part.subnet,
                gateway=base,
                link=device,
                metric=usual_metric(part.subnet),
                protocol=host.protocol,
                is_onlink=True,
            ),
        )

    def _caches_flows(self, host: Host) -> bool:
        """Return whether programs are planned. The programs do not compute inner checksums in software."""
        return caches_vxlan_flows(host, self.tunnel_port) and _checksum_trap(host) is None

    def _tunnel(self, host: Host) -> Tunnel:
        device = self.device(host.family)
        return vxlan_tunnel(host, self.tunnel_port, self.mtu(host), link=device, vni=self.vni)

    def _mtu(self, underlay: Underlay, family: Family) -> int:
        outer = underlay.mtu if self.outer_mtu is None else min(self.outer_mtu, underlay.mtu)
        return outer - OVERHEADS[family]

    def _is_direct(self, peer: Lease, part: LeasePart, host: Host) -> bool:
        """Return whether packets to a peer need no tunnel. The guard of a pyflannel host must accept packets
        without the tunnel.
        """
        attributes = peer.attributes
        accepts = attributes.owner is None or DIRECT in attributes.reads
        return self.routes_directly and accepts and host.underlay.reaches(part.address)

    def _yielding(self, mac: str, sharing: Iterable[Lease], host: Host) -> Iterator[tuple[IpNetwork, str]]:
        """Yield the peers with one MAC address that are not planned, with the reason."""
        able = [peer for peer in sharing if self._is_tunnelled(peer, host)]
        able.sort(key=lambda peer: (peer.since, place_of(peer)))
        addresses = [part.address for peer in able if (part := peer.part(host.family)) is not None]
        for peer, address in zip(able[1:], addresses[1:], strict=True):
            first, known = able[0].subnet, able[0].attributes
            if address != addresses[0]:
                yield (
                    peer.subnet,
                    f"its VtepMAC {mac} is also that of {first} at {known.host_text}, which published it"
                    " first and has precedence: if that host is gone, delete its lease; if one is a copy of"
                    " the other, give it its own MAC address",
                )

    def _is_tunnelled(self, peer: Lease, host: Host) -> bool:
        part = peer.part(host.family)
        if part is None or self._is_direct(peer, part, host):
            return False
        return self.objection(peer, host) is None

    def _mac(self, host: Host) -> str:
        derived = vtep_of(host.owner, self.vni, self.mac_prefix, host.family)
        existing = host.lease.attributes
        vtep = existing.vtep if host.family == 4 else existing.vtep_v6
        is_ours = existing.owner is None or existing.owner == host.owner
        return vtep.mac if is_ours and may_stay(vtep, derived) else derived.mac


def parse(config: NetworkConfig) -> VxlanBackend:
    """Return the backend of the config.

    Raises:
        ConfigError: a value is invalid; the message names the key and the value.
    """
    keys = BackendKeys("VXLAN", config.backend)
    return VxlanBackend(
        vni=keys.number("VNI", DEFAULT_VNI, _VNIS),
        udp_port=keys.number("Port", 0, _PORTS, default_means=f"the kernel's, {KERNELS_PORT}"),
        has_gbp=keys.flag("GBP"),
        learns=keys.flag("Learning"),
        routes_directly=keys.flag("DirectRouting"),
        outer_mtu=keys.number("MTU", 0, _OUTER_MTUS, default_means="the MTU of the interface") or None,
        mac_prefix=_mac_prefix(keys),
        config_warnings=ineffective(config, KEYS, BOTH_FAMILIES),
    )


def _mac_prefix(keys: BackendKeys) -> bytes:
    wanted = 'two bytes of the address of one device, such as "0E-2A"'
    text = keys.text("MacPrefix", wanted)
    if text is None:
        return b""
    found = _PREFIX.fullmatch(text)
    prefix = b"" if found is None else bytes.fromhex(found[1] + found[2])
    if not prefix or not is_of_one_device(vtep_mac("", prefix)):
        raise keys.bad("MacPrefix", text, wanted)
    return prefix


def _checksum_trap(host: Host) -> str | None:
    return checksum_trap(host.kernel, host.underlay.driver)
