"""Entries of a map, many at a time. Source: linux/bpf.h, BPF_MAP_*_BATCH (kernel 5.6, for a trie 5.13)."""

import ctypes
import errno
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

from pyflannel.kernel.bpf.syscall import Command, call_bpf

_Buffer: TypeAlias = ctypes.Array[ctypes.c_char]

_ELEMENT = struct.Struct("=I4xQQQ")  # map, key, value or next key, flags
_BATCH = struct.Struct("=4QIIQQ")  # token in, token out, keys, values, count, map, two sorts of flags
_COUNT_AT = 32

_ROOM: Final = 4096
"""Entries that are asked for in one call."""

NO_BATCHES = 524
"""ENOTSUPP, which is the kernel's own: this sort of map knows no batches."""


def update_entries(map_descriptor: int, keys: Sequence[bytes], values: Sequence[bytes]) -> dict[int, OSError]:
    """Make or replace entries, in order; return the refused by their place.

    Keys and values come apart: ten thousand pairs would set the garbage collector going.
    """
    return _change(Command.MAP_UPDATE_BATCH, Command.MAP_UPDATE_ELEM, map_descriptor, keys, values)


def delete_entries(map_descriptor: int, keys: Sequence[bytes]) -> dict[int, OSError]:
    """Delete the entries with these keys, in order; return the refused by their place.

    One that is not there is what was wanted.
    """
    refused = _change(Command.MAP_DELETE_BATCH, Command.MAP_DELETE_ELEM, map_descriptor, keys, ())
    return {place: error for place, error in refused.items() if error.errno != errno.ENOENT}


def read_entries(map_descriptor: int, key_octets: int, value_octets: int) -> dict[bytes, bytes]:
    """Return all entries of a map, by key. One that comes or goes in the meantime may be there or not.

    Raises:
        OSError: the map cannot be read.
    """
    entries: dict[bytes, bytes] = {}
    key: _Buffer | None = None
    value = ctypes.create_string_buffer(value_octets)
    while True:
        following = ctypes.create_string_buffer(key_octets)
        try:
            call_bpf(Command.MAP_GET_NEXT_KEY, _element(map_descriptor, _address(key), _address(following)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return entries
            raise
        key = following
        try:
            call_bpf(Command.MAP_LOOKUP_ELEM, _element(map_descriptor, _address(key), _address(value)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            entries[key.raw] = value.raw


def read_entries_at_once(map_descriptor: int, key_octets: int, value_octets: int) -> dict[bytes, bytes]:
    """Return all entries of a map, by key; of one that knows no batches each by itself.

    Raises:
        OSError: the map cannot be read.
    """
    entries: dict[bytes, bytes] = {}
    keys = ctypes.create_string_buffer(_ROOM * key_octets)
    values = ctypes.create_string_buffer(_ROOM * value_octets)
    before: _Buffer | None = None
    while True:
        after = ctypes.create_string_buffer(key_octets)
        batch = _batch(map_descriptor, _ROOM, _address(keys), _address(values), before, after)
        try:
            call_bpf(Command.MAP_LOOKUP_BATCH, batch)
            is_last = False
        except OSError as error:
            if error.errno in (NO_BATCHES, errno.EINVAL):
                return read_entries(map_descriptor, key_octets, value_octets)
            if error.errno != errno.ENOENT:
                raise
            is_last = True
        count = _count(batch)
        keys_read, values_read = keys.raw[: count * key_octets], values.raw[: count * value_octets]
        for place in range(count):
            key = keys_read[place * key_octets : (place + 1) * key_octets]
            entries[key] = values_read[place * value_octets : (place + 1) * value_octets]
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
    """Change entries in batches; a batch ends before the first that is refused, which is tried alone."""
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
                # Where no entry was looked at, the number is still the one that was asked for.
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
    """Octets of equal length, one behind the other, as the kernel reads them; it lives as long as its use."""

    def __init__(self, each: Sequence[bytes]) -> None:
        self._buffer = _buffer(b"".join(each))
        self._octets = len(each[0]) if each else 0

    def at(self, place: int) -> int:
        """Return the address of one of them; 0 where they are empty."""
        return _address(self._buffer) + place * self._octets if self._octets else 0


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


def _buffer(octets: bytes) -> _Buffer:
    return ctypes.create_string_buffer(octets, len(octets))


def _address(buffer: _Buffer | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)
