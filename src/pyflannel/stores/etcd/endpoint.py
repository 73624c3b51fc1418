"""The address of an etcd member, and TLS towards it: authorities and the host's own certificate."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyflannel.errors import StoreError, WireError
from pyflannel.wire.certificate import validity_of


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


try:
    from ssl import SSLCertVerificationError, SSLError
except ImportError:

    class SSLError(OSError):  # type: ignore[no-redef]
        """TLS failed."""

        reason = ""

    class SSLCertVerificationError(SSLError):  # type: ignore[no-redef]
        """A certificate was not accepted."""

        verify_message = ""


__all__ = ["SSLCertVerificationError", "SSLError"]


if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files, PEM each; they are read again for each connection, so that replaced ones are used.

    Attributes:
        ca: the authorities that may have signed a member's certificate; None for those of the system.
        certificate: ours, its chain behind it; None when members do not ask for one.
        key: its private key, without a pass phrase; given exactly with `certificate`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> "ssl.SSLContext":
        """Return what a connection is made with now: TLS 1.2 or newer, the member's name checked.

        Raises:
            StoreError: a file cannot be read or used; the message names it.
        """
        import ssl  # not at the top: see programs/process_memory.py

        context = ssl.create_default_context() if self.ca is None else _trusting(self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As Go does: names stand in the extension made for them, and authorities of old, which lack
        # extensions that Python 3.13 asks for, are good enough.
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
            f"the etcd CA file {ca} holds no usable certificate",
            hint="Give the certificate of the authority that signed etcd's, in PEM.",
        ) from error


def _show(context: "ssl.SSLContext", certificate: Path, key: Path) -> None:
    """Make our certificate part of `context`; what a member would refuse without a word is refused here."""
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
                f"the etcd key {key} is not that of the certificate {certificate}",
                hint="Give the two files that were made together.",
            ) from error
        raise StoreError(
            f"the etcd key {key} or the certificate {certificate} cannot be used",
            hint="Both are PEM; the key begins with -----BEGIN PRIVATE KEY----- or BEGIN EC PRIVATE KEY.",
        ) from error


def _check_time(certificate: Path, not_before: datetime, not_after: datetime) -> None:
    now = datetime.now(UTC)
    if now > not_after:
        raise StoreError(
            f"the etcd certificate {certificate} expired at {not_after:%Y-%m-%d %H:%M:%S} UTC",
            hint="Put a new one in its place: it is used at the next try.",
        )
    if now < not_before:
        raise StoreError(
            f"the etcd certificate {certificate} is valid only from {not_before:%Y-%m-%d %H:%M:%S} UTC on",
            hint="Check the clock of this host, and the certificate.",
        )


def _refuse_pass_phrase(key: Path) -> str:
    # Without this OpenSSL would ask for it on the terminal.
    raise StoreError(
        f"the etcd key {key} is protected by a pass phrase", hint="Give the key without one, mode 0600."
    )


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii", errors="ignore")  # bundles carry names in between
    except OSError as error:
        raise StoreError(
            f"the etcd {what} {path} cannot be read: {error.strerror}",
            hint="It is read at each try: put it there, and let flanneld read it.",
        ) from error
