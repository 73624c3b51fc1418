"""The maps that the programs of one tunnel share. One system call reads or writes many entries of a map."""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import TypeAlias

from pyflannel.kernel.bpf.layout import (
    BYTES,
    COUNTS,
    DEVICES,
    DIRECT,
    DROPPED,
    MACS,
    PEERS,
    PERMIT,
    PORTS,
    Outcome,
    Permit,
    Sender,
    is_peer,
    pack_mac,
    pack_peer,
    pack_permit,
    pack_port,
    pack_sender,
    pack_subnet,
    pack_time,
    unpack_bytes,
    unpack_counts,
    unpack_mac,
    unpack_peer,
    unpack_permit,
    unpack_port,
    unpack_sender,
    unpack_stranger,
)
from pyflannel.kernel.bpf.syscall import Command, call_bpf, map_info
from pyflannel.kernel.network.device_ioctls import link_index
from pyflannel.model.fast_path import BpfContainer, BpfPeer
from pyflannel.model.forwarder import Stranger
from pyflannel.model.status import Notice

_Buffer: TypeAlias = ctypes.Array[ctypes.c_char]

_ELEMENT = struct.Struct("=I4xQQQ")  # fields: map, key, value or next key, flags
_BATCH = struct.Struct("=4QIIQQ")  # positions before and after, keys, values, count, map, flags (two)
_COUNT_AT = 32

_ROOM_BYTES, _LEAST_ROOM = 32768, 64
"""Maximum length in bytes of the values that one call reads, and least number of entries that it requests. A
larger buffer needs memory from the kernel, which is refused at a limit of the process."""

NO_BATCHES = 524
"""ENOTSUPP, which exists only in the kernel: this type of map does not support batches."""


def update_entries(map_descriptor: int, keys: Sequence[bytes], values: Sequence[bytes]) -> dict[int, OSError]:
    """Create or replace entries, in order; return the errors of the refused entries by position.

    Keys and values are separate arguments, because ten thousand pairs would trigger a garbage collection.
    """
    return _change(Command.MAP_UPDATE_BATCH, Command.MAP_UPDATE_ELEM, map_descriptor, keys, values)


def delete_entries(map_descriptor: int, keys: Sequence[bytes]) -> dict[int, OSError]:
    """Delete the entries with these keys, in order; return the errors of the refused entries by position.

    A missing entry counts as deleted.
    """
    refused = _change(Command.MAP_DELETE_BATCH, Command.MAP_DELETE_ELEM, map_descriptor, keys, ())
    return {place: error for place, error in refused.items() if error.errno != errno.ENOENT}


