"""The Docker engine that doctor finds by its file, and asks at its socket."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from doubles.started_program import started
from pyflannel.commands.docker_engine import docker_engine, ended_containers
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
    monkeypatch.setattr(
        "pyflannel.commands.docker_engine._running", lambda: None
    )  # the test host may have one
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


NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "state", "is_found"),
    [
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25.123456789Z"', True),
        ("/web2", '"Running":true,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":0,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":143,"FinishedAt":"2026-05-04T11:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T10:59:25Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"0001-01-01T00:00:00Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T13:00:00Z"', False),
        ("/web2", '"Running":false,"ExitCode":137,"FinishedAt":7', False),
        ("/a; reboot", '"Running":false,"ExitCode":137,"FinishedAt":"2026-05-04T11:59:25Z"', False),
    ],
)
def test_containers_that_ended_are_read_from_their_state(
    tmp_path: Path, name: str, state: str, is_found: bool
) -> None:
    (tmp_path / "0b20").mkdir()
    (tmp_path / "0b20/config.v2.json").write_text(f'{{"Name":"{name}","State":{{{state},"OOMKilled":true}}}}')
    (tmp_path / "0b21").mkdir()

    found = ended_containers(tmp_path, NOW)

    assert [(one.name, one.exit_code, round(one.ago_s), one.lacked_memory) for one in found] == (
        [("web2", 137, 35, True)] if is_found else []
    )
