"""The compiled programs, as the package ships them."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.layout import BUILD_OCTETS

OBJECT_NAME = "fastpath.bpf.o"

_SECTIONS_AT = struct.Struct("<Q")
_SECTION_COUNT = struct.Struct("<HH")  # and which of them has the names
_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, octets, …
_PROGBITS = 1
_EXECUTABLE = 4
_INSTRUCTION = struct.Struct("<BBhi")
_CALL = 0x85


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An ELF object for the kernel.

    Attributes:
        build: the first octets of its SHA-256 digest, by which its programs are known again.
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
    """Return the shipped object; without importlib.resources, which is 3 ms and a megabyte of archives.

    Raises:
        TargetError: the installation lacks it.
    """
    try:
        octets = Path(__file__).with_name(OBJECT_NAME).read_bytes()
    except OSError as error:
        raise TargetError(
            f"the eBPF programs cannot be read: {error}", hint="Install pyflannel again."
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
                if operation == _CALL and registers >> 4 == 0  # of another function of the object: 1
            )
            yield elf[begin : elf.index(0, begin)].decode("ascii"), frozenset(calls)
