"""Who this host is: a random identity, kept with the digest of the machine it was made on."""

import errno
import hashlib
import hmac
import json
import logging
import os
import uuid

from pyflannel.errors import TargetError
from pyflannel.kernel.host.atomic_file import replace_file
from pyflannel.model.lease import Identity

log = logging.getLogger(__name__)

_FILE = "identity.json"
_APPLICATION = b"pyflannel lease identity"
_DIGEST_LENGTH = 16


def read_identity(state_dir: str, machine_id_file: str, node_id: str | None = None) -> Identity:
    """Return this host's identity, made and kept at the first start.

    A disk that was cloned to another machine carries another's identity: a new one is made, and said so.
    `node_id`, where given, is the owner, and nothing is kept.

    Raises:
        TargetError: the identity cannot be kept in `state_dir`.
    """
    machine = machine_digest(machine_id_file)
    if node_id:
        return Identity(owner=node_id, machine=machine)
    path = os.path.join(state_dir, _FILE)
    kept = _read(path)
    if kept is None:
        return new_identity(state_dir, machine_id_file)
    if machine and kept.machine and machine != kept.machine:
        log.warning(
            "Found the identity of another machine, made a new one owner=%s path=%s", kept.owner, path
        )
        return new_identity(state_dir, machine_id_file)
    if machine != kept.machine and machine:
        _write(path, Identity(owner=kept.owner, machine=machine))
    return Identity(owner=kept.owner, machine=machine)


def new_identity(state_dir: str, machine_id_file: str) -> Identity:
    """Return a new random identity, kept in the place of the one before: another host has that.

    Raises:
        TargetError: the identity cannot be kept in `state_dir`.
    """
    identity = Identity(owner=uuid.uuid4().hex, machine=machine_digest(machine_id_file))
    _write(os.path.join(state_dir, _FILE), identity)
    return identity


def machine_digest(machine_id_file: str) -> str:
    """Return 16 hex digits that tell machines apart; "" when the machine-id is unknown.

    The machine-id itself is confidential, and is not to leave the host (machine-id(5)).
    """
    try:
        with open(machine_id_file, encoding="ascii", errors="replace") as file:
            machine_id = file.read(256).strip()
    except OSError:
        return ""
    if machine_id in ("", "uninitialized"):
        return ""
    return hmac.new(_APPLICATION, machine_id.encode(), hashlib.sha256).hexdigest()[:_DIGEST_LENGTH]


def _read(path: str) -> Identity | None:
    """Return the identity kept; None when there is none, or it is spoilt, which is then put aside."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("read from", path, error) from error
    if (identity := _parse(text)) is not None:
        return identity
    aside = f"{path}.corrupt"
    try:
        os.rename(path, aside)
    except OSError as error:
        raise _failed(f"moved aside to {aside}, as it is spoilt, from", path, error) from error
    log.warning("Found a spoilt identity, put it aside path=%s", aside)
    return None


def _parse(text: str) -> Identity | None:
    try:
        kept = json.loads(text)
    except ValueError:
        return None
    match kept:
        case {"Owner": str(owner), "Machine": str(machine)} if owner:
            return Identity(owner=owner, machine=machine)
        case _:
            return None


def _write(path: str, identity: Identity) -> None:
    try:
        text = json.dumps({"Owner": identity.owner, "Machine": identity.machine}) + "\n"
        replace_file(path, text.encode())
    except OSError as error:
        raise _failed("kept in", path, error) from error


def _failed(what: str, path: str, error: OSError) -> TargetError:
    name = errno.errorcode.get(error.errno or 0, "unknown error")
    return TargetError(
        f"the identity cannot be {what} {path}: {name}: {error.strerror}",
        hint="Run as root, name another --state-dir, or give --node-id.",
    )
