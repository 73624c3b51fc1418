"""The control groups of a lab: all under one of its own, in every hierarchy there is."""

import contextlib
import os
from pathlib import Path

from pyflannel.lab.waiting import wait_until

ROOT = "flannel-lab"
_HIERARCHIES = Path("/sys/fs/cgroup")
_EMPTY_DEADLINE_S = 30.0


def cgroup_of(directory: Path) -> str:
    """Return the control group for what belongs to the sandbox in `directory`."""
    return f"{ROOT}/{directory.parent.name}/{directory.name}"


def remove_cgroups(lab: str) -> None:
    """Remove every control group of the lab; its processes have been ended.

    Raises:
        LabError: one of them is still in use after some seconds.
    """
    for root in _roots():
        group = root / lab
        if group.is_dir():
            wait_until(
                lambda group=group: _remove(group),  # type: ignore[misc]
                what=f"control group {group} is empty",
                deadline_s=_EMPTY_DEADLINE_S,
            )


def remove_roots() -> None:
    """Remove what the control groups of all labs lie in; no lab stands, and none begins meanwhile.

    While one does, a program of it may be about to make a group there.
    """
    for root in _roots():
        with contextlib.suppress(OSError):
            root.rmdir()


def _roots() -> list[Path]:
    # Version 2 has one hierarchy, at the mount itself; version 1 has one below it for each controller.
    return [_HIERARCHIES / ROOT, *_HIERARCHIES.glob(f"*/{ROOT}")]


def _remove(group: Path) -> bool:
    """Remove a control group and those in it; return False while one is in use."""
    try:
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True
