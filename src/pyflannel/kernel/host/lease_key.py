"""Files of keys: the Ed25519 key with which this host signs its lease, and the list of the keys of other
hosts.

The key of the host is in a file with mode 0600, which survives reboots.

The key belongs to an owner (`model.lease.Identity`), so a host with a new identity gets a new key. A
short-lived process creates the key, because the library takes 9 MiB of memory.
"""

import json
import logging
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pyflannel.errors import TargetError, in_words
from pyflannel.kernel.host.files import KEY_MODE, Replacement, read_key_file, unusable_key
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.model.lease import KEY_BYTES, LeaseKey
from pyflannel.model.store_record import Secret
from pyflannel.ports import Changes, in_thread

log = logging.getLogger(__name__)

_NAME = "the key file of the lease"
_IF_EXPOSED = "Delete the file. flanneld then creates a new key; add this key to the allow-list."
_DEADLINE_S = 30.0

OPERATOR = "operator"
"""Owner of the key of an operator, whose key file has the same format."""

_PROGRAM = """
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

key = Ed25519PrivateKey.generate()
print(key.private_bytes_raw().hex(), key.public_key().public_bytes_raw().hex())
"""
"""Program that prints the private and the public part of a new key. With an import of pyflannel, the program
would take seven times as long."""


def lease_key(path: Path, owner: str) -> LeaseKey:
    """Return the key of an owner. If the file contains no key of this owner, create one and save it.

    Raises:
        TargetError: the key cannot be created or saved, or the file is unusable.
    """
    return _read(path, owner) or _make(path, owner)


def public_lease_key(path: Path, owner: str) -> bytes | None:
    """Return the public key of `lease_key`. If no key can be created, log the reason and return None."""
    try:
        return lease_key(path, owner).public
    except TargetError as error:
        log.warning("Publishing no key in the lease: %s", error.in_full)
        return None


def _read(path: Path, owner: str) -> LeaseKey | None:
    text = read_key_file(path, _NAME, if_exposed=_IF_EXPOSED)
    if text is None:
        return None
    if (found := key_in(text)) is None:
        raise unusable_key(
            path, _NAME, "it contains no key", "Restore the file, or delete it to get a new key."
        )
    kept, key = found
    return key if kept == owner else None


def key_in(text: bytes) -> tuple[str, LeaseKey] | None:
    """Return the owner and the key in the text of a key file; None if the text contains no key."""
    try:
        match json.loads(text):
            case {"Owner": str(owner), "Private": str(private), "Public": str(public)}:
                data = bytes.fromhex(public)
                if len(data) == len(bytes.fromhex(private)) == KEY_BYTES:
                    return owner, LeaseKey(data, Secret(private))
            case _:
                pass
    except (ValueError, RecursionError):
        pass
    return None


def _make(path: Path, owner: str) -> LeaseKey:
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        made = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=True,
        )
        private, public = made.stdout.split()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        why = str(getattr(error, "stderr", "") or error).strip().rpartition("\n")[2]
        raise TargetError(
            f"the signing key of the lease cannot be created: {why}",
            hint="Install the Python package cryptography.",
        ) from error
    text = json.dumps({"Owner": owner, "Private": private, "Public": public})
    try:
        with Replacement(str(path), KEY_MODE) as replacement:
            replacement.write(f"{text}\n".encode())
            replacement.finish()
    except OSError as error:
        raise TargetError(
            f"the signing key of the lease cannot be written to {path}: {in_words(error)}",
            hint="Make the directory writable. The option --state-dir sets the directory of flanneld.",
        ) from error
    return LeaseKey(bytes.fromhex(public), Secret(private))


class KeyListFile:
    """A KeyFile in the file system of this host."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read_now(self) -> str:
        """Return the text of the file. The call blocks.

        Raises:
            TargetError: the file is unreadable.
        """
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise TargetError(
                f"cannot be read: {in_words(error)}", hint="Write a file with one key per line."
            ) from error

    async def read(self) -> str:
        """Return the text of the file.

        Raises:
            TargetError: the file is unreadable.
        """
        return await in_thread(self.read_now)

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel of changes of the file."""
        return InotifyFileWatch().changes(self._path)
