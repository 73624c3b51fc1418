"""A running network changes from an earlier version to this version, host by host, and loses no packet."""

import itertools
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

REPOSITORY = Path(__file__).parents[2]
ADDED = "src/pyflannel/engine/transition.py"
"""The earlier version is the last version without this file. The earlier version does not know the key
`Also`."""

INTERVAL_S = 0.01
THREE = Topology(
    (LEFT,),
    tuple(HostPlace(f"docker{n}", LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n in (1, 2, 3)),
)


_FLANNELD = """
import sys
import pyflannel
from pyflannel.programs.flanneld import main
print(pyflannel.__file__, flush=True)
sys.exit(main())
"""


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an installation of an earlier version, from the history of this repository."""
    commit = git("log", "--diff-filter=A", "--format=%H", "-1", "--", ADDED).decode().strip()
    archive = git("archive", f"{commit}^", "src") if commit else b""
    if not archive:
        pytest.skip("needs the history of the repository: a clone with all commits")
    directory = tmp_path_factory.mktemp("earlier")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    environment = directory / "venv"
    venv.create(environment, symlinks=True)
    libraries = Path(sysconfig.get_path("purelib"))
    packages = environment / libraries.relative_to(sys.prefix)
    # Python does not read the .pth file in this path, which would add the sources of this version.
    (packages / "earlier.pth").write_text(f"{directory / 'src'}\n{libraries}\n")
    return environment / "bin/python"


@pytest.fixture
def overlay(make_overlay) -> Iterator[Any]:
    with Lab(f"versions-{os.getpid()}", THREE) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        yield make_overlay(lab, etcd, etcd.start())


def join_earlier(overlay: Any, host: Host, python: Path) -> None:
    command = [python, "-c", _FLANNELD, f"--store={overlay.etcd.url}"]
    overlay.daemons[host.name] = host.start_service(command, name="flanneld")
    assert "earlier" in overlay.log(host)


def wait_answered(source: Host, destination: Host) -> None:
    """Wait until a host answers another. With wireguard, the first packets are lost if both hosts begin a
    handshake at the same moment.
    """
    ping = ["ping", "-c", "1", "-W", "1", "-I", str(source.gateway().ip), str(destination.gateway().ip)]
    wait_until(
        lambda: source.run(ping, check=False).returncode == 0,
        what=f"{destination.name} answers {source.name}",
        deadline_s=60.0,
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [("udp", {}), ("vxlan", {}), ("vxlan", {"DirectRouting": True}), ("wireguard", {})],
    ids=["udp", "vxlan", "vxlan with DirectRouting", "wireguard"],
)
def test_hosts_change_to_this_version_one_after_the_other_without_loss(
    overlay, ping_stream, earlier: Path, long_run: bool, kind: str, options: dict[str, Any]
) -> None:
    """At each step all hosts use the leases of all others."""
    if options and not long_run:
        pytest.skip("needs --long")
    hosts = list(overlay.hosts.values())
    overlay.set_backend(kind, **options)

    def join(host: Host) -> None:
        join_earlier(overlay, host, earlier)
        bridge = f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\n"
        host.run(["ip", "-batch", "-"], text=bridge + "link set docker0 up\n")

    overlay.lab.each(join)
    overlay.settle(*hosts)
    subnets = [host.lease() for host in hosts]
    for source, destination in itertools.permutations(hosts, 2):
        wait_answered(source, destination)
    with ExitStack() as stack:
        streams = [
            stack.enter_context(
                ping_stream(
                    source,
                    destination.gateway().ip,
                    interval_s=INTERVAL_S,
                    options=["-I", str(source.gateway().ip)],
                )
            )
            for source, destination in itertools.permutations(hosts, 2)
        ]
        for host in hosts:
            overlay.daemons[host.name].stop()
            overlay.join(host)
            overlay.settle(*hosts)
            for stream in streams:
                stream.wait_answered()
        statuses = [overlay.wait_ready(host) for host in hosts]

    assert [stream.lost() for stream in streams] == [[]] * len(streams)
    assert [host.lease() for host in hosts] == subnets
    assert [status.refused_peers for status in statuses] == [()] * len(hosts)
