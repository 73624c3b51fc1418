"""The names of networks, where one daemon runs several: each is a key in the store, and directories here.

Source: flannel 0.6.2, where a name is one segment of a path.
"""

import os.path
import re
from pathlib import Path

from pyflannel.assembly.places import Places
from pyflannel.engine.network_follower import RESERVED
from pyflannel.processes.forwarder_launch import LOG_NAME
from pyflannel.wire.forwarder_control import SOCKET_NAME

_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

_USUAL = Places()
_FILES = frozenset(
    {
        *(path.name for path in (_USUAL.control_socket, _USUAL.lock, _USUAL.device_file, _USUAL.subnet_file)),
        *(path.name for path in (_USUAL.identity, _USUAL.spoilt_identity, _USUAL.last_known)),
        SOCKET_NAME,
        LOG_NAME,
    }
)
"""What a daemon keeps where the directories of its networks are, in its run or its state directory."""


def objection(name: str) -> str | None:
    """Return why no network can have this name, in words; None if one can."""
    if name in RESERVED:
        return "flannel's own keys have it in the store"
    if name in _FILES:
        return "a file of flanneld's has it"
    if not _FORM.fullmatch(name):
        return "a name has letters, digits, '.', '-' and '_', the first a letter or a digit"
    return None


def file_in_the_way(name: str, places: Places) -> Path | None:
    """Return what stands where a directory of this network of the daemon is to be; None if nothing does."""
    own = places.of_network(name, places.run_dir)
    directories = (own.run_dir, own.state_dir)
    return next((path for path in directories if os.path.exists(path) and not os.path.isdir(path)), None)
