"""What TLS raises, also in a process that does without OpenSSL: there nothing raises it."""

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