def read_entries(map_descriptor: int, key_bytes: int, value_bytes: int) -> dict[bytes, bytes]:
    """Return all entries of a map, as a mapping by key. An entry that changes during the read may be missing.

    Raises:
        OSError: the map cannot be read.
    """
    entries: dict[bytes, bytes] = {}
    key: _Buffer | None = None
    value = ctypes.create_string_buffer(value_bytes)
    while True:
        following = ctypes.create_string_buffer(key_bytes)
        try:
            call_bpf(Command.MAP_GET_NEXT_KEY, _element(map_descriptor, _address(key), _address(following)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return entries
            raise
        key = following
        if _look_up(map_descriptor, key, value):
            entries[key.raw] = value.raw


def read_entry(map_descriptor: int, key: bytes, value_bytes: int) -> bytes | None:
    """Return the value of an entry; None if the entry does not exist.

    Raises:
        OSError: the map cannot be read.
    """
    value = ctypes.create_string_buffer(value_bytes)
    return value.raw if _look_up(map_descriptor, _buffer(key), value) else None


def _look_up(map_descriptor: int, key: _Buffer, value: _Buffer) -> bool:
    """Write the value of an entry into `value`; return whether the entry exists."""
    try:
        call_bpf(Command.MAP_LOOKUP_ELEM, _element(map_descriptor, _address(key), _address(value)))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def read_entries_at_once(map_descriptor: int, key_bytes: int, value_bytes: int) -> dict[bytes, bytes]:
    """Return all entries of a map, as a mapping by key. If the map does not support batches, read each entry
    separately.

    Raises:
        OSError: the map cannot be read.
    """
    entries: dict[bytes, bytes] = {}
    room = max(_LEAST_ROOM, _ROOM_BYTES // value_bytes)
    keys = ctypes.create_string_buffer(room * key_bytes)
    values = ctypes.create_string_buffer(room * value_bytes)
    before: _Buffer | None = None
    while True:
        after = ctypes.create_string_buffer(key_bytes)
        batch = _batch(map_descriptor, room, _address(keys), _address(values), before, after)
        try:
            call_bpf(Command.MAP_LOOKUP_BATCH, batch)
            is_last = False
        except OSError as error:
            if error.errno in (NO_BATCHES, errno.EINVAL):
                return read_entries(map_descriptor, key_bytes, value_bytes)
            if error.errno != errno.ENOENT:
                raise
            is_last = True
        keys_read, values_read = keys.raw, values.raw
        for place in range(_count(batch)):
            key = keys_read[place * key_bytes : (place + 1) * key_bytes]
            entries[key] = values_read[place * value_bytes : (place + 1) * value_bytes]
        if is_last:
            return entries
        before = after


def _change(
    batch_command: Command,
    command: Command,
    map_descriptor: int,
    keys: Sequence[bytes],
    values: Sequence[bytes],
) -> dict[int, OSError]:
    """Change entries in batches; a batch ends before the first refused entry, which is then tried alone."""
    refused: dict[int, OSError] = {}
    key_row, value_row = _Row(keys), _Row(values)
    has_batches, start = True, 0
    while start < len(keys):
        left = len(keys) - start
        if has_batches and left > 1:
            batch = _batch(map_descriptor, left, key_row.at(start), value_row.at(start))
            try:
                call_bpf(batch_command, batch)
            except OSError as error:
                done = _count(batch)
                # If the kernel processed no entry, the returned number still equals the requested number.
                has_batches = error.errno != NO_BATCHES and done < left
                start += done if has_batches else 0
            else:
                break
        try:
            call_bpf(command, _element(map_descriptor, key_row.at(start), value_row.at(start)))
        except OSError as error:
            refused[start] = error
        start += 1
    return refused


class _Row:
    """Values of equal length, one after the other in a buffer for the kernel. The buffer must exist during
    the call.
    """

    def __init__(self, each: Sequence[bytes]) -> None:
        self._buffer = _buffer(b"".join(each))
        self._entry_bytes = len(each[0]) if each else 0

    def at(self, place: int) -> int:
        """Return the address of the value at a position; 0 if the values are empty."""
        return _address(self._buffer) + place * self._entry_bytes if self._entry_bytes else 0


def _element(map_descriptor: int, key: int, value: int) -> bytes:
    return _ELEMENT.pack(map_descriptor, key, value, 0)


def _batch(
    map_descriptor: int,
    count: int,
    keys: int,
    values: int,
    before: _Buffer | None = None,
    after: _Buffer | None = None,
) -> _Buffer:
    return _buffer(_BATCH.pack(_address(before), _address(after), keys, values, count, map_descriptor, 0, 0))


def _count(batch: _Buffer) -> int:
    return int(struct.unpack_from("=I", batch, _COUNT_AT)[0])


def _buffer(data: bytes) -> _Buffer:
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: _Buffer | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


_FULL = (errno.ENOSPC, errno.E2BIG)
"""Error codes that the kernel returns for a full trie and for a full hash."""


class TunnelMaps:
    """Descriptors of a tunnel's maps, by the name of the map. A map exists while a program or a descriptor
    refers to it.
    """

    def __init__(self, device: str, descriptors: Mapping[str, int]) -> None:
        self._device = device
        self._descriptors = dict(descriptors)
        known = [map_info(descriptor) for descriptor in descriptors.values()]
        self.ids = frozenset(one.id for one in known)
        self._room = {one.name: one.most_entries for one in known}
        self._crowded_out: dict[str, int] = {}

    @property
    def notices(self) -> list[Notice]:
        """Messages about the tables that were full in the latest scan."""
        ways = {
            PEERS.name: ("peers", "go through user space"),
            PORTS.name: ("containers", "pass through the bridge"),
        }
        return [
            Notice(f"the fast path has room for {self._room[table]} {whom}: packets to {count} more {way}")
            for table, count in self._crowded_out.items()
            if count
            for whom, way in [ways[table]]
        ]

    @property
    def descriptors(self) -> Mapping[str, int]:
        """The maps by their names."""
        return self._descriptors

    def close(self) -> None:
        """Close the descriptors of the maps."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def peers(self, planned: Iterable[BpfPeer]) -> list[BpfPeer]:
        """Return the entries of the table of peers; if an entry is as planned, return the object of the plan
        itself.

        If the table is full, the planned entries that do not fit count as present: user space carries their
        packets, and a repair is not possible.

        Raises:
            OSError: the map cannot be read.
        """
        entries = read_entries_at_once(self._descriptors[PEERS.name], PEERS.key_bytes, PEERS.value_bytes)
        is_full = len(entries) >= self._room[PEERS.name]
        found, missing = [], []
        for peer in planned:  # this cache avoids thousands of equal objects
            key = pack_subnet(peer.subnet)
            value = entries.get(key)
            if value is None:
                if is_full:
                    missing.append(peer)
            elif is_peer(peer, value):
                found.append(peer)
                del entries[key]
        found += [unpack_peer(self._device, key, value) for key, value in entries.items()]
        self._crowded_out[PEERS.name] = len(missing)
        return found + missing

    def put_peers(self, peers: Sequence[BpfPeer]) -> dict[int, OSError]:
        """Create or replace entries while there is space; return the errors of refused entries by
        position.
        """
        descriptor = self._descriptors[PEERS.name]
        keys, values = [pack_subnet(peer.subnet) for peer in peers], [pack_peer(peer) for peer in peers]
        refused = update_entries(descriptor, keys, values)
        for place in [place for place, error in refused.items() if error.errno in _FULL]:
            # Before Linux 6.13, a full trie refuses even to replace an entry. A wrong entry is worse than a
            # missing entry.
            delete_entries(descriptor, [keys[place]])
            update_entries(descriptor, [keys[place]], [values[place]])
            del refused[place]
        return refused

    def remove_peers(self, subnets: Sequence[IPv4Network]) -> dict[int, OSError]:
        """Remove the entries that exist; return the errors of the refused removals by position."""
        return delete_entries(self._descriptors[PEERS.name], [pack_subnet(subnet) for subnet in subnets])

    def containers(
        self, names: Mapping[int, str], planned: Iterable[BpfContainer] = ()
    ) -> list[BpfContainer]:
        """Return the entries of the table of containers; `names` contains the names of the links by index.

        An entry of a deleted device is omitted, because the kernel already removed a part of the entry. If
        the table is full, the planned entries that do not fit count as present, because the bridge carries
        their packets.

        Raises:
            OSError: the maps cannot be read.
        """
        macs = read_entries(self._descriptors[MACS.name], MACS.key_bytes, MACS.value_bytes)
        ports = read_entries(self._descriptors[PORTS.name], PORTS.key_bytes, PORTS.value_bytes)
        found = [
            BpfContainer(
                device=self._device,
                address=IPv4Address(key),
                mac=unpack_mac(mac),
                link=names.get(unpack_port(ports[key]) if key in ports else 0, ""),
            )
            for key, mac in macs.items()
        ]
        is_full = len(ports) >= self._room[PORTS.name]
        missing = [one for one in planned if is_full and one.address.packed not in macs]
        self._crowded_out[PORTS.name] = len(missing)
        return found + missing

    def put_container(self, container: BpfContainer) -> None:
        """Create or replace an entry, if there is space.

        Raises:
            OSError: the link does not exist.
        """
        key, port = container.address.packed, pack_port(link_index(container.link))
        refused = update_entries(self._descriptors[PORTS.name], [key], [port])
        if any(error.errno in _FULL for error in refused.values()):
            return
        _raise_any(refused)
        _raise_any(update_entries(self._descriptors[MACS.name], [key], [pack_mac(container.mac)]))

    def remove_container(self, address: IPv4Address) -> None:
        """Remove an entry, if it exists.

        Raises:
            OSError: the kernel refused.
        """
        for layout in (MACS, PORTS):
            _raise_any(delete_entries(self._descriptors[layout.name], [address.packed]))

    def devices(self) -> set[int]:
        """Return the indexes of the links to which programs may send.

        Raises:
            OSError: the map cannot be read.
        """
        entries = read_entries(self._descriptors[DEVICES.name], DEVICES.key_bytes, DEVICES.value_bytes)
        return {unpack_port(value) for value in entries.values()}

    def put_device(self, link: int) -> None:
        """Let programs send to the link with this index, while it exists.

        Raises:
            OSError: the link does not exist.
        """
        if link in self.devices():
            return  # a second write would remove the entry for a moment, and a packet would be lost
        _raise_any(update_entries(self._descriptors[DEVICES.name], [pack_port(link)], [pack_port(link)]))

    def permit(self) -> Permit:
        """Return the permit to cache flows.

        Raises:
            OSError: the map cannot be read.
        """
        entries = read_entries(self._descriptors[PERMIT.name], PERMIT.key_bytes, PERMIT.value_bytes)
        return unpack_permit(entries[bytes(PERMIT.key_bytes)])

    def put_permit(self, permit: Permit) -> None:
        """Permit to cache flows, or forbid it.

        Raises:
            OSError: the kernel refused.
        """
        key = bytes(PERMIT.key_bytes)
        _raise_any(update_entries(self._descriptors[PERMIT.name], [key], [pack_permit(permit)]))

    def put_direct_links(self, links: Collection[int], until_ns: int) -> None:
        """Let packets of cached flows skip these veths until this time.

        Raises:
            OSError: the kernel refused.
        """
        until = [pack_time(until_ns)] * len(links)
        _raise_any(update_entries(self._descriptors[DIRECT.name], [pack_port(one) for one in links], until))

    def counts(self) -> dict[Outcome, tuple[int, int]]:
        """Return the numbers of packets and bytes by outcome, since the creation of the maps.

        Raises:
            OSError: the map cannot be read.
        """
        value_bytes = COUNTS.value_bytes * possible_processors()
        return unpack_counts(read_entries(self._descriptors[COUNTS.name], COUNTS.key_bytes, value_bytes))

    def received(self) -> dict[Sender, int]:
        """Return the bytes of the datagrams that the programs decapsulated since the creation of the maps, by
        sender.

        Raises:
            OSError: the map cannot be read.
        """
        value_bytes = BYTES.value_bytes * possible_processors()
        entries = read_entries_at_once(self._descriptors[BYTES.name], BYTES.key_bytes, value_bytes)
        return {unpack_sender(key): unpack_bytes(value) for key, value in entries.items()}

    def received_from(self, sender: Sender) -> int:
        """Return the bytes of the datagrams from a sender that the programs decapsulated since the creation
        of the maps.

        Raises:
            OSError: the map cannot be read.
        """
        value_bytes = BYTES.value_bytes * possible_processors()
        value = read_entry(self._descriptors[BYTES.name], pack_sender(sender), value_bytes)
        return 0 if value is None else unpack_bytes(value)

    def strangers(self) -> list[Stranger]:
        """Return the latest senders whose packets the guard dropped since the creation of the maps.

        Raises:
            OSError: the map cannot be read.
        """
        descriptor = self._descriptors[DROPPED.name]
        entries = read_entries_at_once(descriptor, DROPPED.key_bytes, DROPPED.value_bytes)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found = (unpack_stranger(key, value, now_ns) for key, value in entries.items())
        return [stranger for stranger in found if stranger is not None]


def _raise_any(refused: Mapping[int, OSError]) -> None:
    for error in refused.values():
        raise error


def possible_processors() -> int:
    """Return the number of processors for which the kernel keeps counters (bpf(2), per-CPU maps)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return 1 + int(file.read().strip().replace(",", "-").rsplit("-", 1)[-1])
