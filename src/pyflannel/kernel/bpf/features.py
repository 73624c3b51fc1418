"""The kernel features and process rights that the fast path uses, each probed once."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator

from msgspec import Struct

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.hooks import ask_tcx
from pyflannel.kernel.bpf.layout import SHARED, MapLayout
from pyflannel.kernel.bpf.libbpf import LIBRARY, Libbpf
from pyflannel.kernel.bpf.objects import KernelObjects, ObjectFile
from pyflannel.kernel.bpf.pins import is_bpffs, kernel_has_bpffs
from pyflannel.kernel.bpf.syscall import Command, ask, call_bpf, opened, said
from pyflannel.model.fast_path import Answer, Feature

NET_ADMIN = 1 << 12
SYS_ADMIN = 1 << 21
BPF = 1 << 39

_FIRST_USER_NAMESPACE = "user:[4026531837]"
"""PROC_USER_INIT_INO. bpf(2) ignores the rights of other user namespaces."""


class ProcessRights(Struct, frozen=True, kw_only=True):
    """The rights of a process.

    Attributes:
        capabilities: the effective capabilities, one bit each.
        is_filtered: True if a seccomp filter may answer its system calls instead of the kernel.
        is_confined: True if the process is in a user namespace, and its rights are limited to that namespace.
    """

    capabilities: int
    is_filtered: bool
    is_confined: bool

    def has(self, *capabilities: int) -> bool:
        """Return whether the process has one of these capabilities."""
        return any(self.capabilities & one for one in capabilities)


def own_rights() -> ProcessRights | None:
    """Return the rights of this process; None if /proc does not show them."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return ProcessRights(
            capabilities=int(fields["CapEff"], 16),
            is_filtered=fields.get("Seccomp", "0").strip() != "0",
            is_confined=os.readlink("/proc/self/ns/user") != _FIRST_USER_NAMESPACE,
        )
    except (OSError, KeyError, ValueError):
        return None


# The features of this kernel and the rights of this process that the fast path uses. Each feature is probed
# once; all probes together take a few milliseconds.
#
# No feature is derived from a version number. The list is computed from the programs: the types of the maps
# that they share, and the helpers that they call.

_RANKS: tuple[Answer, ...] = ("present", "unknown", "absent")

_NO_DESCRIPTOR = 0xFFFFFFFF
_EBADFD = 77

_INFO = struct.Struct("=IIQ")  # descriptor, size, address
_MAP = struct.Struct("=5I")  # type, bytes of key and value, maximum of entries, flags
_PROGRAM = struct.Struct("=IIQQIIQ")  # type, instructions, code, license, level, size and address of the log
_INSTRUCTION = struct.Struct("=BBhi")
_RETURN_0 = _INSTRUCTION.pack(0xB7, 0, 0, 0) + _INSTRUCTION.pack(0x95, 0, 0, 0)
_LOG_BYTES = 4096

_LPM_TRIE = 11
_NO_PREALLOC = 1
_MAP_TYPES = {
    1: "HASH",
    2: "ARRAY",
    6: "PERCPU_ARRAY",
    9: "LRU_HASH",
    10: "LRU_PERCPU_HASH",
    _LPM_TRIE: "LPM_TRIE",
    25: "DEVMAP_HASH",
}
"""enum bpf_map_type."""

_SCHED_CLS = 3
"""enum bpf_prog_type: the type of the programs in section `tc` of the object."""

HELPERS = {
    1: "bpf_map_lookup_elem",
    2: "bpf_map_update_elem",
    7: "bpf_get_prandom_u32",
    23: "bpf_redirect",
    32: "bpf_skb_change_type",
    39: "bpf_skb_pull_data",
    43: "bpf_skb_change_head",
    50: "bpf_skb_adjust_room",
    118: "bpf_jiffies64",
    125: "bpf_ktime_get_boot_ns",
    152: "bpf_redirect_neigh",
    155: "bpf_redirect_peer",
}
"""Names of the kernel's helper functions, for messages. Source: linux/bpf.h, ___BPF_FUNC_MAPPER."""

_UNKNOWN_HELPER = ("unknown func", "invalid func", "cannot use helper")
"""Messages of the verifiers of several kernels if a program type cannot use a helper function."""

