"""Signals to a real flanneld: those that end it, and those that it logs and ignores."""

import re
import signal
from collections.abc import Callable
from typing import Any

NewNetwork = Callable[..., Any]

IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def test_an_unused_signal_is_logged_and_ignored(new_network: NewNetwork) -> None:
    """The host stays ready, and each signal is logged once. SIGTERM ends flanneld as before."""
    network = new_network("docker1", store="sqlite")
    daemon = network.start("docker1")

    for number in IGNORED:
        daemon.send(number)
        network.wait_logged("docker1", f"Ignored {number.name}")
    daemon.send(signal.SIGHUP)
    network.wait_logged("docker1", "Ignored SIGHUP", times=2)

    assert daemon.exit_code is None
    assert network.wait_ready("docker1")["is_live"]
    ignored = re.findall(r"^I.*\] Ignored (\w+)", network.log("docker1"), re.MULTILINE)
    assert ignored == ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGHUP"]
    assert daemon.stop() == 0
    assert network.log("docker1").rstrip().endswith("Exiting...")
