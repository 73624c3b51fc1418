"""What this process may do, as the kernel shows it. Source: proc(5), /proc/PID/status; capabilities(7)."""

import os
from dataclasses import dataclass

NET_ADMIN = 1 << 12
SYS_ADMIN = 1 << 21
BPF = 1 << 39

_FIRST_USER_NAMESPACE = "user:[4026531837]"
"""PROC_USER_INIT_INO: rights of any other count for nothing with bpf(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRights:
    """The rights of a process.

    Attributes:
        capabilities: those in effect, a bit each.
        is_filtered: a seccomp filter answers some of its system calls in place of the kernel.
        is_confined: it lives in a user namespace, where its rights end.
    """

    capabilities: int
    is_filtered: bool
    is_confined: bool

    def has(self, *capabilities: int) -> bool:
        """Return whether it has one of these."""
        return any(self.capabilities & one for one in capabilities)


def own_rights() -> ProcessRights | None:
    """Return what this process may do; None when /proc does not say."""
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
