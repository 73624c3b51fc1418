"""Copies of a host, and restarts with almost no kept files, on a real etcd and a real kernel."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

Pinging = Callable[[Any, str], AbstractContextManager[Any]]


def test_a_clone_with_the_machine_id_and_the_address_acquires_another_subnet(
    new_network: Callable[..., Any], pinging: Pinging
) -> None:
    """The state directory of the clone is empty. The running host keeps its lease and loses no packet. Both
    hosts report the conflict.
    """
    network = new_network("docker1", "docker2", "docker4")
    network.start("docker1")
    network.start("docker4")
    original, clone = network.hosts["docker1"], network.hosts["docker2"]
    before = original.lease()
    clone.run(["tee", "/etc/machine-id"], text=original.run(["cat", "/etc/machine-id"]).stdout)

    with pinging(network.hosts["docker4"], network.overlay("docker1")) as pings:
        network.start("docker2", "--public-ip=10.10.10.101", "--iface=eth0")
        pings.wait_answered(more=50)

    assert pings.lost == 0
    assert original.lease() == before
    assert clone.lease() != before
    for name in ("docker1", "docker2"):
        network.wait_status(
            name, lambda status: "share an address" in " ".join(status["warnings"]), "names the other"
        )


def test_a_restart_without_a_state_directory_is_ready_immediately_with_its_subnet(
    new_network: Callable[..., Any], pinging: Pinging
) -> None:
    """A container may keep only its run directory, which shows that the previous daemon has ended.

    A claim would take ten seconds. Without a claim, the host is ready within two seconds on an idle machine.
    """
    network = new_network("docker1", "docker4")
    daemon, _ = network.start_all()
    host = network.hosts["docker1"]
    before, key = host.lease(), network.lease_key("docker1")
    owner = json.loads(network.record(key)["value"])["Pyflannel"]["Owner"]
    network.wait_status("docker1", lambda status: status["peers"] == 1, "knows its peer")

    with pinging(host, network.overlay("docker4")) as pings:
        daemon.kill()
        host.run(["rm", "-r", "/var/lib/flannel"])
        began = time.monotonic()
        network.start("docker1")
        took_s = time.monotonic() - began
        pings.wait_answered(more=20)

    print(f"ready after {took_s:.2f} s")
    assert "asking whether" not in network.log("docker1")
    assert host.lease() == before
    assert json.loads(network.record(key)["value"])["Pyflannel"]["Owner"] == owner
    assert pings.lost == 0


@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_a_restart_without_run_and_state_directory_is_ready_immediately_with_its_subnet(
    new_network: Callable[..., Any], backend: str
) -> None:
    """A container without volumes in the host's network has no files. The device of the clone contains the
    identity.

    A claim would take ten seconds. Without a claim, the host is ready within two seconds on an idle machine.
    """
    network = new_network(
        "docker1", config=json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": backend}})
    )
    daemon = network.start("docker1")
    host = network.hosts["docker1"]
    before, key = host.lease(), network.lease_key("docker1")
    owner = json.loads(network.record(key)["value"])["Pyflannel"]["Owner"]

    forwarder = network.status("docker1")["forwarder"]

    daemon.kill()
    if forwarder is not None:  # the container stops the daemon, too
        host.run(["kill", "-9", str(forwarder["pid"])])
    host.run(["rm", "-r", "/var/lib/flannel", "/run/flannel"])
    began = time.monotonic()
    network.start("docker1")
    took_s = time.monotonic() - began

    print(f"{backend}: ready after {took_s:.2f} s")
    assert "asking whether" not in network.log("docker1")
    assert host.lease() == before
    assert json.loads(network.record(key)["value"])["Pyflannel"]["Owner"] == owner


def test_a_copy_with_identity_and_address_yields_to_the_running_host(
    new_network: Callable[..., Any], pinging: Pinging
) -> None:
    """The disk was cloned with its state directory. The copy runs degraded, and both hosts report the
    conflict.
    """
    network = new_network("docker1", "docker2", "docker4")
    network.start("docker1", "--node-id=twin")
    network.start("docker4")
    before = network.hosts["docker1"].lease()

    with pinging(network.hosts["docker4"], network.overlay("docker1")) as pings:
        network.launch("docker2", "--node-id=twin", "--public-ip=10.10.10.101", "--iface=eth0")
        copy = network.wait_status(
            "docker2", lambda status: status["lease"]["phase"] == "taken", "yields to docker1"
        )
        original = network.wait_status(
            "docker1", lambda status: "this host keeps" in " ".join(status["warnings"]), "names the copy"
        )
        pings.wait_answered(more=50)

    assert pings.lost == 0
    assert network.hosts["docker1"].lease() == before
    assert original["lease"]["phase"] == "held"
    assert not copy["is_ready"]
    assert copy["owner"] != original["owner"] == "twin"
    assert f"this host keeps lease {before}" in " ".join(original["warnings"])
    assert f"the other host holds lease {before}" in " ".join(copy["warnings"])
    network.wait_logged("docker1", "the other is a copy of this host")
