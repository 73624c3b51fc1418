"""Programs and maps: the compiled object of the package, and objects that the kernel has already."""

import contextlib
import ctypes
import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.layout import BUILD_OCTETS
from pyflannel.kernel.bpf.syscall import Command, call_bpf, map_info, program_info

OBJECT_NAME = "fastpath.bpf.o"

_SECTIONS_AT = struct.Struct("<Q")
_SECTION_COUNT = struct.Struct("<HH")  # number of sections, and the index of the section with their names
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, …
_PROGBITS = 1
_EXECUTABLE = 4
_INSTRUCTION = struct.Struct("<BBhi")
_CALL = 0x85


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An ELF object for the kernel.

    Attributes:
        build: the first bytes of its SHA-256 digest, which identify its programs.
    """

    octets: bytes
    build: bytes

    @property
    def helpers(self) -> dict[str, frozenset[int]]:
        """The kernel's helpers that programs call, by section of the object; none of a spoilt one."""
        try:
            return dict(_calls_by_section(self.octets))
        except (struct.error, ValueError, UnicodeDecodeError):
            return {}


def read_object() -> ObjectFile:
    """Return the shipped object. importlib.resources is not used, because it costs 3 ms and a megabyte.

    Raises:
        TargetError: the installation lacks it.
    """
    try:
        octets = Path(__file__).with_name(OBJECT_NAME).read_bytes()
    except OSError as error:
        raise TargetError.of(
            "the eBPF programs cannot be read", error, hint="Install pyflannel again."
        ) from error
    return ObjectFile(octets, hashlib.sha256(octets).digest()[:BUILD_OCTETS])


def _calls_by_section(elf: bytes) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield the sections with code, and the numbers of the helpers that are called there.

    Source: elf(5), 64 bits, little-endian; Documentation/bpf/standardization/instruction-set.rst, calls.
    """
    (at,), (count, names) = _SECTIONS_AT.unpack_from(elf, 0x28), _SECTION_COUNT.unpack_from(elf, 0x3C)
    sections = [_SECTION.unpack_from(elf, at + number * _SECTION.size) for number in range(count)]
    for name_at, kind, flags, _, start, octets, *_ in sections:
        if kind == _PROGBITS and flags & _EXECUTABLE and octets:
            begin = sections[names][4] + name_at
            code = elf[start : start + octets]
            calls = (
                number
                for operation, registers, _, number in _INSTRUCTION.iter_unpack(code)
                if operation == _CALL and registers >> 4 == 0  # 1: another function of the object
            )
            yield elf[begin : elf.index(0, begin)].decode("ascii"), frozenset(calls)


# Programs and maps of the kernel, opened by their identifiers.
#
# This requires CAP_SYS_ADMIN. A daemon without this right opens pinned objects instead: if its directory is a
# bpffs, it pins each attached program and its maps there, under their identifiers. The data path never
# depends on a pin: the hook references the program, and the program its maps.

_ID = struct.Struct("=III")  # id, next id, flags
_NOBODYS = 0x7FFFFFFF
_PREFIXES = ("program-", "map-")
_PIN = struct.Struct("=QII")  # path, descriptor, flags


class KernelObjects:
    """Opens objects by identifier, with the pins in `directory`, which need not exist."""

    def __init__(self, directory: str = "") -> None:
        self._directory = directory

    def open_program(self, identifier: int) -> int:
        """Return a descriptor of a program.

        Raises:
            OSError: ENOENT, it is gone; EPERM, there is neither right nor pin.
        """
        return self._open(Command.PROG_GET_FD_BY_ID, identifier, _program_name(identifier))

    def open_map(self, identifier: int) -> int:
        """Return a descriptor of a map.

        Raises:
            OSError: ENOENT, it is gone; EPERM, there is neither right nor pin.
        """
        return self._open(Command.MAP_GET_FD_BY_ID, identifier, _map_name(identifier))

    def pin(self, program: int, maps: Iterable[int]) -> None:
        """Pin a program and its maps, given by descriptors; where there is no bpffs nothing happens."""
        self._pin(program, _program_name(program_info(program).id))
        for descriptor in maps:
            self._pin(descriptor, _map_name(map_info(descriptor).id))

    def prove(self, program: int) -> None:
        """Return when a program, given by descriptor, will be found again by a daemon like this one.

        Raises:
            OSError: EPERM, there is neither right nor pin. No later daemon could replace the program.
        """
        os.close(self.open_program(program_info(program).id))

    def unpin_all_but(self, programs: Iterable[int], maps: Iterable[int]) -> None:
        """Remove the pins of all other objects than these, given by identifiers."""
        kept = {*map(_program_name, programs), *map(_map_name, maps)}
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name.startswith(_PREFIXES) and name not in kept:
                    os.unlink(os.path.join(self._directory, name))

    @property
    def directory(self) -> str:
        """The place for pins, which need not exist."""
        return self._directory

    @property
    def opens_by_identifier(self) -> bool:
        """Whether this process may open objects by identifier. It tries an identifier that does not exist."""
        try:
            os.close(call_bpf(Command.PROG_GET_FD_BY_ID, _ID.pack(_NOBODYS, 0, 0)))
        except OSError as error:
            return error.errno == errno.ENOENT
        return True

    @property
    def has_directory(self) -> bool:
        """Whether there is a place for pins."""
        return bool(self._directory) and os.path.isdir(self._directory)

    def _open(self, command: Command, identifier: int, name: str) -> int:
        try:
            return call_bpf(command, _ID.pack(identifier, 0, 0))
        except OSError as error:
            if error.errno != errno.EPERM or not self._directory:
                raise
            try:
                return self._call_with_path(Command.OBJ_GET, name, 0)
            except OSError:
                raise error from None

    def _pin(self, descriptor: int, name: str) -> None:
        if self.has_directory:
            with contextlib.suppress(OSError):
                self._call_with_path(Command.OBJ_PIN, name, descriptor)

    def _call_with_path(self, command: Command, name: str, descriptor: int) -> int:
        path = ctypes.create_string_buffer(os.fsencode(os.path.join(self._directory, name)))
        return call_bpf(command, _PIN.pack(ctypes.addressof(path), descriptor, 0))


def _program_name(identifier: int) -> str:
    return f"{_PREFIXES[0]}{identifier}"


def _map_name(identifier: int) -> str:
    return f"{_PREFIXES[1]}{identifier}"
