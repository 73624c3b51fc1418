"""The start of a forwarder, as its daemon sees it."""

import errno
from pathlib import Path

import pytest

from pyflannel.datapath import forwarder
from pyflannel.datapath.forwarder import Forwarder
from pyflannel.wire.forwarder_control import SOCKET_NAME, Settings

SETTINGS = Settings("flannel0", 0x0A640F00, 0x0A640F00, 24, 0x0A0A0A65, 8285, 1472)


def test_nobody_is_let_connect_before_the_port_is_ours(monkeypatch, tmp_path: Path) -> None:
    """The daemon takes a start for done when it can connect; one that fails must be gone by then."""
    seen: list[bool] = []

    def refuse(settings: Settings) -> None:
        seen.append((tmp_path / SOCKET_NAME).exists())
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(forwarder, "_open_socket", refuse)

    with pytest.raises(OSError, match="in use"):
        Forwarder(str(tmp_path), SETTINGS, "0.1.0")

    assert seen == [False]
    assert not (tmp_path / SOCKET_NAME).exists()
