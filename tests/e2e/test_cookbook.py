"""The manual steps 1 to 5 of the cookbook in detail: four hosts, a real etcd and kernel, no Docker."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document

SOON_S = 60.0
CONFIG = '{"Network":"10.100.0.0/16"}'
KLOG = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ [\w.]+\.py:\d+\] (?P<text>.*)")

NetworkOf = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def network(network_of: NetworkOf) -> Iterator[Any]:
    """The cookbook's hosts. The flannelds of the hosts waited for the config, which etcdctl wrote (step
    1).
    """
    with network_of("docker1", "docker2", "docker3", "docker4") as network:
        network.etcdctl("del", "/coreos.com/network/config")

        def put_config() -> None:
            for name in network.hosts:
                network.wait_logged(name, "flannel config not found in etcd store")
            network.put("config", CONFIG)

        together([*(partial(network.start, name) for name in network.hosts), put_config])
        yield network


def texts(log: str) -> list[str]:
    """Return the texts of the lines of a log. Each line must have klog's form."""
    found = [KLOG.fullmatch(line) for line in log.splitlines()]
    assert all(found), log
    return [match["text"] for match in found if match]


def subnet_env(host: Any, mtu: int = 1472) -> str:
    return (
        f"FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET={host.gateway()}\n"
        f"FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
    )


class TestConfig:
    """Step 1 of the cookbook: the network config."""

    def test_etcdctl_and_flannelctl_show_the_same_config(self, network: Any) -> None:
        host = network.hosts["docker1"]
        computed = host.flannelctl("config", "validate", CONFIG)
        file = "/etc/flannel-network.json"
        host.run(["tee", file], text=CONFIG + "\n")

        got = host.flannelctl("--store", network.url, "config", "get")
        host.flannelctl("--store", network.url, "config", "set", file)

        assert got == CONFIG + "\n"
        assert '"SubnetMin":"10.100.1.0"' in re.sub(r"\s", "", computed)
        assert network.record("config")["value"].strip() == CONFIG

    def test_running_flannelds_use_a_config_that_one_flanneld_set(self, network: Any) -> None:
        """Without --store, the daemon is asked. The other daemons read the change from the store."""
        changed = '{"Network":"10.100.0.0/16","SubnetLen":24}'

        network.hosts["docker3"].flannelctl("config", "set", changed)

        for host in network.hosts.values():
            wait_until(
                lambda host=host: host.flannelctl("config", "get") == changed + "\n",
                what=f"{host.name} knows the new config",
                deadline_s=SOON_S,
            )
        assert network.wait_ready("docker4")


class TestLog:
    """Step 2 of the cookbook: the log of flanneld."""

    def test_the_lines_of_a_first_start_are_in_order(self, network: Any) -> None:
        for name, host in network.hosts.items():
            story = [
                "Installing signal handlers",
                "Determining IP address of default interface",
                f"Using {host.address} as external interface",
                f"Using {host.address} as external endpoint",
                "Picking subnet in range 10.100.1.0 ... 10.100.255.0",
                f"Lease acquired: {host.lease()}",
                "Watching for new subnet leases",
            ]
            said = [text for text in texts(network.log(name)) if text in story]
            assert list(dict.fromkeys(said)) == story  # a host that lost a race for a subnet has chosen again

    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_a_restarted_daemon_finds_its_lease(self, network: Any, how: str) -> None:
        host = network.hosts["docker2"]
        before, old_log = host.lease(), network.log("docker2")

        end_flanneld(host, signal.SIGTERM if how == "stop" else signal.SIGKILL)
        network.start("docker2")

        story = [
            f"Found lease ({before}) for current IP (10.10.10.102), reusing",
            f"Lease acquired: {before}",
            "Watching for new subnet leases",
        ]
        said = texts(network.log("docker2").removeprefix(old_log))
        assert [text for text in said if text in story] == story
        assert not any(text.startswith("Picking") for text in said)
        assert host.lease() == before

    def test_the_subnet_of_the_previous_run_is_requested_again(self, network: Any) -> None:
        """The lease expired and the state directory was deleted. subnet.env still contains the subnet."""
        host = network.hosts["docker2"]
        before, old_log = host.lease(), network.log("docker2")
        end_flanneld(host, signal.SIGTERM)
        network.etcdctl("del", f"/coreos.com/network/{network.lease_key('docker2')}")
        host.run(["rm", "-r", "/var/lib/flannel"])

        network.start("docker2")

        said = texts(network.log("docker2").removeprefix(old_log))
        assert f"Found previously leased subnet ({before}), reusing" in said
        assert host.lease() == before


def end_flanneld(host: Any, number: signal.Signals) -> None:
    """End the daemon, whose process ID is in its lock file, and wait for its end."""
    pid = host.run(["cat", "/run/flannel/flanneld.lock"]).stdout.split()[0]
    host.run(["kill", f"-{number.value}", pid])
    wait_until(
        lambda: host.run(["test", "-d", f"/proc/{pid}"], check=False).returncode != 0,
        what=f"flanneld on {host.name} ends",
        deadline_s=SOON_S,
    )


def test_flanneld_reports_ready_when_packets_can_flow(network: Any) -> None:
    """On a host without any object of flannel, the first ping is answered."""
    host = network.hosts["docker2"]
    host.flannelctl("cleanup")
    network.wait_status("docker3", lambda status: status["peers"] == 2, "has lost a peer")

    network.start("docker2")
    wait_until(
        lambda: was_added_last(network.hosts["docker3"], host.lease()),
        what="docker3 sends to the new host",
        deadline_s=SOON_S,
    )
    first = ping(host, network.overlay("docker3"), count=1)

    assert first.is_reached
    assert network.status("docker2")["peers"] == 3
    assert host.run(["cat", "/run/flannel/subnet.env"]).stdout == subnet_env(host)


