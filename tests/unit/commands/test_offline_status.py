"""Status and remedy if no daemon responds."""

import asyncio
import json
import os
import resource
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.local_daemon import offline_status, what_to_do
from pyflannel.errors import NotReadyError
from pyflannel.http.sockets import listen_unix
from pyflannel.kernel.host.locks import RunLock
from pyflannel.model.status import Status

SILENT = Status(version="1", is_live=False)
GONE = NotReadyError("flanneld does not respond", hint="Start flanneld.")


def test_each_of_several_networks_is_named_in_the_remedy(tmp_path: Path) -> None:
    """The daemon has a socket for each network and no common socket. A missing common socket does not mean
    that the daemon hangs.
    """
    places = Places(run_dir=tmp_path)

    with (
        RunLock(str(places.lock)),
        listen_unix(tmp_path / "red" / "flanneld.sock"),
        listen_unix(tmp_path / "blue" / "flanneld.sock"),
    ):
        advice = what_to_do(places, SILENT, GONE)

    assert advice == (
        f"flanneld (pid {os.getpid()}) runs several networks:"
        f" select one with --run-dir={tmp_path}/blue or --run-dir={tmp_path}/red."
    )


def test_a_daemon_of_another_prefix_is_named(tmp_path: Path) -> None:
    """The other daemon is not a network of the selected daemon."""
    places = Places(run_dir=tmp_path)
    blue = places.of_prefix("/blue")

    with RunLock(str(blue.lock)), listen_unix(blue.control_socket):
        advice = what_to_do(places, SILENT, GONE)
        with RunLock(str(places.lock)):
            hanging = what_to_do(places, SILENT, GONE)

    assert advice == f"Start flanneld, or select a running flanneld with --run-dir={tmp_path}/@blue."
    assert hanging.startswith(f"flanneld (pid {os.getpid()}) runs: ")


def test_a_running_daemon_that_does_not_respond_hangs(tmp_path: Path) -> None:
    places = Places(run_dir=tmp_path)

    with RunLock(str(places.lock)):
        advice = what_to_do(places, SILENT, GONE)

    assert advice.startswith(f"flanneld (pid {os.getpid()}) runs: read its log")


def test_without_the_right_to_ask_the_remedy_is_another_user(tmp_path: Path) -> None:
    error = NotReadyError("flanneld does not respond", hint="Run flannelctl as root.")
    error.__cause__ = PermissionError()

    assert what_to_do(Places(run_dir=tmp_path), SILENT, error) == "Run flannelctl as root."


def test_the_owner_is_known_without_an_identity_file(tmp_path: Path) -> None:
    """One of several networks has no identity file. An existing identity file takes precedence."""
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "blue.env")
    lease = '{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"us","Host":"docker1"}}'
    known = {"Config": "{}", "Own": "subnets/10.1.2.0-24", "Leases": {"subnets/10.1.2.0-24": lease}}
    places.last_known.write_text(json.dumps(known))

    found = asyncio.run(offline_status(places, ""))
    assert (found.owner, found.host_name) == ("us", "docker1")
    places.identity.write_text('{"Owner":"this host again","Machine":""}')
    assert asyncio.run(offline_status(places, "")).owner == "this host again"


@pytest.mark.parametrize("has_ipv4", [True, False])
def test_subnet_env_names_the_networks_of_a_host_without_a_daemon(tmp_path: Path, has_ipv4: bool) -> None:
    """The original writes nothing else."""
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    ipv4 = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.31.1/24\n" if has_ipv4 else ""
    ipv6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:1f::1/64\n"
    places.subnet_file.write_text(ipv4 + ipv6)

    found = asyncio.run(offline_status(places, ""))

    assert found.network is not None
    assert found.network.network == (IPv4Network("10.100.0.0/16") if has_ipv4 else None)
    assert found.network.ipv6_network == IPv6Network("fd00:5::/48")
    assert found.lease is not None
    own = IPv6Network("fd00:5:0:1f::/64")
    assert (found.lease.subnet, found.lease.ipv6_subnet) == (
        IPv4Network("10.100.31.0/24") if has_ipv4 else own,
        own,
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name", ["flanneld.lock", "device", "identity.json", "last-known.json", "subnet.env"]
)
def test_a_fifo_in_a_directory_of_the_daemon_does_not_block(name: str, tmp_path: Path) -> None:
    """The directories of a daemon may belong to the user flanneld, and root runs flannelctl."""
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    os.mkfifo(tmp_path / name)

    assert not asyncio.run(offline_status(places, "")).is_live


@pytest.mark.parametrize("name", ["identity.json", "last-known.json"])
def test_an_endless_file_in_a_directory_of_the_daemon_is_not_read(name: str, tmp_path: Path) -> None:
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    (tmp_path / name).symlink_to("/dev/zero")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, hard))

    try:
        assert asyncio.run(offline_status(places, "")).owner is None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("backend", "claimed", "links"),
    [
        ({"Type": "vxlan", "VNI": 7}, None, ("flannel.7", "flannel-v6.7")),
        ({"Type": "wireguard"}, "flannel1", ("flannel-wg1", "flannel-wg1-v6")),
        ({"Type": "wireguard", "Mode": "auto"}, None, ("flannel-wg", None)),
        ({"Type": "host-gw"}, None, (None, None)),
        ({"Type": "unknown"}, None, (None, None)),
    ],
)
def test_the_tunnel_devices_are_known_without_a_daemon(
    tmp_path: Path, backend: dict[str, object], claimed: str | None, links: tuple[str | None, str | None]
) -> None:
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    network = {"Network": "10.100.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
    known = {"Config": json.dumps({**network, "Backend": backend}), "Own": "", "Leases": {}}
    lease = "subnets/10.100.2.0-24&fd00:5:0:2::-64"
    known |= {"Own": lease, "Leases": {lease: '{"PublicIP":"10.0.0.1","PublicIPv6":"fd07::1"}'}}
    places.last_known.write_text(json.dumps(known))
    if claimed is not None:
        places.device_file.write_text(claimed)

    found = asyncio.run(offline_status(places, "")).backend

    assert found is not None
    assert (found.link, found.ipv6_link) == links


def test_the_device_of_udp_is_the_claimed_device_without_daemon_and_forwarder(tmp_path: Path) -> None:
    places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    lease = "subnets/10.1.2.0-24"
    known = {
        "Config": '{"Network":"10.1.0.0/16"}',
        "Own": lease,
        "Leases": {lease: '{"PublicIP":"10.0.0.1"}'},
    }
    places.last_known.write_text(json.dumps(known))
    places.device_file.write_text("flannel2")

    found = asyncio.run(offline_status(places, "")).backend

    assert found is not None
    assert (found.type, found.link) == ("udp", "flannel2")
