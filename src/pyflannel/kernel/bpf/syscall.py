"""bpf(2): the system call, and its information on programs and maps. Source: linux/bpf.h, union bpf_attr."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import IntEnum
from functools import cache

from msgspec import Struct

from pyflannel.model.fast_path import Answer

_NUMBERS = {
    "aarch64": 280,
    "armv7l": 386,
    "i686": 357,
    "ppc64le": 361,
    "riscv64": 280,
    "s390x": 351,
    "x86_64": 321,
}
"""asm/unistd.h of each architecture."""

_NAME_BYTES = 16

_INFO = struct.Struct("=IIQ")  # descriptor, size, address
_PROGRAM_INFO = struct.Struct("=II8s32xIIQ16s")  # type, id, tag, …, uid, number of maps, their ids, name
_MAP_INFO = struct.Struct("=6I16s")  # type, id, sizes of key and value, most entries, flags, name


class Command(IntEnum):
    """enum bpf_cmd."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27


class ProgramInfo(Struct, frozen=True, kw_only=True):
    """Information of the kernel about a program; `map_ids` are the identifiers of its maps."""

    id: int
    name: str
    map_ids: tuple[int, ...]


class MapInfo(Struct, frozen=True, kw_only=True):
    """Information of the kernel about a map; sizes in bytes."""

    id: int
    name: str
    type: int
    key_bytes: int
    value_bytes: int
    most_entries: int


def call_bpf(command: Command, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Perform bpf(2) and return its result. The kernel may also write a part of its answer into the
    attributes.

    Raises:
        OSError: with the errno of the kernel; ENOSYS on an architecture whose number of bpf(2) is unknown.
    """
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(
            errno.ENOSYS, f"the number of the system call bpf(2) is unknown on {os.uname().machine}"
        )
    buffer = (
        ctypes.create_string_buffer(attributes, len(attributes))
        if isinstance(attributes, bytes)
        else attributes
    )
    result: int = _libc().syscall(number, int(command), buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def program_info(descriptor: int) -> ProgramInfo:
    """Return the information of the kernel about a program.

    Raises:
        OSError: the descriptor does not refer to a program.
    """
    most = 64
    ids = (ctypes.c_uint32 * most)()
    empty = _PROGRAM_INFO.pack(0, 0, bytes(8), 0, most, ctypes.addressof(ids), bytes(_NAME_BYTES))
    _, identifier, _, _, count, _, name = _PROGRAM_INFO.unpack(_ask_info(descriptor, empty))
    return ProgramInfo(id=identifier, name=_text(name), map_ids=tuple(ids[:count]))


def map_info(descriptor: int) -> MapInfo:
    """Return the information of the kernel about a map.

    Raises:
        OSError: the descriptor does not refer to a map.
    """
    kind, identifier, key, value, most, _, name = _MAP_INFO.unpack(
        _ask_info(descriptor, bytes(_MAP_INFO.size))
    )
    return MapInfo(
        id=identifier, name=_text(name), type=kind, key_bytes=key, value_bytes=value, most_entries=most
    )


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Close the descriptor when the block ends."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _ask_info(descriptor: int, empty: bytes) -> bytes:
    answer = ctypes.create_string_buffer(empty, len(empty))
    call_bpf(Command.OBJ_GET_INFO_BY_FD, _INFO.pack(descriptor, len(answer), ctypes.addressof(answer)))
    return answer.raw


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode("ascii", "replace")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def ask(question: Callable[[], object], absent: Collection[int]) -> tuple[Answer, OSError | None]:
    """Return the answer of a probe, and its error.

    Args:
        question: function that succeeds if the feature is present.
        absent: errnos that mean that the feature is absent. With any other errno, the result is unknown.
    """
    try:
        question()
    except OSError as error:
        return ("absent" if error.errno in absent else "unknown"), error
    return "present", None


def said(error: OSError | None) -> str:
    """Return name and text of an error, such as `EPERM: Operation not permitted`; "" if there is no error."""
    if error is None or error.errno is None:
        return ""
    return f"{errno.errorcode.get(error.errno, f'errno {error.errno}')}: {os.strerror(error.errno)}"
