"""The observations of a host."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyflannel.commands.observations import certificates_for


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
