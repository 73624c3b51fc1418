"""A sandbox: processes, mounts, a network and a host name, separate from those of this machine."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

from pyflannel.errors import LabError
from pyflannel.lab.program import Program, mark_of

_LOOK_S = 0.05


class NotifySocket:
    """A datagram socket to which a service sends READY=1. The socket is closed after the wait.

    An open socket without a reader would block the service when its queue is full.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        self._socket.settimeout(_LOOK_S)

    def __enter__(self) -> "NotifySocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def wait_ready(self, program: Program, deadline_s: float) -> None:
        """Wait until `program` is ready.

        Raises:
            LabError: the program exited, or sent nothing for `deadline_s` seconds; the message contains the
                end of its log.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            try:
                message = self._socket.recv(4096)
            except TimeoutError:
                if (code := program.exit_code) is not None:
                    raise _not_ready(program, f"ended with status {code} before it was ready") from None
                continue
            if b"READY=1" in message.split(b"\n"):
                return
        raise _not_ready(program, f"was not ready within {deadline_s:g} s")


def _not_ready(program: Program, fault: str) -> LabError:
    return LabError(
        f"{program.name} {fault}; its log ends:\n{program.last_words()}",
        hint=f"The complete log is in {program.log}.",
    )


RUN_TIMEOUT_S = 120.0
READY_DEADLINE_S = 120.0
_INIT = Path(__file__).with_name("sandbox.sh")
_INHERITED = frozenset({"HOME", "LANG", "LC_ALL", "TERM"})
_PROGRAMS = Path(sys.executable).parent  # flanneld, flannelctl and mk-docker-opts of this installation
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Sandbox:
    """An isolated environment for programs, with its own process IDs, /run, /etc, /var/lib, network and host
    name.

    All parts of a sandbox end together with its first process. Killing this process removes processes,
    mounts, devices and routes. The objects of a sandbox are not visible in the namespaces of the machine.

    Attributes:
        name: host name of the sandbox, and name of its directory.
        directory: files of the sandbox: `run` is its /run, `etc` contains its changes of /etc, and `log` its
            logs.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._init: subprocess.Popen[str] | None = None
        self._init_pid = 0
        self._entries: list[subprocess.Popen[str]] = []
        self._entering = threading.Lock()

    def begin(self) -> None:
        """Start the first process. `finish` waits until the sandbox is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        namespaces = ["--mount", "--propagation=private", "--uts", "--net", "--pid", "--mount-proc"]
        self._init = subprocess.Popen(
            ["unshare", *namespaces, "--fork", "--kill-child", "bash", _INIT, self.directory, self.name],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Return when programs can be started in the sandbox.

        Raises:
            LabError: the kernel refused a namespace or a mount; the message names it.
        """
        if self._init is None or self._init.stdout is None:
            raise LabError(f"sandbox {self.name} has not been started", hint="Call begin() first.")
        with self._init.stdout as said:
            heard = ""
            for line in said:
                if line == "ready\n":
                    break
                heard += line
            else:
                raise LabError(
                    f"sandbox {self.name} could not be created: {heard.strip() or 'its first process ended'}",
                    hint="The lab needs root, namespaces, and an ext4 or xfs file system for its directory.",
                )
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        self._init_pid = int(children[0])

    def reap(self) -> None:
        """Read the exit status of all started processes, after every process of the lab has exited."""
        for entry in [*self._entries, self._init]:
            if entry is not None:
                entry.wait()
                for stream in (entry.stdin, entry.stdout, entry.stderr):
                    if stream is not None:
                        stream.close()

    def let_go(self) -> None:
        """Leave the started processes running after this program exits."""
        for entry in [*self._entries, self._init]:
            if entry is not None and entry.poll() is None:
                entry.returncode = 0  # so that Popen does not warn that no code waited for the process

    def adopt(self, init_pid: int) -> None:
        """Use a sandbox that another program created, with the first process `init_pid`."""
        self._init_pid = init_pid

    @property
    def init_pid(self) -> int:
        """The process ID of the first process of the sandbox in the machine's PID namespace, for `nsenter
        --target`.
        """
        return self._init_pid

    @property
    def environment(self) -> dict[str, str]:
        """Environment of programs in the sandbox, without the caller's FLANNELD_ and DOCKER_ variables."""
        inherited = {name: value for name, value in os.environ.items() if name in _INHERITED}
        return {**inherited, "PATH": f"{_PROGRAMS}:{_PATH}", **mark_of(self.directory)}

    def entering(self, argv: Sequence[str | Path]) -> list[str]:
        """Return the command that runs `argv` in the sandbox."""
        into = ["nsenter", f"--target={self._init_pid}", "--mount", "--uts", "--net", "--pid", "--"]
        return [*into, *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        text: str | None = None,
        check: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the sandbox and return its output; `text` is its standard input.

        Raises:
            LabError: the command failed (with `check`), or did not exit in time.
        """
        stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
        entry = self._enter(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        command = " ".join(map(str, argv))
        program = Program(f"`{command}` on {self.name}", entry, log=None)
        said, complained = program.communicate(text, timeout_s)
        status = program.exit_code or 0
        if check and status != 0:
            complaint = complained.strip() or said.strip()
            raise LabError(
                f"`{command}` on {self.name} failed with status {status}: {complaint}",
                hint=f"The files of the sandbox are in {self.directory}. `flannelctl lab exec` runs "
                f"commands in the sandbox.",
            )
        return subprocess.CompletedProcess([str(word) for word in argv], status, said, complained)

    def start(
        self, argv: Sequence[str | Path], *, name: str = "", environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start a program in the sandbox without waiting for its exit. The program writes to
        `log/NAME.log`.
        """
        name = name or PurePosixPath(argv[0]).name
        log = self.directory / "log" / f"{name}.log"
        with log.open("a") as output:
            entry = self._enter(
                argv,
                environment=environment,
                stdin=subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        return Program(f"{name} on {self.name}", entry, log=log)

    def start_service(
        self,
        argv: Sequence[str | Path],
        *,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        deadline_s: float = READY_DEADLINE_S,
    ) -> Program:
        """Start a program and return when it has sent READY=1 to its NOTIFY_SOCKET.

        Raises:
            LabError: the program exited, or was not ready in time.
        """
        name = name or PurePosixPath(argv[0]).name
        inside = f"/run/notify/{name}.{time.monotonic_ns()}"
        with NotifySocket(self.directory / inside.lstrip("/")) as notify:
            ready = {"NOTIFY_SOCKET": inside}
            program = self.start(argv, name=name, environment={**(environment or {}), **ready})
            notify.wait_ready(program, deadline_s)
        return program

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the machine in the network of the sandbox."""
        return self.run(argv, check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the sandbox."""
        return self.start(argv, name=name)

    def _enter(
        self,
        argv: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> subprocess.Popen[str]:
        entry = subprocess.Popen(
            self.entering(argv),
            env=self.environment | dict(environment or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        with self._entering:
            self._entries = [known for known in self._entries if known.poll() is None]
            self._entries.append(entry)
        return entry
