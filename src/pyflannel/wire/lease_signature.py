"""Signatures of leases: what a signature covers, and Ed25519.

A signature covers the prefix of the store, the key of the lease and its value without the signature: subnet,
owner, addresses, backend, port, counter and public key. The value is covered as this version writes it, so
that spelling and order in the store do not matter.

The library is imported by the first call, because it takes 8 MiB of memory.
"""

from dataclasses import replace

from pyflannel.model.lease import Lease
from pyflannel.model.store_record import Secret
from pyflannel.wire.lease_record import lease_key, lease_value

_PURPOSE = b"pyflannel lease 1"
"""Distinguishes these signatures from all others of the key."""


def signed_octets(prefix: str, lease: Lease) -> bytes:
    """Return what a signature of the lease covers: each part after its length, as netstrings."""
    unsigned = replace(lease, attributes=replace(lease.attributes, signature=None))
    parts = _PURPOSE, prefix.encode(), lease_key(lease).encode(), lease_value(unsigned)
    return b"".join(b"%d:%s," % (len(part), part) for part in parts)


def sign(prefix: str, lease: Lease, counter: int, key: bytes, private: Secret) -> Lease:
    """Return the lease, signed by a key pair with this counter; the private key in hexadecimal digits."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    attributes = replace(lease.attributes, signing_key=key, counter=counter, signature=None)
    lease = replace(lease, attributes=attributes)
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private.reveal()))
    return replace(lease, attributes=replace(attributes, signature=signer.sign(signed_octets(prefix, lease))))


def is_authentic(prefix: str, lease: Lease) -> bool:
    """Return whether the key in the lease signed it, with a counter, in this store."""
    attributes = lease.attributes
    if attributes.signing_key is None or attributes.signature is None or attributes.counter is None:
        return False
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        verifier = Ed25519PublicKey.from_public_bytes(attributes.signing_key)
        verifier.verify(attributes.signature, signed_octets(prefix, lease))
    except (InvalidSignature, ValueError):
        return False
    return True
