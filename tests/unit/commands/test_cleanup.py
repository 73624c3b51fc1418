"""The device name by which a cleanup finds routes and rules, and the lines about removed objects."""

import asyncio
import socket
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.cleanup import Cleanup, _dead_docker_socket, claimed_name, in_lines, owner_of
from pyflannel.errors import BusyError
from pyflannel.model.link import Link
from pyflannel.model.route import Route
from pyflannel.model.status import Status


@pytest.fixture(autouse=True)
def claims(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Device names of running daemons: none, regardless of the programs on this machine."""
    held: set[str] = set()

    class Claim:
        def __init__(self, names: list[str]) -> None:
            if held.issuperset(names):
                raise BusyError("held", hint="")

        def close(self) -> None:
            pass

    monkeypatch.setattr("pyflannel.commands.cleanup.DeviceClaim", Claim)
    return held


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The places of the usual daemon of the host."""
    monkeypatch.setattr("pyflannel.assembly.directories._RUN_DIR", tmp_path)
    return Places(run_dir=tmp_path)


def tun(name: str, alias: str) -> Link:
    return Link(name=name, kind="tun", mtu=1472, alias=alias)


def test_the_recorded_name_has_precedence(usual: Places) -> None:
    usual.device_file.write_text("flannel3\n")

    assert claimed_name(usual, [tun("flannel5", usual.mark)]) == "flannel3"


def test_without_a_record_the_device_determines_the_name(usual: Places, tmp_path: Path) -> None:
    assert claimed_name(usual, [tun("flannel5", usual.mark)]) == "flannel5"
    blue = Places(run_dir=tmp_path / "blue")
    assert claimed_name(blue, [tun("flannel5", blue.mark), tun("flannel0", usual.mark)]) == "flannel5"


def test_the_usual_daemon_has_flannel0_unless_another_daemon_has_flannel0(
    usual: Places, tmp_path: Path, claims: set[str]
) -> None:
    """Another daemon has the name if it has the link, wrote the name to a file, or claims the name while it
    runs.
    """
    blue = tmp_path / "blue"
    assert claimed_name(Places(run_dir=blue), []) is None
    assert claimed_name(usual, [tun("flannel0", "")]) == "flannel0"

    assert claimed_name(usual, [tun("flannel0", f"pyflannel {blue}")]) is None
    claims.add("flannel0")
    assert claimed_name(usual, []) is None
    claims.clear()
    blue.mkdir()
    (blue / "device").write_text("flannel0\n")
    assert claimed_name(usual, []) is None
    (blue / "device").write_text("flannel1\n")
    assert claimed_name(usual, []) == "flannel0"


def test_the_network_of_another_daemon_with_vxlan_is_not_touched(usual: Places, tmp_path: Path) -> None:
    """The name that the daemon claims is not the name of its link, but is in its run directory."""
    elsewhere = tmp_path / "a" / "b"
    elsewhere.mkdir(parents=True)
    (elsewhere / "device").write_text("flannel0\n")
    link = Link(name="flannel.1", kind="vxlan", mtu=1450, alias=f"pyflannel {elsewhere}")

    assert claimed_name(usual, [link]) is None


def test_few_objects_are_listed_and_many_are_counted() -> None:
    routes = [Route(destination=IPv4Network((f"10.100.{n}.0", 24)), link="eth0") for n in range(9)]
    link = tun("flannel0", "pyflannel")

    assert list(in_lines([link, *routes[:2]])) == [
        "link flannel0",
        "route 10.100.0.0/24",
        "route 10.100.1.0/24",
    ]
    assert list(in_lines([link, *routes])) == ["link flannel0", "9 routes"]


@pytest.mark.parametrize(
    ("links", "owner"),
    [
        ([Link(name="flannel.1", kind="vxlan", mtu=1450, owner="a" * 32)], "a" * 32),
        ([Link(name="flannel.1", kind="vxlan", mtu=1450, alias="pyflannel /run/blue", owner="a" * 32)], None),
        ([], None),
    ],
    ids=["own device", "device of another daemon", "no device"],
)
def test_without_files_the_device_has_the_identity_of_the_lease(
    usual: Places, monkeypatch: pytest.MonkeyPatch, links: list[Link], owner: str | None
) -> None:
    """A container without volumes has no files. An identity in the files takes precedence."""

    async def survey() -> list[Link]:
        return links

    monkeypatch.setattr("pyflannel.commands.cleanup.survey", survey)
    status = Status(version=None, is_live=False)

    assert asyncio.run(owner_of(Cleanup(places=usual), status)) == owner
    assert asyncio.run(owner_of(Cleanup(places=usual), replace(status, owner="kept"))) == "kept"
    assert asyncio.run(owner_of(Cleanup(places=usual, node_id="node-7"), status)) == "node-7"


def test_the_plugin_socket_of_a_killed_daemon_is_removed(
    usual: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flannel.sock"
    monkeypatch.setattr("pyflannel.commands.cleanup.DOCKER_SOCKET", path)
    places = replace(usual, state_dir=tmp_path)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        unknown = _dead_docker_socket(places)
        places.docker.write_text("{}")
        listener.listen()
        served = _dead_docker_socket(places)

    assert (unknown, served) == ((), ())
    assert _dead_docker_socket(places) == (path,)