_GIVE_RIGHTS = "Run flanneld as root, or give it CAP_BPF and CAP_NET_ADMIN."
_OLD_KERNEL = "Use a newer kernel, or one with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF."
_HIDDEN = (
    "A seccomp filter or a security module answers instead of the kernel: allow bpf(2) in it"
    " (systemd: SystemCallFilter=bpf; containers: a seccomp profile that allows bpf)."
)
_LAY_PINS = (
    "Let root run `flannelctl pins` before each start, as the systemd unit does, or give it CAP_SYS_ADMIN."
)


def examine(
    objects: KernelObjects, library: Callable[[], Libbpf], read: Callable[[], ObjectFile]
) -> tuple[Feature, ...]:
    """Return all features. Without bpf(2) itself, the other features of the kernel are not probed."""
    rights = own_rights()
    call = _call(rights)
    features = [call, *_rights(rights)]
    if call.answer == "present":
        features += [*_programs(rights, read), _map_types(rights), _tcx(rights), _finding(objects)]
    return (*features, _library(library))


def _call(rights: ProcessRights | None) -> Feature:
    """Query a program with an invalid descriptor, because a kernel with the system call reports EBADF."""
    answer, error = ask(
        lambda: call_bpf(Command.OBJ_GET_INFO_BY_FD, _INFO.pack(_NO_DESCRIPTOR, 0, 0)), (errno.ENOSYS,)
    )
    code = error.errno if error is not None else None
    is_filtered = rights is None or rights.is_filtered
    if code in (errno.EBADF, _EBADFD, errno.EINVAL):
        return Feature(name="bpf(2)", answer="present")
    if code in (errno.EPERM, errno.EACCES) and rights is not None and not rights.is_filtered:
        # If a system call is refused because a right is missing, the kernel has this system call. If the
        # process has all rights, a security module refused the call.
        is_ours = rights.has(BPF, SYS_ADMIN) and not rights.is_confined
        return _seen("bpf(2)", "unknown" if is_ours else "present", said(error), _HIDDEN)
    if answer == "absent" and not is_filtered:
        return _seen("bpf(2)", "absent", said(error), "This kernel has no eBPF (CONFIG_BPF_SYSCALL).")
    return _seen("bpf(2)", "unknown", said(error), _HIDDEN)


def _rights(rights: ProcessRights | None) -> Iterator[Feature]:
    for name, capability in (("CAP_BPF", BPF), ("CAP_NET_ADMIN", NET_ADMIN)):
        if rights is None:
            yield _seen(name, "unknown", "/proc/self/status does not show it", "Mount /proc.")
        elif rights.has(capability, SYS_ADMIN):
            answer: Answer = "unknown" if rights.is_confined else "present"
            detail = "a right in a user namespace has no effect on bpf(2)" if rights.is_confined else ""
            yield _seen(name, answer, detail, "Run flanneld outside of the user namespace.")
        else:
            yield _seen(name, "absent", "", _GIVE_RIGHTS)


def _programs(rights: ProcessRights | None, read: Callable[[], ObjectFile]) -> Iterator[Feature]:
    """Load an empty program, and for each helper a program that calls it without its arguments."""
    try:
        helpers = read().helpers
    except TargetError as spoilt:
        yield _seen("object of the programs", "absent", str(spoilt), spoilt.hint)
        return
    answer, error = ask_program_type(_SCHED_CLS)
    yield _judged(rights, "programs SCHED_CLS", answer, error)
    if answer == "present":
        missing = [call for call in sorted(helpers.get("tc", ())) if not has_helper(_SCHED_CLS, call)]
        yield _seen(
            "helpers of SCHED_CLS",
            "absent" if missing else "present",
            ", ".join(HELPERS.get(call, f"number {call}") for call in missing),
            "Use Linux 5.10 or later.",
        )


def ask_program_type(number: int) -> tuple[Answer, OSError | None]:
    """Return whether the kernel has programs of this type (enum bpf_prog_type)."""
    return ask(lambda: _load(number, _RETURN_0), (errno.EINVAL,))


