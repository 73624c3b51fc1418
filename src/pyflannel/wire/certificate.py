"""The validity period of an X.509 certificate.

This module reads only the parts of DER that contain the validity period. Source: RFC 5280 section 4.1, X.690
section 8.
"""

import base64
import binascii
import re
from datetime import UTC, datetime

from msgspec import Struct

from pyflannel.errors import WireError

_SEQUENCE = 0x30
_VERSION = 0xA0
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s([^-]*)-----END CERTIFICATE-----")


class Validity(Struct, frozen=True):
    """The first and the last second of the validity period of a certificate."""

    not_before: datetime
    not_after: datetime


def validity_of(pem: str) -> Validity:
    """Return the validity of the first certificate in a PEM text. In a chain, the first certificate is the
    certificate of the holder.

    Raises:
        WireError: the text contains no certificate, or the format of the certificate is invalid.
    """
    found = _PEM.search(pem)
    if found is None:
        raise WireError(
            "the file contains no certificate", hint="A certificate begins with -----BEGIN CERTIFICATE-----."
        )
    return _read(found[1])


def validities_of(pem: str) -> list[Validity]:
    """Return the validity of each certificate in a PEM text, such as a bundle of authorities.

    Raises:
        WireError: the format of a certificate is invalid.
    """
    return [_read(text) for text in _PEM.findall(pem)]


def _read(text: str) -> Validity:
    try:
        return _validity(base64.b64decode(text))
    except (binascii.Error, ValueError, IndexError) as error:
        raise WireError(
            "the certificate in the file is damaged", hint="Create the certificate again."
        ) from error


def _validity(certificate: bytes) -> Validity:
    outer = _element(certificate, 0, _SEQUENCE)
    signed = _element(certificate, outer.start, _SEQUENCE)
    at = signed.start
    if certificate[at] == _VERSION:
        at = _element(certificate, at).stop
    for _ in ("serial number", "signature algorithm", "issuer"):
        at = _element(certificate, at).stop
    validity = _element(certificate, at, _SEQUENCE)
    not_before, after = _time(certificate, validity.start)
    not_after, _ = _time(certificate, after)
    return Validity(not_before, not_after)


def _element(data: bytes, at: int, tag: int | None = None) -> range:
    """Return start and end of the content of the element at `at`."""
    if tag is not None and data[at] != tag:
        raise ValueError(f"tag {data[at]:#x} at {at}")
    length, start = data[at + 1], at + 2
    if length & 0x80:  # the long form contains the number of bytes of the length
        after = start + (length & 0x7F)
        length, start = int.from_bytes(data[start:after], "big"), after
    if start + length > len(data):
        raise ValueError(f"the element at {at} exceeds the text")
    return range(start, start + length)


def _time(data: bytes, at: int) -> tuple[datetime, int]:
    where = _element(data, at)
    text = data[where.start : where.stop].decode("ascii")
    if data[at] == _UTC_TIME:  # two digits of the year; RFC 5280 section 4.1.2.5.1 defines the century
        text = ("19" if text >= "50" else "20") + text
    elif data[at] != _GENERALIZED_TIME:
        raise ValueError(f"tag {data[at]:#x} is not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), where.stop
