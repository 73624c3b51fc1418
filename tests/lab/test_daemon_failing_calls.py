"""The running daemon survives each failing system call, names the call, and is ready again afterwards.

The real flanneld runs in a vxlan network. The kernel refuses one of its system calls
(tests/doubles/system_calls.py) while a lease is added and routes are damaged. The short form covers calls
with a few names. The long form covers calls with each name and each errno. Some failures have no effect by
design, such as a failing notification of systemd.
"""

import errno
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from doubles.system_calls import ERRNOS, NAMES, ProgramCalls, why_not
from pyflannel.errors import LabError
from pyflannel.lab.waiting import wait_until
from pyflannel.model.lease import Lease
from testlab.crowded_network import CrowdedNetwork, crowded_network
from testlab.inside import run_inside
from testlab.standing_leases import UNDERLAY, existing_lease, write_leases

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(3600),  # the --long form takes minutes
]

DEADLINE_S = 60.0
RARE_S = 3.0
"""Maximum time in seconds, in the long form, for a call that flanneld may make only at its start, or
never."""

FREQUENT = ("read", "connect", "sendto", "rename", "bpf", "clone3")
"""Calls that flanneld makes within a second of the disturbance."""

FEWEST_NAMED = 2
"""At least this number of failed calls must be named in the log or the status."""


class Daemon:
    """The flanneld of a network. A test lets its calls fail."""

    def __init__(self, network: CrowdedNetwork) -> None:
        self._network = network
        self._host = network.host
        self._log: Path = self._host.directory / "log/flanneld.log"
        self._calls = ProgramCalls(self._host.directory / "system-calls")
        command = ["flanneld", f"--etcd-endpoints={network.endpoint}", "--iptables-resync=1"]
        self.program = self._host.start_service(
            self._calls.command(command), name="flanneld", deadline_s=DEADLINE_S
        )
        self.named = 0
        self._failures = 0
        self._added = 0
        self._damaged = cycle(network.leases)

    def fail(self, name: str, code: int, within_s: float) -> Iterator[str]:
        """Let the next call of this name fail, if one is made in time.

        Yield the problems until there are none.
        """
        where, at = f"{name} fails with {os.strerror(code)}", self._log.stat().st_size
        self._calls.fail_next(name, code)
        was_made = self._disturb(within_s)
        self._calls.stop()
        before, self._failures = self._failures, -1
        try:
            self._network.wait_right(self._newcomers())
            wait_until(self._is_ready, what="flanneld is ready", deadline_s=DEADLINE_S)
        except LabError as error:
            yield f"{where}: {error}"
        text = self._log.read_text()[at:]
        is_named = was_made and os.strerror(code) in text
        self.named += is_named
        if self.program.exit_code is not None:
            yield f"{where}: flanneld ended: {text}"
        if "Traceback" in text:
            yield f"{where}: {text}"
        if was_made and self._failures != before and not is_named:
            yield f"{where}: it is not named: {text}"
        if not was_made and within_s == DEADLINE_S:
            yield f"{where}: the call was not made"

    def _disturb(self, within_s: float) -> bool:
        """Add a lease and damage routes until the call is made. Return whether the call was made in time."""
        self._added += 1
        run_inside(self._host, partial(write_leases, str(UNDERLAY.gateway.ip), self._newcomers()[-1:]))
        end = time.monotonic() + within_s
        while not self._calls.has_failed() and time.monotonic() < end:
            self._host.run(["ip", "route", "delete", str(next(self._damaged).subnet)], check=False)
            time.sleep(0.1)
        return self._calls.has_failed()

    def _newcomers(self) -> list[Lease]:
        first = len(self._network.leases)
        return [existing_lease(number, "vxlan") for number in range(first, first + self._added)]

    def _is_ready(self) -> bool:
        status = json.loads(self._host.flannelctl("status", "--json", check=False))
        self._failures = status["reconcile"]["failures"]
        return bool(status["is_ready"])


def failures(long_run: bool) -> Iterator[tuple[str, int]]:
    """Yield the names of system calls, each with the errno of its failure."""
    if long_run:
        yield from ((name, code) for name in NAMES for code in ERRNOS)
    else:
        # The interpreter repeats calls with EINTR.
        codes = cycle(code for code in ERRNOS if code != errno.EINTR)
        yield from zip(FREQUENT, codes, strict=False)


def test_the_daemon_survives_each_failing_call(long_run: bool) -> None:
    with crowded_network("failing-calls", "vxlan", 3, deadline_s=DEADLINE_S) as network:
        daemon = Daemon(network)
        wrong = [
            each
            for name, code in failures(long_run)
            for each in daemon.fail(name, code, RARE_S if long_run else DEADLINE_S)
        ]

    assert not wrong, "\n".join(wrong)
    assert daemon.named >= FEWEST_NAMED
