"""The validity of a certificate is read as written by another implementation."""

import contextlib
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.certificate import Validity, validity_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_S = 365 * 86400
KEY = ec.generate_private_key(ec.SECP256R1())
SECONDS = st.integers(-20 * YEAR_S, 8000 * YEAR_S).map(lambda second: EPOCH + timedelta(seconds=second))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60).filter(
    lambda name: len(name.encode()) <= 64  # bytes, of a common name (RFC 5280 appendix A.1)
)


def pem(not_before: datetime, not_after: datetime, issuer: str = "ca") -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .sign(KEY, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@given(times=st.tuples(SECONDS, SECONDS).map(sorted), issuer=NAMES, before=st.text(), after=st.text())
@settings(deadline=None)
def test_the_first_certificate_of_a_text_is_read(
    times: list[datetime], issuer: str, before: str, after: str
) -> None:
    """Before 2050 the times have the type UTCTime, from 2050 on GeneralizedTime; a chain may follow."""
    validity = validity_of(f"{before}\n{pem(*times, issuer)}\n{after}")

    assert validity == Validity(*times)


@given(data=st.binary(max_size=400))
def test_anything_else_is_refused(data: bytes) -> None:
    text = f"-----BEGIN CERTIFICATE-----\n{data.hex()}\n-----END CERTIFICATE-----"
    with pytest.raises(WireError):
        validity_of(text)
    with pytest.raises(WireError):
        validity_of(data.decode("latin-1"))


@given(at=st.integers(0, 300), length=st.integers(1, 8), instead=st.binary(max_size=8))
@settings(deadline=None)
def test_a_damaged_certificate_is_refused_or_read(at: int, length: int, instead: bytes) -> None:
    """The parser raises only WireError."""
    data = ssl.PEM_cert_to_DER_cert(pem(EPOCH, EPOCH))
    text = ssl.DER_cert_to_PEM_cert(data[:at] + instead + data[at + length :])

    with contextlib.suppress(WireError):
        validity_of(text)
