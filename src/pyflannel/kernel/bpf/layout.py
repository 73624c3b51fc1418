"""The layout of the data that the eBPF programs and this process share: settings, keys and values of maps.
See maps.h.

Addresses and ports are in network byte order, and all other values in the byte order of the host.
"""

import socket
import struct
from collections.abc import Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from pyflannel.kernel.bpf.syscall import MapInfo
from pyflannel.model.fast_path import BpfPeer
from pyflannel.model.forwarder import Stranger, StrangerReason
from pyflannel.model.network_config import IpAddress

BUILD_BYTES = 8
"""Length in bytes of the digest that distinguishes the compiled objects of different versions."""

SETTINGS_MAP = ".rodata.setting"
"""The map with the settings of a program; its name is that of the section, cut to the 15 bytes that the
kernel allows."""

_SETTINGS = struct.Struct("=8s16sII4s4s4sHHIIII")
_IDENTITY_BYTES = BUILD_BYTES + 16
_SUBNET = struct.Struct("!II")
_PEER = struct.Struct("!IHBx")  # followed by data that the programs write
_COUNT = struct.Struct("=QQ")
_INDEX = struct.Struct("=I")
_TIME = struct.Struct("=Q")
_SENDER = struct.Struct("=4s4s")
_BYTES = struct.Struct("=Q")
_STRANGER = struct.Struct("=4sI")
_SIGHTING = struct.Struct("=QQ4s4s")
_PERMIT = struct.Struct("=QII")
_READS_UNFINISHED = 1
_VNI_SHIFT = 8
"""The number of reserved bits after the VNI in the VXLAN header (RFC 7348, 5)."""


class MapLayout(Struct, frozen=True, kw_only=True):
    """The properties of a map that programs of this version can share; sizes in bytes.

    Attributes:
        type: enum bpf_map_type.
        most_entries: maximum number of entries, if the number is part of the layout; 0 if any number is
            allowed.
    """

    name: str
    type: int
    key_bytes: int
    value_bytes: int
    most_entries: int = 0

    def describes(self, found: MapInfo) -> bool:
        """Return whether a map of the kernel has this layout."""
        kind = (self.name, self.type, self.key_bytes, self.value_bytes)
        return kind == (
            found.name,
            found.type,
            found.key_bytes,
            found.value_bytes,
        ) and self.most_entries in (0, found.most_entries)


class Outcome(Enum):
    """Results of packets, in the order of maps.h; the value is the name of the counter."""

    ENCAPSULATED = "encapsulated"
    DECAPSULATED = "decapsulated"
    DELIVERED = "delivered"
    REJOINED = "rejoined"
    CACHED_OUT = "cached_out"
    CACHED_IN = "cached_in"
    LEFT_NOT_IPV4 = "left_not_ipv4"
    LEFT_OPTIONS = "left_options"
    LEFT_FRAGMENT = "left_fragment"
    LEFT_EXPIRED = "left_expired"
    LEFT_SEGMENTED = "left_segmented"
    LEFT_LONG = "left_long"
    LEFT_NO_ROUTE = "left_no_route"
    LEFT_UNREADY_PEER = "left_unready_peer"
    LEFT_INCONSISTENT = "left_inconsistent"
    LEFT_NO_ROOM = "left_no_room"
    LEFT_NO_DEVICE = "left_no_device"
    LEFT_STRANGER = "left_stranger"
    IMPOSTOR = "impostor"
    NOT_OURS = "not_ours"
    UNFINISHED = "unfinished"


PEERS = MapLayout(name="flannel_peers", type=11, key_bytes=8, value_bytes=32)  # LPM_TRIE
MACS = MapLayout(name="flannel_macs", type=1, key_bytes=4, value_bytes=8)  # HASH
PORTS = MapLayout(name="flannel_ports", type=25, key_bytes=4, value_bytes=4)  # DEVMAP_HASH
DEVICES = MapLayout(name="flannel_devices", type=25, key_bytes=4, value_bytes=4)  # DEVMAP_HASH
COUNTS = MapLayout(  # PERCPU_ARRAY
    name="flannel_counts", type=6, key_bytes=4, value_bytes=16, most_entries=len(Outcome)
)
BYTES = MapLayout(name="flannel_bytes", type=10, key_bytes=8, value_bytes=8)  # LRU_PERCPU_HASH
DROPPED = MapLayout(name="flannel_dropped", type=9, key_bytes=8, value_bytes=24)  # LRU_HASH
FLOWS = MapLayout(name="flannel_flows", type=9, key_bytes=16, value_bytes=176)  # LRU_HASH
PERMIT = MapLayout(name="flannel_permit", type=2, key_bytes=4, value_bytes=16)  # ARRAY
DIRECT = MapLayout(name="flannel_direct", type=9, key_bytes=4, value_bytes=8)  # LRU_HASH
SHARED = (PEERS, MACS, PORTS, DEVICES, COUNTS, BYTES, DROPPED, FLOWS, PERMIT, DIRECT)


