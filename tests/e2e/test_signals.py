"""Signals to a real flanneld: some end it, others are logged and ignored."""

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


def test_the_allow_list_is_read_again_when_it_changes_and_on_sighup(new_network: NewNetwork) -> None:
    network = new_network("docker1", store="sqlite")
    path = network.hosts["docker1"].directory / "run/lease-keys"
    path.write_text(f"{'ab' * 32} docker2\n")
    daemon = network.start("docker1", "--lease-signing=require", "--lease-keys=/run/lease-keys")

    path.write_text(f"{'ab' * 32} docker2\n{'cd' * 32} docker3\n")
    network.wait_logged("docker1", "Changed the list of allowed keys: added=1 removed=0 keys=2")

    path.write_text("")
    network.wait_logged(
        "docker1", "Kept the last valid list of 2 allowed keys: /run/lease-keys: the file contains"
    )
    signing = network.status("docker1")["lease_signing"]
    assert (signing["allowed"], signing["trouble"]["text"]) == (
        2,
        "/run/lease-keys: the file contains no key",
    )

    path.with_name("new").write_text(f"{'ab' * 32} docker2\n")
    path.with_name("new").rename(path)
    network.wait_logged("docker1", "Changed the list of allowed keys: added=0 removed=1 keys=1")
    network.wait_logged("docker1", "The file of allowed keys is usable again")
    daemon.send(signal.SIGHUP)
    network.wait_logged("docker1", "Received SIGHUP: reading the allow-list again")
