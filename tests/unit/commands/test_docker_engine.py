"""The Docker engine that doctor finds by its file, and asks at its socket."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.started_program import started
from pyflannel.commands.docker_engine import docker_engine
from pyflannel.plan.doctor.observed import DockerEngine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[int]:
    """The process ID of a program with the name dockerd, which is in the file of the engine."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    (tmp_path / "dockerd").symlink_to(sleep)
    with started([tmp_path / "dockerd", "60"]) as pid:
        (tmp_path / "docker.pid").write_text(str(pid))
        yield pid


def test_without_an_engine_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the process ID remains if the engine is killed, and another process may get this ID."""
    # The test host may have an engine.
    monkeypatch.setattr("pyflannel.commands.docker_engine.find_program", lambda name: None)
    assert asyncio.run(docker_engine(tmp_path)) is None
    for text in ("", "nothing", str(os.getpid())):
        (tmp_path / "docker.pid").write_text(text)
        assert asyncio.run(docker_engine(tmp_path)) is None


def test_an_engine_with_another_file_of_its_process_id_is_found(engine: int, tmp_path: Path) -> None:
    (tmp_path / "docker.pid").unlink()

    found = asyncio.run(docker_engine(tmp_path))

    assert found is not None
    assert found.pid <= engine  # the test host may have another one


def test_a_stopped_engine_is_found(engine: int, tmp_path: Path) -> None:
    os.kill(engine, signal.SIGSTOP)
    os.waitid(os.P_PID, engine, os.WSTOPPED | os.WNOWAIT)

    assert asyncio.run(docker_engine(tmp_path)) == DockerEngine(pid=engine, is_stopped=True)


@pytest.mark.parametrize("answers", [True, False])
def test_an_engine_hangs_if_it_does_not_answer_a_ping(engine: int, tmp_path: Path, answers: bool) -> None:
    deadline_s = 5.0 if answers else 0.05

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answers:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            await writer.drain()

    async def ask() -> DockerEngine | None:
        async with await asyncio.start_unix_server(serve, tmp_path / "docker.sock"):
            return await docker_engine(tmp_path, deadline_s)

    assert asyncio.run(ask()) == DockerEngine(pid=engine, hangs_s=None if answers else 0.05)


def test_an_engine_with_another_socket_is_not_asked(engine: int, tmp_path: Path) -> None:
    assert asyncio.run(docker_engine(tmp_path)) == DockerEngine(pid=engine)