def has_helper(program_type: int, number: int) -> bool:
    """Return whether programs of this type, which the kernel has, may call this helper."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        _load(program_type, _INSTRUCTION.pack(0x85, 0, 0, number) + _RETURN_0, log)
    except OSError:
        told = log.value.decode("ascii", "replace")
        return not any(words in told for words in _UNKNOWN_HELPER)
    return True


def _load(program_type: int, code: bytes, log: "ctypes.Array[ctypes.c_char] | None" = None) -> None:
    instructions = ctypes.create_string_buffer(code, len(code))
    terms = ctypes.create_string_buffer(b"Apache-2.0")
    level, size, address = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
    attributes = _PROGRAM.pack(
        program_type,
        len(code) // _INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.addressof(terms),
        level,
        size,
        address,
    )
    with opened(call_bpf(Command.PROG_LOAD, attributes)):
        pass


def _map_types(rights: ProcessRights | None) -> Feature:
    """Create a map of each type that the programs share, with room for one entry."""
    replies = {_map_name(layout): ask_map_type(layout) for layout in SHARED}
    worst: Answer = max((answer for answer, _ in replies.values()), key=_RANKS.index)
    such = [name for name, (answer, _) in replies.items() if answer == worst]
    return _judged(rights, f"maps {', '.join(such)}", worst, replies[such[0]][1])


def ask_map_type(layout: MapLayout) -> tuple[Answer, OSError | None]:
    """Return whether the kernel has maps of this type (enum bpf_map_type)."""
    flags = _NO_PREALLOC if layout.type == _LPM_TRIE else 0
    attributes = _MAP.pack(layout.type, layout.key_bytes, layout.value_bytes, 1, flags)

    def make() -> None:
        with opened(call_bpf(Command.MAP_CREATE, attributes)):
            pass

    return ask(make, (errno.EINVAL,))


def _map_name(layout: MapLayout) -> str:
    return _MAP_TYPES.get(layout.type, f"of type {layout.type}")


def _tcx(rights: ProcessRights | None) -> Feature:
    answer, error = ask_tcx()
    if answer == "absent":
        return Feature(
            name="tcx",
            answer="absent",
            detail="kernels before 6.6 have no tcx: programs are classifiers of a clsact qdisc",
            is_needed=False,
        )
    return _judged(rights, "tcx", answer, error, is_needed=False)


def _finding(objects: KernelObjects) -> Feature:
    """Return how a daemon finds the programs of the previous daemon."""
    name = "CAP_SYS_ADMIN or pins"
    if objects.opens_by_identifier:
        return Feature(name=name, answer="present", detail="by identifiers")
    directory = objects.directory
    is_pinned = is_bpffs(directory)
    if is_pinned:
        return Feature(name=name, answer="present", detail=f"pins in {directory}")
    if is_pinned is None:
        return _seen(name, "unknown", "/proc does not show the mounts", _LAY_PINS)
    if kernel_has_bpffs() is False:
        return _seen(name, "absent", "this kernel has no bpffs", "Give flanneld CAP_SYS_ADMIN.")
    return _seen(name, "absent", f"no bpffs is mounted at {directory}", _LAY_PINS)


def _judged(
    rights: ProcessRights | None, name: str, answer: Answer, error: OSError | None, *, is_needed: bool = True
) -> Feature:
    """Return a feature from the kernel's answer. If the right to probe is missing, the hint names the
    right.
    """
    may_ask = rights is None or (rights.has(BPF, SYS_ADMIN) and rights.has(NET_ADMIN, SYS_ADMIN))
    hint = _OLD_KERNEL if answer == "absent" else _HIDDEN if may_ask else _GIVE_RIGHTS
    return _seen(name, answer, said(error), hint, is_needed=is_needed)


def _seen(name: str, answer: Answer, detail: str, hint: str, *, is_needed: bool = True) -> Feature:
    """Return a feature, without an explanation if the feature is present."""
    if answer == "present":
        return Feature(name=name, answer=answer, is_needed=is_needed)
    return Feature(name=name, answer=answer, detail=detail, hint=hint, is_needed=is_needed)


def _library(library: Callable[[], Libbpf]) -> Feature:
    try:
        return Feature(name=LIBRARY, answer="present", detail=library().version)
    except TargetError as error:
        return _seen(LIBRARY, "absent", str(error), error.hint)