class Settings(Struct, frozen=True, kw_only=True):
    """The settings that are written into a program before it is loaded; links are identified by their
    indexes.

    Attributes:
        build: digest of the compiled object that contains the program.
        mtu: size in bytes of the largest accepted packet, unless the packet will be segmented.
        gro_index: link on whose other end GRO coalesces TCP segments; 0 if there is none.
        caches_flows: True in the mode flow.
        vni: VXLAN network identifier; None if the tunnel is not a vxlan device of the kernel.
    """

    build: bytes
    device: str
    device_index: int
    underlay_index: int
    address: IPv4Address
    subnet: IPv4Network
    port: int
    mtu: int
    gro_index: int = 0
    caches_flows: bool = False
    vni: int | None = None


def pack_settings(settings: Settings) -> bytes:
    """Return the settings in the layout of `struct settings`."""
    return _SETTINGS.pack(
        settings.build,
        settings.device.encode(),
        settings.device_index,
        settings.underlay_index,
        settings.address.packed,
        settings.subnet.network_address.packed,
        settings.subnet.netmask.packed,
        socket.htons(settings.port),
        settings.mtu,
        settings.gro_index,
        settings.caches_flows,
        settings.vni is not None,
        socket.htonl((settings.vni or 0) << _VNI_SHIFT),
    )


def devices_of(settings: Settings) -> set[int]:
    """Return the indexes of the links to which a program sends."""
    return {settings.device_index, settings.underlay_index, settings.gro_index} - {0}


def unpack_settings(data: bytes) -> Settings | None:
    """Return the settings of a program; None if the bytes are not settings of any version.

    The digest of the build and the device have the same position in every version, so that each version
    recognizes the programs of pyflannel. The other settings of another version may be meaningless.
    """
    if len(data) < _IDENTITY_BYTES:
        return None
    whole = data[: _SETTINGS.size].ljust(_SETTINGS.size, b"\0")
    (
        build,
        device,
        device_index,
        underlay_index,
        address,
        base,
        mask,
        port,
        mtu,
        gro_index,
        caches_flows,
        is_vxlan,
        vni,
    ) = _SETTINGS.unpack(whole)
    try:
        subnet = IPv4Network((base, str(IPv4Address(mask))))
    except ValueError:
        subnet = IPv4Network(0)
    return Settings(
        build=build,
        device=device.rstrip(b"\0").decode("ascii", "replace"),
        device_index=device_index,
        underlay_index=underlay_index,
        address=IPv4Address(address),
        subnet=subnet,
        port=socket.ntohs(port),
        mtu=mtu,
        gro_index=gro_index,
        caches_flows=bool(caches_flows),
        vni=socket.ntohl(vni) >> _VNI_SHIFT if is_vxlan else None,
    )


def pack_subnet(subnet: IPv4Network) -> bytes:
    """Return the subnet in the layout of `struct subnet`."""
    return _SUBNET.pack(socket.htonl(subnet.prefixlen), int(subnet.network_address))


def pack_peer(peer: BpfPeer) -> bytes:
    """Return the peer in the layout of `struct peer`, without the data that the programs write."""
    packed = _PEER.pack(int(peer.address), peer.port, _READS_UNFINISHED if peer.is_direct else 0)
    return packed.ljust(PEERS.value_bytes, b"\0")


def is_peer(peer: BpfPeer, value: bytes) -> bool:
    """Return whether `struct peer` belongs to the peer, ignoring the data that the programs write."""
    return value[: _PEER.size] == pack_peer(peer)[: _PEER.size]


