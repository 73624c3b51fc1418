"""Invalid configs, unsuitable hosts and wrong use are reported, awaited or refused."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pyflannel.lab.waiting import wait_until

SOON_S = 60.0
CONFIG = '{"Network":"10.100.0.0/16"}'
SUBNET_ENV = "/run/flannel/subnet.env"
HOLD_PORT = """
import signal, socket
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("0.0.0.0", 8285))
print("held", flush=True)
signal.pause()
"""
"""A program that uses the port of the tunnel."""

NewNetwork = Callable[..., Any]
NetworkOf = Callable[..., AbstractContextManager[Any]]


def problems(log: str) -> list[str]:
    """Return the texts of the warnings and errors in a log in klog's form."""
    return re.findall(r"^[WEF]\d{4} [\d:.]+ +\d+ [\w.]+:\d+\] (.*)$", log, re.MULTILINE)


def waiting_reason(status: dict[str, Any]) -> str:
    """Return the reason why a host waits; empty if it does not wait."""
    return status["waiting_for"] or ""


class TestNetworkConfig:
    BAD = (
        ("{", "not JSON", "{"),
        ("{}", "Network", "absent"),
        ('{"Network":"10.100.0.0/33"}', "Network", "10.100.0.0/33"),
        ('{"Network":"10.100.0.0/16","SubnetLen":31}', "SubnetLen", "31"),
        ('{"Network":"10.100.0.0/16","SubnetLen":8}', "SubnetLen", "8"),
        ('{"Network":"10.100.0.0/16","SubnetMin":"10.99.0.0"}', "SubnetMin", "10.99.0.0"),
        ('{"Network":"10.100.0.0/16","SubnetMin":"10.100.1.7"}', "SubnetMin", "10.100.1.7"),
        ('{"Network":"10.100.0.0/16","SubnetMax":"10.101.0.0"}', "SubnetMax", "10.101.0.0"),
        ('{"Network":"10.100.0.0/16","Backend":{"Type":"carrier-pigeon"}}', "Backend.Type", "carrier-pigeon"),
        ('{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}', "Backend.VNI", '"1"'),
        ('{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}', "VNI", "16777215"),
        ('{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan","MTU":60}}', "Backend.MTU", "60"),
        ('{"Network":"10.100.0.0/16","Backend":{"Type":"udp","Port":0}}', "Backend.Port", "0"),
    )
    """A config, the key with the error, and its value."""

    def test_each_error_is_reported_and_a_valid_config_is_used(self, new_network: NewNetwork) -> None:
        """The daemon waits from the start. No invalid config ends the daemon."""
        network = new_network("docker1", config="{")
        network.etcdctl("del", "/coreos.com/network/config")
        daemon = network.launch("docker1")
        network.wait_logged("docker1", "using etcdv3 API? Write one: flannelctl config set")

        for config, key, value in self.BAD:
            seen = len(problems(network.log("docker1")))
            network.put("config", config)
            wait_until(
                lambda seen=seen: len(problems(network.log("docker1"))) > seen,
                what=f"an error about {config}",
                deadline_s=SOON_S,
            )
            said = problems(network.log("docker1"))[-1]
            assert key in said, said
            assert value in said, said
        waits = network.wait_status(
            "docker1", lambda status: "Backend.Port" in waiting_reason(status), "waits"
        )
        network.put("config", CONFIG)
        ready = network.wait_status(
            "docker1", lambda status: status["is_ready"] and status["warnings"] == [], "is ready"
        )

        assert "carrier-pigeon" not in waits["waiting_for"]
        assert not waits["is_ready"]
        assert daemon.exit_code is None
        assert ready["network"]["network"] == "10.100.0.0/16"
        assert len(problems(network.log("docker1"))) == 1 + len(self.BAD)

    def test_an_invalid_config_does_not_replace_a_valid_config(self, new_network: NewNetwork) -> None:
        network = new_network("docker1", "docker4")
        network.start_all()

        network.put("config", "{")
        network.wait_logged("docker1", "not JSON")
        during = network.wait_status(
            "docker1", lambda status: "not JSON" in " ".join(status["warnings"]), "warns of it"
        )
        network.put("config", '{"Network":"10.100.0.0/16","SubnetLen":24}')
        network.wait_status("docker1", lambda status: status["warnings"] == [], "forgets the bad one")

        assert during["is_ready"]
        assert network.wait_ready("docker1")["lease"]["subnet"] == str(network.hosts["docker1"].lease())


@pytest.fixture(scope="module")
def network(network_of: NetworkOf) -> Iterator[Any]:
    """A host without a running flanneld, before and after each test."""
    with network_of("docker1", store="sqlite") as network:
        yield network


@pytest.fixture
def host(network: Any) -> Iterator[Any]:
    """The host that runs flanneld. At the end of a test, all objects of flannel are removed from the host."""
    host = network.hosts["docker1"]
    yield host
    host.flannelctl("cleanup")
    (host.directory / "log/flanneld.log").unlink()


