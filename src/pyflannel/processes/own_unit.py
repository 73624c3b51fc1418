"""A unit of its own for a process that must outlive ours: systemd ends a service with all that it started."""

import os
import secrets
from collections.abc import Mapping

from pyflannel.errors import TargetError

_SYSTEMD_RUN = "systemd-run"


class NoUnitError(TargetError):
    """systemd gave the process no unit, and it did not run."""


def own_unit(name: str, description: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words before a command by which it runs in a scope of its own: none if we are no service.

    `systemd-run --scope` moves itself and then becomes the command, so it stays our child, with its
    descriptors, its exit status and our sandbox. The name is made unique: of two forwarders, one hands over
    to the other.

    Source: SYSTEMD_EXEC_PID of systemd.exec(5), since version 248.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return []
    from shutil import which  # half a megabyte that nobody else needs

    if which(_SYSTEMD_RUN) is None:
        return []
    return [
        _SYSTEMD_RUN,
        "--scope",
        "--quiet",
        "--collect",  # a scope that failed leaves nothing to be reset by hand
        f"--unit={name}-{secrets.token_hex(4)}.scope",
        f"--description={description}",
        "--property=Before=docker.service",  # at shutdown, containers end before their packets do
        "--",
    ]


def was_refused(status: int, said: str) -> bool:
    """Return whether it was systemd-run that ended with this status and words, not what it was to start."""
    return status == 1 and said.startswith("Failed to ")
