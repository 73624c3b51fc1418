"""The functions of libbpf that pyflannel uses, through ctypes, to load an object file into the kernel.

libbpf implements relocation, BTF and the differences of older kernels. Source: libbpf.h, version 1.0 or
later.
"""

import ctypes
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_void_p
from typing import Any, NamedTuple

from pyflannel.errors import TargetError, is_permanent
from pyflannel.kernel.bpf.objects import ObjectFile

LIBRARY = "libbpf.so.1"

_SETTINGS_SECTION = ".rodata.settings"

_LOG_BYTES = 1 << 20
_LOG_LINES = 3
"""Number of lines from the end of the verifier's log that a message contains. The last lines of the log name
the refused instruction."""

_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__set_log_buf": (c_int, (c_void_p, c_char_p, c_size_t)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, c_bool)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_set_print": (c_void_p, (c_void_p,)),
}


class Loaded(NamedTuple):
    """Descriptors of a program, and of the map of its settings."""

    program: int
    settings: int


class Libbpf:
    """The loaded library.

    Raises:
        TargetError: libbpf is not installed, or too old.
    """

    def __init__(self, name: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(name, use_errno=True)
            for function, (result, arguments) in _SIGNATURES.items():
                called = getattr(self._library, function)
                called.restype, called.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise TargetError(
                f"libbpf cannot be used: {error}",
                hint="Install libbpf 1.0 or later (Debian: libbpf1, Fedora: libbpf).",
                is_permanent=isinstance(error, AttributeError) or "No such file" in str(error),
            ) from error
        self._library.libbpf_set_print(None)  # otherwise, libbpf would write messages to standard error

    @property
    def version(self) -> str:
        """Version of the library, for example `v1.1`."""
        version: bytes = self._library.libbpf_version_string()
        return version.decode("ascii", "replace")

    def create_maps(self, object_file: ObjectFile, names: Collection[str]) -> dict[str, int]:
        """Create the maps that the programs share, and return their descriptors by name.

        Raises:
            TargetError: the kernel refused.
        """
        with self._open(object_file) as opened:
            maps = self._named("map", opened)
            for program in self._named("program", opened).values():
                self._library.bpf_program__set_autoload(program, False)
            for name, of_object in maps.items():
                self._library.bpf_map__set_autocreate(of_object, name in names)
            self._load(opened, "the maps", None)
            return dict(
                zip(names, _kept([self._library.bpf_map__fd(maps[name]) for name in names]), strict=True)
            )

    def load_program(
        self, object_file: ObjectFile, name: str, settings: bytes, maps: Mapping[str, int]
    ) -> Loaded:
        """Load a program with these settings and these shared maps, identified by descriptors, and return the
        program.

        Raises:
            TargetError: the kernel refused the program; the message contains the last lines of the verifier's
                log.
        """
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with self._open(object_file) as opened:
            programs = self._named("program", opened)
            for other, program in programs.items():
                self._library.bpf_program__set_autoload(program, other == name)
            self._library.bpf_program__set_log_buf(programs[name], log, len(log))
            maps_of_object = self._named("map", opened)
            for map_name, of_object in maps_of_object.items():
                if map_name == _SETTINGS_SECTION:
                    self._write_initial(of_object, settings)
                elif self._library.bpf_map__reuse_fd(of_object, maps[map_name]) < 0:
                    raise _refused(f"the map {map_name}", ctypes.get_errno(), "")
            self._load(opened, f"the program {name}", log)
            made = self._library.bpf_program__fd(programs[name])
            settings_map = self._library.bpf_map__fd(maps_of_object[_SETTINGS_SECTION])
            return Loaded(*_kept([made, settings_map]))

    @contextmanager
    def _open(self, object_file: ObjectFile) -> Iterator[c_void_p]:
        opened = self._library.bpf_object__open_mem(object_file.data, len(object_file.data), None)
        if not opened:
            code = ctypes.get_errno()
            raise TargetError(
                f"the object file of the eBPF programs is damaged: {os.strerror(code)}",
                hint="Install pyflannel again.",
                is_permanent=is_permanent(code),
            )
        try:
            yield opened
        finally:
            self._library.bpf_object__close(opened)

    def _named(self, sort: str, opened: c_void_p) -> dict[str, c_void_p]:
        """Return the object's programs or maps by their names."""
        following = getattr(self._library, f"bpf_object__next_{sort}")
        name_of = getattr(self._library, f"bpf_{sort}__name")
        named: dict[str, c_void_p] = {}
        one = following(opened, None)
        while one:
            named[name_of(one).decode()] = one
            one = following(opened, one)
        return named

    def _write_initial(self, of_object: c_void_p, data: bytes) -> None:
        size = c_size_t()
        initial = self._library.bpf_map__initial_value(of_object, ctypes.byref(size))
        if size.value != len(data):
            raise TargetError(
                f"the eBPF programs need {size.value} bytes of settings, but {len(data)} were given",
                hint="Install pyflannel again: its object file belongs to another version.",
                is_permanent=True,
            )
        ctypes.memmove(initial, data, len(data))

    def _load(self, opened: c_void_p, what: str, log: "ctypes.Array[ctypes.c_char] | None") -> None:
        code = -self._library.bpf_object__load(opened)
        if code > 0:
            raise _refused(what, code, log.value.decode("ascii", "replace") if log else "")


def _kept(descriptors: Iterable[int]) -> list[int]:
    """Return copies of the descriptors, which remain open when the object is closed.

    Raises:
        OSError: no file descriptor is free.
    """
    with ExitStack() as on_failure:
        kept = []
        for descriptor in descriptors:
            kept.append(os.dup(descriptor))
            on_failure.callback(os.close, kept[-1])
        on_failure.pop_all()
        return kept


def _refused(what: str, code: int, log: str) -> TargetError:
    """Return the error for an operation that the kernel refused, with the reason from the verifier's log."""
    name = errno.errorcode.get(code, f"errno {code}")
    message = f"kernel {os.uname().release} refused {what}: {name}: {os.strerror(code)}"
    hint = "Look at the kernel's log (dmesg) for the reason."
    if lines := useful_lines(log):
        message = f"{message}; its verifier said: {' / '.join(lines)}"
        hint = "Report this defect with the version of the kernel."
    elif code in (errno.EPERM, errno.EACCES):
        hint = "Run flanneld as root, or give it CAP_BPF and CAP_NET_ADMIN."
    return TargetError(message, hint=hint, is_permanent=is_permanent(code))


def useful_lines(log: str) -> list[str]:
    """Return the last lines of a verifier's log that give the reason of the refusal."""
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(_STATISTICS)]
    return said[-_LOG_LINES:]


_STATISTICS = ("processed ", "verification time", "stack depth", "max_states")
