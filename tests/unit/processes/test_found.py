"""Names in /proc that users of the host choose."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from doubles.started_program import started
from pyflannel.plan.doctor.observed import ContainerRoute
from pyflannel.processes.containers import (
    container_in,
    container_name,
    ended_containers,
    frozen_by,
    ipv6_addresses_in,
    ipv6_routes_in,
    routes_in,
)
from pyflannel.processes.found import find_link_setters, find_original

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "\x1f\x1f", "a\x85b", "\u2028"])
def test_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """A user without rights can create a namespace with a link of any name."""
    line = f"{name}\t0001030A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0" + " " * 20 + "\n"

    assert list(routes_in(HEAD + line)) == [ContainerRoute(destination=IPv4Network("10.3.1.0/24"))]


@pytest.mark.parametrize("flags", ["0201", "0001"])
def test_routes_that_refuse_packets_are_marked(flags: str) -> None:
    """The kernel marks the types unreachable and prohibit by a flag, but not the type blackhole."""
    line = f"*\t0000030A\t00000000\t{flags}\t0\t0\t0\t0000FFFF\t0\t0\t0\n"

    refused = ContainerRoute(destination=IPv4Network("10.3.0.0/16"), is_refused=True)
    assert list(routes_in(HEAD + line)) == [refused]


def test_the_gateway_of_a_route_is_read() -> None:
    (route,) = routes_in(f"{HEAD}eth0\t00000000\t0101030A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")

    assert route.gateway == IPv4Address("10.3.1.1")


ZERO = "0" * 32
GATEWAY = "fe80" + "0" * 27 + "1"


@pytest.mark.parametrize("name", ["eth0", "a\x1cb", "\x1c", "a\x85b", "\u2028"])
def test_ipv6_addresses_and_routes_are_read_with_any_name_of_the_link(name: str) -> None:
    """The route to an own address, and the default route of every namespace, are omitted."""
    address = "fd000005000000070000000000000002"
    network = "fd000005000000070000000000000000"
    routes = "".join(
        f"{to} {length} {ZERO} 00 {gateway} 00000400 00000001 00000000 {flags} {name}\n"
        for to, length, gateway, flags in (
            (network, "40", ZERO, "00000001"),
            (network, "30", ZERO, "00200200"),
            (ZERO, "00", GATEWAY, "00000003"),
            (address, "80", ZERO, "80200001"),
            (ZERO, "00", ZERO, "00200200"),
        )
    )

    assert list(ipv6_addresses_in(f"{address} 02 40 00 80     {name}\n")) == [IPv6Address("fd00:5:0:7::2")]
    assert list(ipv6_routes_in(routes)) == [
        ContainerRoute(destination=IPv6Network("fd00:5:0:7::/64")),
        ContainerRoute(destination=IPv6Network("fd00:5::/48"), is_refused=True),
        ContainerRoute(destination=IPv6Network("::/0"), gateway=IPv6Address("fe80::1")),
    ]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter."""
    with TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a program as another user")
def test_only_a_process_with_rights_counts_as_the_original(open_directory: Path) -> None:
    """If the name were sufficient, any user could prevent `flannelctl cleanup` from removing objects of the
    original.
    """
    program = Path(shutil.copy("/bin/sleep", open_directory / "flanneld"))

    with started([program, "60"], user=65534):
        assert find_original() is None
        with started([program, "60"], user=0) as pid:
            assert find_original() == pid


@pytest.mark.parametrize(
    ("cgroup", "container_id"),
    [
        ("0::/system.slice/docker-" + "0b20cc2d451d" + "a" * 52 + ".scope\n", "0b20cc2d451d"),
        ("9:pids:/any/" + "0b20cc2d451d" + "a" * 52 + "\n0::/\n", "0b20cc2d451d"),
        ("0::/docker/" + "0b20cc2d451d" + "a" * 52 + "\n", "0b20cc2d451d"),
        ("0::/system.slice/docker.service\n", ""),
        ("0::/user.slice/session-1.scope\n", ""),
        ("", ""),
    ],
)
def test_the_container_of_a_process_is_read_from_its_control_group(cgroup: str, container_id: str) -> None:
    assert container_in(cgroup) == container_id


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"ID": "0b", "Name": "/web2", "Config": {"Env": ["Name=/other"]}}', "web2"),
        ('{"Name": "/web2; reboot"}', ""),
        ('{"Name": "/web2\\n"}', ""),
        ('{"Name": 7}', ""),
        ('{"ID": "0b"}', ""),
        ("{", ""),
        ("", ""),
    ],
)
def test_the_name_of_a_container_is_read_from_its_configuration(text: str, name: str, tmp_path: Path) -> None:
    container = "0b20cc2d451d" + "a" * 52
    (tmp_path / container).mkdir()
    (tmp_path / container / "config.v2.json").write_text(text)

    assert container_name(f"0::/docker/{container}\n", tmp_path) == name
    assert container_name("0::/\n", tmp_path) == ""


@pytest.mark.parametrize(
    ("script", "is_found"),
    [
        ("read x; ip link set br-x9 down", True),
        ("read x; ip link set 'br-x9' down;true", True),
        ("read x; ip link set br-x9 up", False),
        ("read x; ip link set br-x91 down", False),
    ],
)
def test_a_program_whose_command_line_sets_a_link_down_is_found(script: str, is_found: bool) -> None:
    """The shell waits without a child, which would have the same command line until it runs its program."""
    with started(["sh", "-c", script]) as pid:
        found = find_link_setters("br-x9")
        running = find_link_setters("other", [pid])

    assert [one.pid for one in found] == ([pid] if is_found else [])
    assert [(one.pid, one.command) for one in running] == [(pid, f"sh -c {script}")]


@pytest.mark.parametrize(
    ("cgroup", "file", "running", "frozen"),
    [
        ("9:cpu:/\n6:freezer:/docker/ab\n0::/\n", "freezer/docker/ab/freezer.state", "THAWED", "FROZEN"),
        ("0::/docker/ab\n", "docker/ab/cgroup.events", "populated 1\nfrozen 0", "populated 1\nfrozen 1"),
        ("6:freezer:/\n0::/ab\n", "unified/ab/cgroup.events", "populated 1\nfrozen 0", "frozen 1"),
    ],
)
def test_a_frozen_control_group_is_found(
    tmp_path: Path, cgroup: str, file: str, running: str, frozen: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{running}\n")
    assert frozen_by(cgroup, tmp_path) == ""
    path.write_text(f"{frozen}\n")

    assert frozen_by(cgroup, tmp_path) == str(path)
    assert frozen_by("", tmp_path) == frozen_by("broken", tmp_path) == ""


NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "state", "is_found"),
    [
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25.123456789Z"', True),
        ("/web2", '"Running":true,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":0,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":143,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T10:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"0001-01-01T00:00:00Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T13:00:00Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":7', False),
        ("/a; reboot", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25Z"', False),
    ],
)
def test_containers_that_ended_are_read_from_their_state(
    tmp_path: Path, name: str, state: str, is_found: bool
) -> None:
    (tmp_path / "0b20").mkdir()
    (tmp_path / "0b20/config.v2.json").write_text(f'{{"Name":"{name}","State":{{{state},"OOMKilled":true}}}}')
    (tmp_path / "0b21").mkdir()

    found = ended_containers(tmp_path, NOW)

    assert [(one.name, one.exit_code, round(one.ago_s), one.lacked_memory) for one in found] == (
        [("web2", 137, 35, True)] if is_found else []
    )
