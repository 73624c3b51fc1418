"""A control socket belongs to one program and one user."""

import os
import socket
import stat
from pathlib import Path

import pytest

from pyflannel.errors import BusyError
from pyflannel.http.sockets import listen_unix, peer_uid


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "run" / "s") as listener:
        mode = (tmp_path / "run" / "s").stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not listener.getblocking()


def test_the_socket_of_an_ended_program_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path).close()

    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))

    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_the_socket_of_a_running_program_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"

    with listen_unix(path), pytest.raises(BusyError, match="another program serves"):
        listen_unix(path)


def test_a_file_that_is_not_a_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")

    with pytest.raises(BusyError, match="is not a socket"):
        listen_unix(path)

    assert path.read_text() == "precious"


def test_a_path_too_long_for_the_kernel_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        listen_unix(tmp_path / ("x" * 120))

    assert not list(tmp_path.iterdir())


def test_the_user_of_the_client_is_known(tmp_path: Path) -> None:
    path = tmp_path / "s"

    with listen_unix(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        connection, _ = listener.accept()
        with connection:
            uid = peer_uid(connection)

    assert uid == os.getuid()
