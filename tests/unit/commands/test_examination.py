"""The present and former networks of a host."""

from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyflannel.assembly.directories import Places
from pyflannel.commands.examination import certificates_for, known_networks
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


def certificate(ends: int) -> str:
    """Return a certificate in PEM that is valid from 2020 until the start of a year."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(ends, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_the_certificates_of_etcd_are_read_from_the_files_in_the_url(tmp_path: Path) -> None:
    """The first certificate of a chain belongs to the holder of the key. Of several authorities, one valid
    authority is sufficient.
    """
    own, authorities = tmp_path / "own.pem", tmp_path / "ca.pem"
    own.write_text(certificate(2031) + certificate(2040))
    authorities.write_text(certificate(2021) + certificate(2035))

    found = certificates_for(f"etcds://10.0.0.1/x?cafile={authorities}&certfile={own}&keyfile=/none")

    assert [(one.path, one.noun) for one in found] == [
        (str(own), "client certificate"),
        (str(authorities), "certificate of the authority"),
    ]
    years = [datetime.fromtimestamp(one.not_after, UTC).year for one in found]
    assert years == [2031, 2035]


def test_a_store_without_certificates_has_none() -> None:
    for url in ("etcd://10.0.0.1/x", "kube:", "sqlite:///leases.db", "etcds://h/x?cafile=/none", "no URL"):
        assert certificates_for(url) == ()
