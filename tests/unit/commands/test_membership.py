"""The present and former networks of a host."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.commands.membership import known_networks
from pyflannel.model.status import Membership


def test_networks_come_from_the_store_and_every_subnet_env(tmp_path: Path) -> None:
    """The first releases wrote several subnet.env files. An unreadable file names no network."""
    places = Places(run_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
    (tmp_path / "networks").mkdir()
    places.subnet_file.write_text("FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_IPV6_NETWORK=fd00:5::/48\n")
    (tmp_path / "networks/blue.env").write_text("FLANNEL_NETWORK=10.101.0.0/16,10.102.0.0/16\n")
    (tmp_path / "networks/red.env").write_text("FLANNEL_NETWORK=everything\n")
    (tmp_path / "networks/bad.env").write_text("FLANNEL_NETWORK\n")

    assert known_networks(places, Membership(network=IPv4Network("10.100.0.0/16"))) == {
        *(IPv4Network(f"10.{number}.0.0/16") for number in (99, 100, 101, 102)),
        IPv6Network("fd00:5::/48"),
    }


def test_without_any_file_there_is_no_network(tmp_path: Path) -> None:
    places = Places(run_dir=tmp_path, subnet_file=tmp_path / "none")

    assert known_networks(places, Membership()) == frozenset()
