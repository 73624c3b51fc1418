"""The directories and files of a daemon."""

from pathlib import Path

import pytest

from pyflannel.assembly.daemon import places_of
from pyflannel.assembly.directories import Places, objection
from pyflannel.assembly.options import RequestedText, parse_flanneld
from pyflannel.assembly.stores import parse_store_url
from pyflannel.errors import UsageError
from pyflannel.kernel.host.locks import RunLock

BLUE = "/coreos.com/blue"


@pytest.fixture
def usual(tmp_path: Path) -> Places:
    """The usual places below the directory of the test."""
    return Places(run_dir=tmp_path / "run", state_dir=tmp_path / "state", subnet_file=tmp_path / "subnet.env")


@pytest.mark.parametrize(
    ("text", "name"), [("flannel3\n", "flannel3"), ("", None), ("eth0", None), ("flannel0\nx", None)]
)
def test_the_device_name_that_was_claimed_last_is_known(tmp_path: Path, text: str, name: str | None) -> None:
    """An invalid name in the file is ignored."""
    places = Places(run_dir=tmp_path)
    assert places.device() is None
    places.device_file.write_text(text)

    assert places.device() == name


def test_several_networks_share_the_directory_of_pins(tmp_path: Path) -> None:
    """The directory is mounted before the names of the networks are known."""
    places = Places(run_dir=tmp_path)

    blue = places.of_network("blue", tmp_path / "networks")
    assert blue.bpf == places.bpf
    assert blue.run_dir.parent == places.bpf.parent
    with pytest.raises(UsageError, match="networks"):
        parse_flanneld([f"--networks={places.bpf.name}"], {})


def test_the_places_of_one_of_several_networks_are_recognised_by_their_names(tmp_path: Path) -> None:
    """A daemon whose directories have these names is distinguished by its identity file."""
    daemon = Places(run_dir=tmp_path, state_dir=tmp_path / "state", subnet_file=tmp_path / "subnet.env")
    made = daemon.of_network("blue", tmp_path / "networks")
    named = Places(run_dir=made.run_dir, state_dir=made.state_dir, subnet_file=made.subnet_file)
    assert (daemon.network, named.network) == (None, "blue")

    named.state_dir.mkdir(parents=True)
    named.identity.touch()

    assert named.network is None


def test_another_prefix_has_directories_in_the_usual_directories(usual: Places) -> None:
    """A daemon with the default prefix, or with a store without prefixes, has the usual directories."""
    blue = usual.of_prefix(BLUE)

    assert blue.run_dir == usual.run_dir / "@coreos.com@blue"
    assert blue.state_dir == usual.state_dir / "@coreos.com@blue"
    assert blue.mark == f"pyflannel {blue.run_dir}"
    assert usual.of_prefix("/coreos.com/network") == usual.of_prefix(None) == usual


def test_every_prefix_has_its_own_directory(usual: Places) -> None:
    """The name is never the name of a network, and the path of a socket in the directory is not too long."""
    prefixes = ["/a/b", "/a@b", "/a%40b", "/ab", "/a//b", "/ä", "/" + "x" * 80, "/" + "x" * 81, "/\udcff"]

    names = [usual.of_prefix(prefix).run_dir.name for prefix in prefixes]

    assert len(set(names)) == len(prefixes)
    assert all(len(name) <= 64 and "/" not in name and objection(name) for name in names)


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("etcd://a", "/coreos.com/network"),
        ("etcd://a/coreos.com/network/", "/coreos.com/network"),
        ("etcds://a/x?username=u&password-file=p", "/x"),
        ("etcd://a#blue", "/coreos.com/network/blue"),
        ("sqlite:///tmp/x.db#blue", None),
    ],
)
def test_the_prefix_is_part_of_the_store_url(url: str, prefix: str | None) -> None:
    assert parse_store_url(url).prefix == prefix


@pytest.mark.parametrize(
    ("flags", "run_dir", "state_dir"),
    [
        ([], "/run/flannel", "/var/lib/flannel"),
        ([f"--etcd-prefix={BLUE}"], "/run/flannel/@coreos.com@blue", "/var/lib/flannel/@coreos.com@blue"),
        ([f"--store=etcd://a{BLUE}"], "/run/flannel/@coreos.com@blue", "/var/lib/flannel/@coreos.com@blue"),
        ([f"--etcd-prefix={BLUE}", "--run-dir=/r", "--state-dir=/s"], "/r", "/s"),
        (["--store=sqlite:///x.db"], "/run/flannel", "/var/lib/flannel"),
    ],
)
def test_given_directories_take_precedence_over_those_of_the_prefix(
    flags: list[str], run_dir: str, state_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "_belong_to", lambda *_: False)  # independent of this machine
    options = parse_flanneld([*flags, "--subnet-file=/f"], {})
    assert not isinstance(options, RequestedText)

    places = places_of(options)

    assert (places.run_dir, places.state_dir) == (Path(run_dir), Path(state_dir))
    assert places.subnet_file == Path("/f")


def test_the_identity_of_an_older_version_in_the_usual_directory_is_kept(usual: Places) -> None:
    """An older version used the usual directory with any prefix. The next start records this use."""
    usual.state_dir.mkdir()
    usual.identity.touch()
    assert usual.of_prefix(BLUE) == usual

    usual.keep_prefix(BLUE)

    assert usual.of_prefix(BLUE) == usual
    assert usual.of_prefix("/red") != usual


@pytest.mark.parametrize("prefix", [None, "/coreos.com/network", "/red"])
def test_the_usual_directory_of_another_daemon_is_not_used(usual: Places, prefix: str | None) -> None:
    """The other daemon uses a database file, which has no prefix."""
    usual.state_dir.mkdir()
    usual.identity.touch()
    usual.keep_prefix(prefix)

    assert usual.of_prefix(BLUE).run_dir == usual.run_dir / "@coreos.com@blue"


def test_a_running_older_version_has_the_usual_directory(usual: Places) -> None:
    usual.state_dir.mkdir()
    usual.identity.touch()

    with RunLock(str(usual.lock)):
        blue = usual.of_prefix(BLUE)

    assert blue.run_dir.parent == usual.run_dir


def test_directories_of_a_prefix_stay_its_own(usual: Places) -> None:
    """The record in the usual directory has no effect on the directories of a prefix."""
    blue = usual.of_prefix(BLUE)
    blue.state_dir.mkdir(parents=True)
    blue.identity.touch()
    usual.identity.touch()

    assert usual.of_prefix(BLUE) == blue
