"""The signatures of the records by which hosts report to each other through the store."""

from collections.abc import Callable
from typing import Protocol

from pyflannel.model.lease import Lease, LeaseKey
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork


class Signatures(Protocol):
    """The signatures of leases, whose keys also sign the records."""

    @property
    def prefix(self) -> str:
        """The prefix of the store, which each signature covers."""

    def key(self, owner: str) -> LeaseKey:
        """Return the key pair of an owner.

        Raises:
            TargetError: the key is unusable.
        """


def signing(signatures: Signatures | None, own: Lease) -> tuple[str, LeaseKey | None]:
    """Return the prefix and the key for a signature of this host; no key if records are not signed.

    Raises:
        TargetError: the key is unusable.
    """
    owner = own.attributes.owner
    if signatures is None or owner is None:
        return "", None
    return signatures.prefix, signatures.key(owner)


def is_authentic(
    signatures: Signatures | None,
    leases: LeaseSet,
    writer: IpNetwork,
    value: bytes,
    is_signed: Callable[[bytes, str, bytes], bool],
) -> bool:
    """Return whether the host with the subnet `writer` has a lease and signed the value.

    Without signatures of leases, the value needs no signature.
    """
    lease = leases.by_subnet.get(writer)
    if lease is None:
        return False
    if signatures is None:
        return True  # as for leases, the permissions of the store limit the writers
    key = lease.attributes.signing_key
    return key is not None and is_signed(value, signatures.prefix, key)
