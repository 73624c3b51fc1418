"""The cookbook's seven steps with real programs: four hosts, etcd, flanneld, four Docker engines."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pyflannel.lab.containers import DockerContainer, fetch, serving, write_image
from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import ping, ping_all, wait_reached
from pyflannel.lab.waiting import together, wait_until
from testlab.overlay import PING_OFTEN

pytestmark = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="no dockerd: Debian's docker.io has it"
)

NETWORK = IPv4Network("10.100.0.0/16")
CONFIG = '{"Network":"10.100.0.0/16"}'
HEALED_S = 60.0
"""Deadline of a repair in seconds. A repair takes less than a second, but the machine may be busy."""
DOCKER_OPTIONS = Path("/etc/default/docker")
SUBNET_ENV = Path("/run/flannel/subnet.env")


@dataclass(frozen=True)
class Network:
    lab: Lab
    etcd: EtcdServer
    daemons: dict[str, Program]
    containers: dict[str, DockerContainer]

    @property
    def hosts(self) -> dict[str, Host]:
        return self.lab.hosts


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Lab(f"t{os.getpid()}-hosts") as lab:
        etcd = EtcdServer(lab.router, "10.10.10.1")
        etcd.start()
        etcd.etcdctl("put", "/coreos.com/network/config", CONFIG)  # step 1
        flag = f"--etcd-endpoints={etcd.endpoint}"
        daemons = together([partial(host.start_flanneld, flag) for host in lab.hosts.values()])
        image = lab.directory / "busybox.tar"
        write_image(image)
        lab.each(partial(start_docker, image=image))
        containers = together([partial(run_container, host) for host in lab.hosts.values()])
        wait_reached(containers, deadline_s=HEALED_S)
        yield Network(
            lab,
            etcd,
            dict(zip(lab.hosts, daemons, strict=True)),
            dict(zip(lab.hosts, containers, strict=True)),
        )


def start_docker(host: Host, *, image: Path) -> None:
    """Start Docker by a method of step 6: docker4 with the variables of subnet.env, the others with an
    options file.
    """
    if host.name == "docker4":
        host.engine.start("dockerd --bip=${FLANNEL_SUBNET} --mtu=${FLANNEL_MTU}", environment_file=SUBNET_ENV)
    else:
        host.run(["mk-docker-opts.sh", "-c", "-d", DOCKER_OPTIONS])
        host.engine.start("dockerd $DOCKER_OPTS", environment_file=DOCKER_OPTIONS)
    host.engine.import_image(image)


def run_container(host: Host) -> DockerContainer:
    name = {"docker1": "web1", "docker4": "web2"}.get(host.name, f"on-{host.name}")
    return host.engine.run_container(
        name, serving(f"page of {name}", name=name), options=["-P", "--expose=80"]
    )


def flannel0(host: Host) -> str:
    return str(host.lease().network_address)


def test_step_1_the_config_is_read_as_it_was_written(network: Network) -> None:
    said = network.hosts["docker1"].flannelctl("--store", network.etcd.url, "config", "get")

    assert json.loads(said)["Network"] == "10.100.0.0/16"


def test_step_1_flannelctl_checks_and_writes_a_config(network: Network) -> None:
    host, store = network.hosts["docker2"], ("--store", network.etcd.url)

    host.flannelctl(*store, "config", "set", CONFIG)
    bad = host.run(["flannelctl", *store, "config", "set", '{"Network":"10.100.0.0/33"}'], check=False)

    assert bad.returncode == 2
    assert "10.100.0.0/33" in bad.stderr
    stored = network.etcd.etcdctl("get", "--print-value-only", "/coreos.com/network/config")
    assert json.loads(stored) == json.loads(CONFIG)


@pytest.mark.parametrize("name", ["docker1", "docker4"])
def test_step_2_the_log_contains_the_steps(network: Network, name: str) -> None:
    host = network.hosts[name]
    log = (host.directory / "log/flanneld.log").read_text()
    story = [
        "Installing signal handlers",
        "Determining IP address of default interface",
        f"Using {host.address} as external interface",
        f"Using {host.address} as external endpoint",
        "Picking subnet in range 10.100.1.0 ... 10.100.255.0",
        f"Lease acquired: {host.lease()}",
        "Watching for new subnet leases",
    ]

    places = [log.find(f"] {line}\n") for line in story]

    assert -1 not in places, log
    assert places == sorted(places)
    assert all(
        re.match(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ [\w.]+:\d+\] ", line) for line in log.splitlines()
    )


def test_step_3_the_device_equals_that_of_the_cookbook(network: Network) -> None:
    host = network.hosts["docker4"]

    shown = host.run(["ip", "address", "show", "flannel0"]).stdout
    driver = host.run(["ethtool", "-i", "flannel0"]).stdout
    routes = host.run(["ip", "route"]).stdout

    assert re.search(r"flannel0: <POINTOPOINT,.*UP.*> mtu 1472 .* qlen 500\n", shown)
    assert "link/none" in shown
    assert f"inet {flannel0(host)}/16 " in shown
    assert "driver: tun\n" in driver
    assert f"10.100.0.0/16 dev flannel0 proto kernel scope link src {flannel0(host)} \n" in routes


def test_step_3_the_other_hosts_flannel0_answers_with_ttl_62(network: Network) -> None:
    one, other = network.hosts["docker1"], network.hosts["docker4"]

    result = ping(one, flannel0(other))

    assert result.is_reached
    assert result.ttl == 62


def test_step_4_subnet_env_contains_the_lease(network: Network) -> None:
    subnets = []
    for host in network.hosts.values():
        subnet = host.lease()
        first = f"{subnet.network_address + 1}/{subnet.prefixlen}"
        assert (host.directory / "run/flannel/subnet.env").read_text() == (
            f"FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET={first}\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
        )
        subnets.append(subnet)

    assert len(set(subnets)) == 4
    assert all(subnet.subnet_of(NETWORK) and subnet.prefixlen == 24 for subnet in subnets)


def test_step_4_a_deleted_subnet_env_is_written_again(network: Network) -> None:
    path = network.hosts["docker2"].directory / "run/flannel/subnet.env"
    text = path.read_text()

    path.unlink()

    wait_until(path.exists, what="subnet.env", deadline_s=HEALED_S)
    assert path.read_text() == text


def test_step_5_mk_docker_opts_writes_the_options_of_the_cookbook(network: Network) -> None:
    host = network.hosts["docker1"]

    for command in ("mk-docker-opts.sh", "mk-docker-opts"):
        host.run([command, "-c", "-d", "/run/example_docker_config"])
        written = host.run(["cat", "/run/example_docker_config"]).stdout
        assert written == f'DOCKER_OPTS=" --bip={host.gateway()} --ip-masq=true --mtu=1472"\n'


@pytest.mark.parametrize("name", ["docker1", "docker4"])
def test_step_6_docker_uses_the_leased_subnet_with_either_method(network: Network, name: str) -> None:
    host = network.hosts[name]

    shown = host.run(["ip", "-4", "-oneline", "address", "show", "docker0"]).stdout

    assert f" inet {host.gateway()} " in shown


def test_step_7_containers_have_the_mtu_of_the_overlay(network: Network) -> None:
    for name, container in network.containers.items():
        shown = container.run(["busybox", "ip", "address", "show", "eth0"]).stdout
        assert " mtu 1472 " in shown
        assert container.address in network.hosts[name].lease()


def test_step_7_every_container_reaches_every_other_container(network: Network) -> None:
    results = ping_all(network.containers.values())

    assert len(results) == 12
    assert [pair for pair, result in results.items() if not result.is_reached] == []


def test_step_7_pages_are_served_by_address_and_by_published_port(network: Network) -> None:
    web1, web2 = network.containers["docker1"], network.containers["docker4"]

    by_address = fetch(web2, web1.address)
    back = fetch(web1, web2.address)
    by_port = fetch(web2, network.hosts["docker1"].address, port=web1.published_port(80))

    assert (by_address, back, by_port) == ("page of web1", "page of web2", "page of web1")


def test_flannelctl_lists_the_leases_of_all(network: Network) -> None:
    said = json.loads(network.hosts["docker3"].flannelctl("--json", "leases"))

    assert {host.lease().with_prefixlen for host in network.hosts.values()} <= set(
        re.findall(r"[\d.]+/24", json.dumps(said))
    )


@pytest.mark.parametrize(
    "damage",
    [
        "link set flannel0 down",
        "link set flannel0 mtu 1400",
        "address flush dev flannel0",
        "link delete flannel0",
        "route delete 10.100.0.0/16",
    ],
)
def test_damage_is_repaired(network: Network, damage: str) -> None:
    host, other = network.hosts["docker3"], network.containers["docker1"]

    host.run(["ip", *damage.split()])

    wait_until(lambda: ping(host, other.address, count=1).is_reached, what=f"`{damage}`", deadline_s=HEALED_S)
    # A ping is answered with any MTU.
    wait_until(
        lambda: " mtu 1472 " in host.run(["ip", "address", "show", "flannel0"]).stdout,
        what="the correct MTU",
        deadline_s=HEALED_S,
    )


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_no_packet_is_lost_when_the_daemon_ends_and_starts(network: Network, how: str) -> None:
    host = network.hosts["docker2"]
    one, other = network.containers["docker2"], network.containers["docker4"]
    lease = host.lease()
    pings = one.start_in_network([*PING_OFTEN, "-i", "0.005", str(other.address)], name=f"pings-{how}")
    said = pings.log
    assert said is not None
    wait_until(lambda: " ttl=" in said.read_text(), what="pings are answered", deadline_s=HEALED_S)

    getattr(network.daemons["docker2"], how)()
    network.daemons["docker2"] = host.start_flanneld(f"--etcd-endpoints={network.etcd.endpoint}")
    reached = ping(one, other.address, count=10)
    pings.send(signal.SIGINT)
    pings.wait()

    assert reached.is_reached
    assert host.lease() == lease
    answered = {int(number) for number in re.findall(r" icmp_seq=(\d+) ttl=", said.read_text())}
    # The answer to the last ping may be in transit when ping ends. Answers may arrive in another order.
    assert sorted(answered) == list(range(1, max(answered) + 1))