class TestInterface:
    def test_the_named_interface_appears_later(self, network: Any, host: Any) -> None:
        network.launch("docker1", "--iface=eth7")
        network.wait_logged("docker1", "Waiting for an interface to use")
        waits = network.wait_status(
            "docker1", lambda status: "eth7" in waiting_reason(status), "waits for it"
        )

        host.run(["ip", "link", "add", "eth7", "type", "veth", "peer", "name", "eth8"])
        host.run(["ip", "link", "set", "eth7", "up"])
        host.run(["ip", "address", "add", "203.0.113.7/24", "dev", "eth7"])
        ready = network.wait_ready("docker1")

        assert not waits["is_ready"]
        assert ready["underlay"]["address"] == "203.0.113.7"
        assert all("eth7" in said for said in problems(network.log("docker1")))
        host.run(["ip", "link", "delete", "eth7"])

    def test_the_default_route_appears_later(self, network: Any, host: Any) -> None:
        host.run(["ip", "route", "delete", "default"])
        network.launch("docker1")
        network.wait_logged("docker1", "Waiting for an interface to use")
        waits = network.wait_status(
            "docker1", lambda status: "default route" in waiting_reason(status), "waits for it"
        )

        host.run(["ip", "route", "add", "default", "via", "10.10.10.1"])
        network.wait_ready("docker1")

        assert not waits["is_ready"]
        assert len(problems(network.log("docker1"))) == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--iface", "a-name-of-16-char"),
        ("--iface-regex", "eth["),
        ("--public-ip", "10.10.10"),
        ("--iface-can-reach", "nowhere"),
        ("--store", "ftp://10.10.10.1"),
        ("--subnet-lease-renew-margin", "0"),
        ("--no-such-flag", "1"),
    ],
)
def test_wrong_use_ends_flanneld_with_one_line(network: Any, flag: str, value: str) -> None:
    done = network.hosts["docker1"].run(["flanneld", f"{flag}={value}"], check=False)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert flag.lstrip("-") in done.stderr
    assert done.stdout == ""


class TestTun:
    def test_a_missing_device_file_is_reported(self, network: Any, host: Any) -> None:
        """One line contains the remedy, and flanneld continues when the file exists."""
        host.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
        network.launch("docker1")
        network.wait_logged("docker1", "/dev/net/tun")
        waits = network.wait_status("docker1", lambda status: status["reconcile"]["refused"], "is refused")

        host.run(["umount", "/dev/net"])
        network.wait_ready("docker1")

        assert not waits["is_ready"]
        (said,) = problems(network.log("docker1"))
        assert "modprobe tun" in said

    def test_without_cap_net_admin_the_missing_right_is_reported(self, network: Any, host: Any) -> None:
        less = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        # The forward rules and the guard also need the capability.
        others = ["--iptables-forward-rules=false", "--guard=off"]
        flags = ["--store", network.url, *others]
        host.start([*less, "flanneld", *flags], name="flanneld")
        network.wait_logged("docker1", "CAP_NET_ADMIN")

        waits = network.wait_status("docker1", lambda status: status["reconcile"]["refused"], "is refused")

        (said,) = problems(network.log("docker1"))
        assert said.startswith("link flannel0: missing; refused: EPERM")
        assert not waits["is_ready"]
        assert "link flannel0" in waits["waiting_for"]
        (refused,) = waits["reconcile"]["refused"]
        assert "CAP_NET_ADMIN" in refused


class TestTaken:
    def test_a_second_flanneld_names_the_first(self, network: Any, host: Any) -> None:
        network.start("docker1")

        second = host.run(["flanneld", "--store", network.url], check=False)

        pid = (host.directory / "run/flannel/flanneld.lock").read_text().split()[0]
        assert second.returncode == 1
        (said,) = problems(second.stderr)
        assert f"flanneld (pid {pid}) is running already" in said
        assert "--run-dir" in said
        assert network.status("docker1")["is_ready"]

    def test_a_used_port_is_reported_with_its_program_and_used_when_free(
        self, network: Any, host: Any
    ) -> None:
        holder = host.start(["python3", "-c", HOLD_PORT], name="holder")
        wait_until(lambda: "held" in holder.last_words(), what="the port is held", deadline_s=SOON_S)

        network.launch("docker1")
        network.wait_logged("docker1", "UDP port 8285")
        waits = network.wait_status("docker1", lambda status: status["reconcile"]["refused"], "is refused")
        holder.send(signal.SIGKILL)
        network.wait_ready("docker1")

        (said,) = problems(network.log("docker1"))
        assert re.search(r"UDP port 8285 of 10\.10\.10\.101 is in use by python3, pid \d+", said)
        assert not waits["is_ready"]
        assert "python3" in waits["waiting_for"]


def test_a_full_disk_does_not_damage_the_old_file(network: Any, host: Any) -> None:
    """The text of the file changes with the MTU while the disk is full. The new text is written when there is
    space.
    """
    host.run(["mkdir", "-p", "/run/small"])
    host.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/run/small"])
    network.start("docker1", "--subnet-file=/run/small/subnet.env")
    before = host.run(["cat", "/run/small/subnet.env"]).stdout
    host.run(["dd", "if=/dev/zero", "of=/run/small/rest", "bs=4k"], check=False)

    host.run(["ip", "link", "set", "eth0", "mtu", "1400"])
    network.wait_logged("docker1", "ENOSPC")
    waits = network.wait_status(
        "docker1", lambda status: "No space left" in waiting_reason(status), "waits for disk space"
    )
    during = host.run(["cat", "/run/small/subnet.env"]).stdout
    host.run(["rm", "/run/small/rest"])
    network.wait_ready("docker1")
    after = host.run(["cat", "/run/small/subnet.env"]).stdout
    left = host.run(["ls", "/run/small"]).stdout

    host.run(["ip", "link", "set", "eth0", "mtu", "1500"])
    assert during == before
    assert not waits["is_ready"]
    assert after == before.replace("1472", "1372")
    assert left == "subnet.env\n"
    assert [said for said in problems(network.log("docker1")) if "ENOSPC" in said][1:] == []
