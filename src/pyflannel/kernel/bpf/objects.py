"""Access to programs and maps: the compiled object file of the package, and the objects that exist in the
kernel.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.layout import BUILD_BYTES
from pyflannel.kernel.bpf.syscall import Command, call_bpf, map_info, program_info

OBJECT_NAME = "fastpath.bpf.o"

_SECTIONS_AT = struct.Struct("<Q")
_SECTION_COUNT = struct.Struct("<HH")  # number of sections, and the index of the section with their names
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, …
_PROGBITS = 1
_EXECUTABLE = 4
_INSTRUCTION = struct.Struct("<BBhi")
_CALL = 0x85


class ObjectFile(Struct, frozen=True):
    """An ELF object file with programs for the kernel.

    Attributes:
        build: the first bytes of the SHA-256 digest of the file, which identify its programs.
    """

    data: bytes
    build: bytes

    @property
    def helpers(self) -> dict[str, frozenset[int]]:
        """Numbers of the kernel's helpers that programs call, by section; empty for a damaged object file."""
        try:
            return dict(_calls_by_section(self.data))
        except (struct.error, ValueError, UnicodeDecodeError):
            return {}


def read_object() -> ObjectFile:
    """Return the object file of the package. importlib.resources is not used, because it needs 3 ms and 1 MB.

    Raises:
        TargetError: the installation does not contain the object file.
    """
    try:
        data = Path(__file__).with_name(OBJECT_NAME).read_bytes()
    except OSError as error:
        raise TargetError.of(
            "the eBPF programs cannot be read", error, hint="Install pyflannel again."
        ) from error
    return ObjectFile(data, hashlib.sha256(data).digest()[:BUILD_BYTES])


def _calls_by_section(elf: bytes) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield the sections with code, and the numbers of the helpers that the code calls.

    Source: elf(5), 64 bits, little-endian; Documentation/bpf/standardization/instruction-set.rst, calls.
    """
    (at,), (count, names) = _SECTIONS_AT.unpack_from(elf, 0x28), _SECTION_COUNT.unpack_from(elf, 0x3C)
    sections = [_SECTION.unpack_from(elf, at + number * _SECTION.size) for number in range(count)]
    for name_at, kind, flags, _, start, size, *_ in sections:
        if kind == _PROGBITS and flags & _EXECUTABLE and size:
            begin = sections[names][4] + name_at
            code = elf[start : start + size]
            calls = (
                number
                for operation, registers, _, number in _INSTRUCTION.iter_unpack(code)
                if operation == _CALL
                and registers >> 4 == 0  # 1 means another function of the same object file
            )
            yield elf[begin : elf.index(0, begin)].decode("ascii"), frozenset(calls)


# Programs and maps of the kernel, opened by their identifiers.
#
# Opening an object by its identifier requires CAP_SYS_ADMIN. A daemon without this right opens pinned objects
# instead. If the directory for pins is a bpffs, a daemon without CAP_SYS_ADMIN pins each attached program and
# its maps there, with their identifiers as names. The data path never depends on a pin: the hook references
# the program, and the program references its maps.

_ID = struct.Struct("=III")  # id, next id, flags
_NOBODYS = 0x7FFFFFFF
_PREFIXES = ("program-", "map-")
_PIN = struct.Struct("=QII")  # path, descriptor, flags


class KernelObjects:
    """Opens kernel objects by their identifiers, with the pins in `directory`, which need not exist."""

    def __init__(self, directory: str = "") -> None:
        self._directory = directory

    def open_program(self, identifier: int) -> int:
        """Return a descriptor of a program.

        Raises:
            OSError: ENOENT if the program no longer exists. EPERM if this process has no right to open the
                program, and there is no pin.
        """
        return self._open(Command.PROG_GET_FD_BY_ID, identifier, _program_name(identifier))

    def open_map(self, identifier: int) -> int:
        """Return a descriptor of a map.

        Raises:
            OSError: ENOENT if the map no longer exists. EPERM if this process has no right to open the
                map, and there is no pin.
        """
        return self._open(Command.MAP_GET_FD_BY_ID, identifier, _map_name(identifier))

    def pin(self, program: int, maps: Iterable[int]) -> None:
        """Pin a program and its maps, identified by descriptors. Do nothing if there is no bpffs."""
        self._pin(program, _program_name(program_info(program).id))
        for descriptor in maps:
            self._pin(descriptor, _map_name(map_info(descriptor).id))

    def prove(self, program: int) -> None:
        """Check that a daemon with the same rights can find a program, identified by its descriptor, again.

        Raises:
            OSError: EPERM if a daemon with the same rights cannot find the program, and therefore could not
                replace it.
        """
        os.close(self.open_program(program_info(program).id))

    def unpin_all_but(self, programs: Iterable[int], maps: Iterable[int]) -> None:
        """Remove all pins except those of these objects, identified by their identifiers."""
        kept = {*map(_program_name, programs), *map(_map_name, maps)}
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name.startswith(_PREFIXES) and name not in kept:
                    os.unlink(os.path.join(self._directory, name))

    @property
    def directory(self) -> str:
        """The directory for pins, which need not exist."""
        return self._directory

    @property
    def opens_by_identifier(self) -> bool:
        """True if this process may open objects by identifier. To find out, the property opens an identifier
        that does not exist.
        """
        try:
            os.close(call_bpf(Command.PROG_GET_FD_BY_ID, _ID.pack(_NOBODYS, 0, 0)))
        except OSError as error:
            return error.errno == errno.ENOENT
        return True

    @property
    def has_directory(self) -> bool:
        """True if a directory for pins exists."""
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
