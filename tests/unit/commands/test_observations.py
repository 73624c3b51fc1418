"""The observations of a host."""

import asyncio
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from pyflannel.commands import observations
from pyflannel.commands.observations import certificates_for
from pyflannel.model.network_config import IpAddress
from pyflannel.model.status import RefusedPeer
from testlab.healthy_host import HEALTHY


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


def test_the_kernel_is_asked_about_marked_packets_to_a_planned_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no route to the subnet of a refused peer, and may use the default route."""
    asked: list[IpAddress] = []

    async def ask_route(way: str, destination: IpAddress, **_: Any) -> None:
        asked.append(destination)

    monkeypatch.setattr(observations, "ask_route", ask_route)
    subnet, address = IPv4Network("10.100.0.0/24"), IPv4Address("192.0.2.1")
    refused = RefusedPeer(subnet=subnet, public_ip=address, reason="it is not on the link")
    status = replace(HEALTHY.status, refused_peers=(refused,))
    peers = {subnet: address, **HEALTHY.membership.peers}
    membership = replace(HEALTHY.membership, peers=peers)
    planned = next(iter(HEALTHY.membership.peers)).network_address + 2

    asyncio.run(
        observations._marked_answers(status, membership, "docker0", ("146: from all fwmark 0x24 lookup 184",))
    )

    assert asked == [planned]
