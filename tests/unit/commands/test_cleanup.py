"""Whose routes and rules a cleanup may take, and how it says what it took."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.cleanup import claimed_name, in_lines
from pyflannel.errors import BusyError
from pyflannel.model.link import Link
from pyflannel.model.route import Route


@pytest.fixture(autouse=True)
def claims(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names that running daemons hold: here nobody does, whatever runs on this machine."""
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
    """The places of the host's usual daemon, and no others."""
    monkeypatch.setattr("pyflannel.assembly.directories._RUN_DIR", tmp_path)
    return Places(run_dir=tmp_path)


def tun(name: str, alias: str) -> Link:
    return Link(name=name, kind="tun", mtu=1472, alias=alias)


def test_what_the_daemon_kept_counts_most(usual: Places) -> None:
    usual.device_file.write_text("flannel3\n")

    assert claimed_name(usual, [tun("flannel5", usual.mark)]) == "flannel3"


def test_without_a_word_its_device_tells(usual: Places, tmp_path: Path) -> None:
    assert claimed_name(usual, [tun("flannel5", usual.mark)]) == "flannel5"
    blue = Places(run_dir=tmp_path / "blue")
    assert claimed_name(blue, [tun("flannel5", blue.mark), tun("flannel0", usual.mark)]) == "flannel5"


def test_the_usual_daemon_has_flannel0_unless_another_has(
    usual: Places, tmp_path: Path, claims: set[str]
) -> None:
    """By its link, by the file in its run directory, or by its claim while it runs."""
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


def test_the_network_of_another_daemon_with_vxlan_is_left_alone(usual: Places, tmp_path: Path) -> None:
    """Its link does not have the claimed name; its run directory has."""
    elsewhere = tmp_path / "a" / "b"
    elsewhere.mkdir(parents=True)
    (elsewhere / "device").write_text("flannel0\n")
    link = Link(name="flannel.1", kind="vxlan", mtu=1450, alias=f"pyflannel {elsewhere}")

    assert claimed_name(usual, [link]) is None


def test_few_are_named_and_many_are_counted() -> None:
    routes = [Route(destination=IPv4Network((f"10.100.{n}.0", 24)), link="eth0") for n in range(9)]
    link = tun("flannel0", "pyflannel")

    assert list(in_lines([link, *routes[:2]])) == [
        "link flannel0",
        "route 10.100.0.0/24",
        "route 10.100.1.0/24",
    ]
    assert list(in_lines([link, *routes])) == ["link flannel0", "9 routes"]
