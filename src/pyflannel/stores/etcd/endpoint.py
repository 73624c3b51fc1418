"""The address of an etcd member, and the TLS files for it: CA, client certificate and key."""

from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pyflannel.errors import StoreError, WireError
from pyflannel.wire.certificate import validity_of


class Endpoint(Struct, frozen=True):
    """A host, by name or address, and a port."""

    host: str
    port: int

    @property
    def ipv4(self) -> IPv4Address | None:
        """The host's IPv4 address; None for a name, or an IPv6 address."""
        try:
            return IPv4Address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


try:
    from ssl import SSLCertVerificationError, SSLError
except ImportError:

    class SSLError(OSError):  # type: ignore[no-redef]
        """TLS failed."""

        reason = ""

    class SSLCertVerificationError(SSLError):  # type: ignore[no-redef]
        """The certificate of the other side is not valid."""

        verify_message = ""


__all__ = ["SSLCertVerificationError", "SSLError"]


if TYPE_CHECKING:
    import ssl


class TlsFiles(Struct, frozen=True, kw_only=True):
    """PEM files. The files are read for each connection, so that replaced files are used.

    Attributes:
        ca: certificate authorities for the members; None for the authorities of the system.
        certificate: client certificate, followed by its chain; None if members do not require a client
            certificate.
        key: private key of the client certificate, without a pass phrase; given if and only if `certificate`
            is given.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> "ssl.SSLContext":
        """Return the settings for a new connection: TLS 1.2 or newer, with a check of the member's name.

        Raises:
            StoreError: a file is unreadable or unusable; the message names the file.
        """
        import ssl  # this import is not at the top, see programs/own_process.py

        context = ssl.create_default_context() if self.ca is None else _trusting(self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As in Go: the name of a member must be in the extension for names, and certificates of old
        # authorities are valid without the extensions that Python 3.13 requires.
        context.hostname_checks_common_name = False
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
        if self.certificate is not None and self.key is not None:
            _show(context, self.certificate, self.key)
        return context


def _trusting(ca: Path) -> "ssl.SSLContext":
    import ssl

    text = _read(ca, "CA file")
    try:
        return ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise StoreError(
            f"the etcd CA file {ca} contains no usable certificate",
            hint="Use the PEM certificate of the authority that signed etcd's certificate.",
        ) from error


def _show(context: "ssl.SSLContext", certificate: Path, key: Path) -> None:
    """Add the client certificate to `context`. The certificate is checked first, because a member refuses a
    certificate without stating the reason.
    """
    try:
        validity = validity_of(_read(certificate, "certificate"))
    except WireError as error:
        raise StoreError(
            f"the etcd certificate {certificate} cannot be used: {error}", hint=error.hint
        ) from error
    _check_time(certificate, validity.not_before, validity.not_after)
    _read(key, "key")
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_pass_phrase(key))
    except SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StoreError(
                f"the etcd key {key} does not belong to the certificate {certificate}",
                hint="Use the key and the certificate that were created together.",
            ) from error
        raise StoreError(
            f"the etcd key {key} or the certificate {certificate} cannot be used",
            hint="The key and the certificate must be PEM files. The key begins with -----BEGIN PRIVATE "
            "KEY----- or BEGIN EC PRIVATE KEY.",
        ) from error


def _check_time(certificate: Path, not_before: datetime, not_after: datetime) -> None:
    now = datetime.now(UTC)
    if now > not_after:
        raise StoreError(
            f"the etcd certificate {certificate} expired at {not_after:%Y-%m-%d %H:%M:%S} UTC",
            hint="Replace the file. flanneld uses the new certificate at the next attempt.",
        )
    if now < not_before:
        raise StoreError(
            f"the etcd certificate {certificate} is not valid before {not_before:%Y-%m-%d %H:%M:%S} UTC",
            hint="Check the clock of this host, and the certificate.",
        )


def _refuse_pass_phrase(key: Path) -> str:
    # Without this callback, OpenSSL would ask for the pass phrase on the terminal.
    raise StoreError(
        f"the etcd key {key} is protected by a pass phrase",
        hint="Remove the pass phrase from the key, and set mode 0600.",
    )


def _read(path: Path, kind: str) -> str:
    try:
        # A bundle may contain names between its certificates, and the names may not be UTF-8.
        return path.read_text(encoding="ascii", errors="ignore")
    except OSError as error:
        raise StoreError(
            f"the etcd {kind} {path} cannot be read: {error.strerror}",
            hint="Create the file, readable for flanneld. flanneld reads the file at each attempt.",
        ) from error
