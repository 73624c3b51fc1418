"""TLS of a connection to etcd: authorities, client certificate, and no prompt for a pass phrase."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.endpoint import TlsFiles

PLAIN = serialization.NoEncryption()


def issue(
    directory: Path,
    name: str,
    *,
    names: tuple[str, ...] = (),
    starts_in: timedelta = timedelta(hours=-1),
    encryption: serialization.KeySerializationEncryption = PLAIN,
) -> TlsFiles:
    """Create a self-signed certificate; return TLS files that use it as CA and client certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.now(UTC) + starts_in
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    if names:
        extension = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(extension, critical=False)
    certificate, key_file = directory / f"{name}.pem", directory / f"{name}-key.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return TlsFiles(ca=certificate, certificate=certificate, key=key_file)


def version_with(server: TlsFiles, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
    """Return the TLS version of a connection to `localhost` with a server of these settings."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(str(server.certificate), server.key)
    serving.maximum_version = newest
    serving.set_alpn_protocols(["h2"])

    async def connect() -> str:
        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        listener = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=serving)
        port = listener.sockets[0].getsockname()[1]
        async with listener, asyncio.timeout(30):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=TlsFiles(ca=server.ca).context(), server_hostname="localhost"
            )
            agreed = writer.get_extra_info("ssl_object")
            writer.transport.abort()
            return f"{agreed.version()} {agreed.selected_alpn_protocol()}"

    return asyncio.run(connect())


def test_http_2_is_negotiated_over_tls_1_2_and_newer(tmp_path: Path) -> None:
    server = issue(tmp_path, "server", names=("localhost",))

    versions = [version_with(server, newest) for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)]

    assert versions == ["TLSv1.2 h2", "TLSv1.3 h2"]


@pytest.mark.parametrize("names", [(), ("elsewhere",)], ids=["its common name alone", "another name"])
def test_a_member_must_have_its_name_in_its_certificate(tmp_path: Path, names: tuple[str, ...]) -> None:
    server = issue(tmp_path, "localhost", names=names)

    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'localhost'"):
        version_with(server)


def test_without_a_ca_file_the_authorities_of_the_system_are_trusted() -> None:
    context = TlsFiles().context()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_text_between_the_certificates_of_a_bundle_is_ignored(tmp_path: Path) -> None:
    client = issue(tmp_path, "client")
    assert client.ca is not None
    client.ca.write_text(f"# Autorité de Nîmes\n{client.ca.read_text()}", encoding="utf-8")

    assert client.context().get_ca_certs() is not None


def test_a_key_with_a_pass_phrase_is_refused_without_a_prompt(tmp_path: Path) -> None:
    """OpenSSL would ask for the pass phrase on the terminal."""
    encryption = serialization.BestAvailableEncryption(b"phrase")
    client = issue(tmp_path, "client", encryption=encryption)

    with pytest.raises(StoreError, match=r"client-key\.pem is protected by a pass phrase"):
        client.context()


def test_a_certificate_that_is_not_valid_yet_is_reported(tmp_path: Path) -> None:
    client = issue(tmp_path, "client", starts_in=timedelta(hours=1))

    with pytest.raises(StoreError, match=r"client\.pem is not valid before \d{4}-") as caught:
        client.context()
    assert "clock" in caught.value.hint


def test_a_file_without_a_key_is_reported(tmp_path: Path) -> None:
    client = issue(tmp_path, "client")
    assert client.key is not None
    client.key.write_text("nothing")

    with pytest.raises(StoreError, match=r"key .*client-key\.pem or the certificate .* cannot be used"):
        client.context()