def unpack_peer(device: str, key: bytes, value: bytes) -> BpfPeer:
    """Return the peer in an entry of the table of peers. `device` is the device of the tunnel.

    The kernel ignores the bits of the key after its prefix.
    """
    prefix_length, base = _SUBNET.unpack(key)
    address, port, flags = _PEER.unpack_from(value)
    return BpfPeer(
        device=device,
        subnet=IPv4Network((base, socket.ntohl(prefix_length)), strict=False),
        address=IPv4Address(address),
        port=port,
        is_direct=bool(flags & _READS_UNFINISHED),
    )


def pack_mac(mac: str) -> bytes:
    """Return the MAC address in the layout of `struct mac`."""
    return bytes.fromhex(mac.replace(":", "")) + bytes(2)


def unpack_mac(value: bytes) -> str:
    """Return the MAC address in `struct mac`."""
    return value[:6].hex(":")


def pack_port(link: int) -> bytes:
    """Return the entry of the map of devices for the link with this index."""
    return _INDEX.pack(link)


def pack_time(time_ns: int) -> bytes:
    """Return the bytes of a time, which is in nanoseconds of CLOCK_BOOTTIME."""
    return _TIME.pack(time_ns)


def unpack_port(value: bytes) -> int:
    """Return the index of the link in an entry of the map of devices."""
    return int(_INDEX.unpack(value)[0])


class Permit(Struct, frozen=True, kw_only=True):
    """The permit that lets the programs cache the firewall's decisions about flows.

    Attributes:
        until_ns: end of the permit, in nanoseconds of CLOCK_BOOTTIME.
        generation: number of the ruleset; decisions that were cached under another generation are not valid.
        protocols: the sum of CACHES_UDP and CACHES_TCP, for the protocols whose flows may be cached.
    """

    until_ns: int = 0
    generation: int = 0
    protocols: int = 0


CACHES_UDP, CACHES_TCP = 1, 2


def pack_permit(permit: Permit) -> bytes:
    """Return the permit in the layout of `struct permit`."""
    return _PERMIT.pack(permit.until_ns, permit.generation, permit.protocols)


def unpack_permit(value: bytes) -> Permit:
    """Return the permit in `struct permit`."""
    until_ns, generation, protocols = _PERMIT.unpack(value)
    return Permit(until_ns=until_ns, generation=generation, protocols=protocols)


def unpack_counts(by_key: Mapping[bytes, bytes]) -> dict[Outcome, tuple[int, int]]:
    """Return packets and bytes by outcome; a value contains the counters of each processor."""
    counts: dict[Outcome, tuple[int, int]] = {}
    for index, outcome in enumerate(Outcome):
        each = list(_COUNT.iter_unpack(by_key.get(_INDEX.pack(index), b"")))
        counts[outcome] = sum(packets for packets, _ in each), sum(size for _, size in each)
    return counts


Sender = tuple[IpAddress, IpAddress]
"""The outer source of datagrams, and the first address of the subnet of their inner sources. Both are IPv4
addresses. The subnet has the prefix length of this host's subnet."""


def pack_sender(sender: Sender) -> bytes:
    """Return the sender in the layout of `struct sender`."""
    return _SENDER.pack(*(address.packed for address in sender))


def unpack_sender(key: bytes) -> Sender:
    """Return the sender in `struct sender`."""
    address, subnet = _SENDER.unpack(key)
    return IPv4Address(address), IPv4Address(subnet)


def unpack_bytes(value: bytes) -> int:
    """Return the bytes from a sender; `value` contains one number for each processor."""
    return sum(size for (size,) in _BYTES.iter_unpack(value))


_TURNED_AWAY: Mapping[int, StrangerReason] = {
    list(Outcome).index(Outcome.IMPOSTOR): "impostor",
    list(Outcome).index(Outcome.NOT_OURS): "not_ours",
}


def unpack_stranger(key: bytes, value: bytes, now_ns: int) -> Stranger | None:
    """Return the sender in an entry of the table of dropped packets; None for an outcome of another version.

    Args:
        key: `struct stranger`.
        value: `struct sighting`.
        now_ns: the current time, in nanoseconds of CLOCK_BOOTTIME.
    """
    address, outcome = _STRANGER.unpack(key)
    packets, seen_at, source, destination = _SIGHTING.unpack(value)
    if (reason := _TURNED_AWAY.get(outcome)) is None:
        return None
    return Stranger(
        address=IPv4Address(address),
        reason=reason,
        packets=packets,
        age_s=max(0, now_ns - seen_at) / 1e9,
        inner_source=IPv4Address(source),
        inner_destination=IPv4Address(destination),
    )
