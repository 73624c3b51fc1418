"""The lock that all of legacy iptables shares: who holds it."""

import os
from pathlib import Path

LOCK = "/run/xtables.lock"


def lock_holder() -> str | None:
    """Return the process that holds the lock, as `NAME (pid N)`; None when nobody does, or it is not told.

    Source: proc(5), /proc/locks: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`.
    """
    try:
        inode = os.stat(LOCK).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                name = Path(f"/proc/{words[4]}/comm").read_text(errors="replace").strip()
                return f"{name} (pid {words[4]})"
    except OSError:
        pass
    return None