def was_added_last(host: Any, subnet: IPv4Network) -> bool:
    """Return whether the latest operation on a host for this peer added it."""
    events = read_document(["events"], host.flannelctl("events", "--json"))["events"]
    done = [event["found"] for event in events if event["found"].startswith(f"peer {subnet} ")]
    return done[-1:] == [f"peer {subnet} of flannel0: missing"]


class TestDevice:
    """Step 3 of the cookbook: the device."""

    def test_ip_address_shows_the_device(self, network: Any) -> None:
        for host in network.hosts.values():
            lines = host.run(["ip", "address", "show", "flannel0"]).stdout.splitlines()
            base = host.lease().network_address
            assert re.fullmatch(
                r"\d+: flannel0: <POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1472 qdisc \w+ state \w+"
                r" group default qlen 500",
                lines[0],
            )
            assert lines[1].strip() == "link/none"
            assert lines[2].strip() == f"inet {base}/16 scope global flannel0"
            assert not any("inet6" in line for line in lines)

    def test_ethtool_shows_the_driver_tun(self, network: Any) -> None:
        said = network.hosts["docker1"].run(["ethtool", "-i", "flannel0"]).stdout

        assert said.startswith("driver: tun\n")

    def test_ip_route_shows_the_network(self, network: Any) -> None:
        for host in network.hosts.values():
            lines = host.run(["ip", "route"]).stdout.splitlines()
            base = host.lease().network_address
            wanted = f"10.100.0.0/16 dev flannel0 proto kernel scope link src {base}"
            assert [line.strip() for line in lines if "10.100." in line] == [wanted]

    def test_every_flannel0_answers_every_host_with_ttl_62(self, network: Any) -> None:
        """Each of the two forwarders decrements the TTL."""
        pairs = [(one, other) for one in network.hosts for other in network.hosts if one != other]
        for one, other in pairs:
            wait_until(
                lambda one=one, other=other: (
                    ping(network.hosts[one], network.overlay(other), count=1).is_reached
                ),
                what=f"{one} knows {other}",
                deadline_s=SOON_S,
            )

        results = together(
            [partial(ping, network.hosts[one], network.overlay(other), count=3) for one, other in pairs]
        )

        assert len(results) == 12
        assert [pair for pair, result in zip(pairs, results, strict=True) if not result.is_reached] == []
        assert {result.ttl for result in results} == {62}


class TestSubnetEnv:
    """Step 4 of the cookbook: subnet.env."""

    def test_each_byte_of_the_file(self, network: Any) -> None:
        for host in network.hosts.values():
            assert host.run(["cat", "/run/flannel/subnet.env"]).stdout == subnet_env(host)
            assert host.run(["stat", "-c", "%a", "/run/flannel/subnet.env"]).stdout == "644\n"
            assert host.lease().prefixlen == 24
        assert len({host.lease() for host in network.hosts.values()}) == 4

    @pytest.mark.parametrize(
        "damage",
        ["rm {}", "truncate -s 10 {}", "sed -i s/1472/9000/ {}", "chmod 600 {}", "ln -sf /etc/hostname {}"],
    )
    def test_a_damaged_file_is_repaired(self, network: Any, damage: str) -> None:
        host = network.hosts["docker4"]
        path = host.directory / "run/flannel/subnet.env"
        wanted = subnet_env(host)

        host.run(damage.format("/run/flannel/subnet.env").split())

        wait_until(
            lambda: not path.is_symlink() and path.exists() and path.read_text() == wanted,
            what=f"the repair of subnet.env after `{damage}`",
            deadline_s=SOON_S,
        )

    def test_the_file_is_always_complete(self, network: Any) -> None:
        """A reader reads constantly while the MTU, and with it the text, changes repeatedly."""
        host = network.hosts["docker4"]
        path = host.directory / "run/flannel/subnet.env"
        usual, small = subnet_env(host), subnet_env(host, mtu=1372)

        with looking_at(path) as seen:
            for mtu, wanted in ((1400, small), (1500, usual)) * 3:
                host.run(["ip", "link", "set", "eth0", "mtu", str(mtu)])
                wait_until(
                    lambda wanted=wanted: path.read_text() == wanted,
                    what=f"the text of mtu {mtu}",
                    deadline_s=SOON_S,
                )

        assert seen == {usual, small}
        assert [file.name for file in path.parent.iterdir() if "subnet.env" in file.name] == ["subnet.env"]


@contextmanager
def looking_at(path: Path) -> Iterator[set[str]]:
    """Read a file constantly for the duration of a block, and add its contents to the set."""
    seen: set[str] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            try:
                seen.add(path.read_text())
            except FileNotFoundError:
                seen.add("there was no file")

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        is_over.set()
        reader.join()


@pytest.mark.parametrize("command", ["mk-docker-opts.sh", "mk-docker-opts"])
def test_docker_options_come_from_subnet_env(network: Any, command: str) -> None:
    """Step 5 of the cookbook: the options of Docker."""
    host = network.hosts["docker1"]

    done = host.run(["sh", "-c", f"cd /run && {command} -c -d example_docker_config"])

    written = host.run(["cat", "/run/example_docker_config"]).stdout
    assert (done.stdout, done.stderr) == ("", "")
    assert written == f'DOCKER_OPTS=" --bip={host.gateway()} --ip-masq=true --mtu=1472"\n'
