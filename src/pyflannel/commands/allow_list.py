"""The allow-list of an operator: signed in a file, and published in the store."""

import contextlib
import difflib
from pathlib import Path

from pyflannel.commands.network_client import store_client
from pyflannel.errors import ConfigError, UsageError, WireError
from pyflannel.kernel.host.files import replace_file
from pyflannel.kernel.host.lease_key import OPERATOR, KeyListFile, lease_key
from pyflannel.model.store_record import Secret
from pyflannel.wire.lease_signature import (
    SignedList,
    format_signed_list,
    is_authentic_list,
    parse_allowed_keys,
    parse_signed_list,
    sign_list,
)


def operator_key(path: Path) -> bytes:
    """Return the public key of an operator; create the key if the file does not exist.

    Raises:
        TargetError: the key cannot be created or saved, or the file is unusable.
    """
    return lease_key(path, OPERATOR).public


def sign_file(source: Path, key_file: Path, target: Path, prefix: str, counter: int | None) -> SignedList:
    """Sign the allow-list in a file for a prefix of the store, and write it to another file.

    Args:
        source: the list: one key per line.
        key_file: the key of the operator.
        target: the signed list.
        prefix: prefix of the store.
        counter: counter of the list; None for one more than the counter in `target`.

    Raises:
        ConfigError: the list is invalid or too large.
        TargetError: a file is unreadable.
        UsageError: the key file does not exist, or `target` cannot be written.
    """
    if not key_file.exists():
        raise UsageError(
            f"{key_file} does not exist", hint="Create a key with flannelctl allow-list new-key."
        )
    try:
        text = KeyListFile(source).read_now()
        parse_allowed_keys(text)
        signed = sign_list(prefix, text, counter or _counter_in(target) + 1, lease_key(key_file, OPERATOR))
        replace_file(str(target), format_signed_list(signed) + b"\n")
    except WireError as error:
        raise ConfigError(f"{source}: {error}", hint=error.hint) from error
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror}", hint="Choose another --output."
        ) from error
    return signed


def _counter_in(path: Path) -> int:
    """Return the counter of a signed list; 0 if there is no signed list."""
    with contextlib.suppress(OSError, WireError):
        return parse_signed_list(path.read_bytes()).counter
    return 0


def read_signed(path: Path, prefix: str) -> SignedList:
    """Return the signed list in a file.

    Raises:
        ConfigError: the list is damaged, or not signed for this prefix of the store.
        TargetError: the file is unreadable.
    """
    return _verified(KeyListFile(path).read_now().encode(), prefix, str(path))


def _verified(text: bytes, prefix: str, source: str) -> SignedList:
    try:
        signed = parse_signed_list(text)
        parse_allowed_keys(signed.text)
    except WireError as error:
        raise ConfigError(f"{source}: {error}", hint=error.hint) from error
    if not is_authentic_list(prefix, signed):
        raise ConfigError(
            f"{source}: the signature does not match the key and the prefix {prefix or '(none)'}",
            hint="Sign the list with the same --store.",
        )
    return signed


async def stored_list(url: str, password: Secret | None, prefix: str) -> SignedList | None:
    """Return the list in the store, or None.

    Raises:
        ConfigError: the list is damaged or forged.
        StoreError: the store does not respond.
    """
    async with store_client(url, password) as client:
        stored = await client.allow_list()
    return None if stored is None else _verified(stored.value, prefix, "the stored list")


class Publication:
    """A signed list and the list in the store that it replaces.

    Attributes:
        difference: the lines that differ between the two lists.
    """

    def __init__(self, signed: SignedList, old: SignedList | None, revision: int) -> None:
        self._signed = signed
        self._revision = revision
        self.difference = _difference(old, signed)

    async def write(self, url: str, password: Secret | None) -> None:
        """Write the list.

        Raises:
            StoreError: the store does not respond, or contains another list than the compared list.
        """
        async with store_client(url, password) as client:
            await client.set_allow_list(format_signed_list(self._signed), self._revision)


async def compare(signed: SignedList, source: Path, url: str, password: Secret | None) -> Publication:
    """Compare a signed list with the list in the store.

    Raises:
        ConfigError: the counter of the list is not higher than the counter of the stored list.
        StoreError: the store does not respond.
    """
    async with store_client(url, password) as client:
        stored = await client.allow_list()
    if stored is None:
        return Publication(signed, None, 0)
    old = None
    with contextlib.suppress(WireError):  # a damaged list in the store is replaced
        old = parse_signed_list(stored.value)
    if old is not None and old != signed and old.counter >= signed.counter:
        raise ConfigError(
            f"{source} has the counter {signed.counter}, but the stored list has the counter {old.counter}",
            hint=f"Sign the list again with --counter={old.counter + 1}.",
        )
    return Publication(signed, old, stored.revision)


def _difference(old: SignedList | None, new: SignedList) -> list[str]:
    return list(
        difflib.unified_diff(
            [] if old is None else old.text.splitlines(),
            new.text.splitlines(),
            fromfile="/dev/null" if old is None else f"stored, counter {old.counter}",
            tofile=f"new, counter {new.counter}",
            lineterm="",
        )
    )
