"""A lab: hosts, a router and their files. The lab is created immediately, and removed at the end of its
`with` block.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType

from msgspec import Struct

from pyflannel.errors import LabError, UsageError
from pyflannel.lab.lab_directory import PATIENCE_S, LabDirectory, lab_names, remove_remains
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import COOKBOOK, ROUTER, Host, HostPlace, Topology, create_segments, plug_in
from pyflannel.lab.waiting import POLL_S, together

CLIENT_PORT = 2379
PREFIX = "/coreos.com/network"


class EtcdServer:
    """An etcd in a sandbox of the lab.

    Attributes:
        endpoint: URL of this etcd for `--etcd-endpoints`.
        url: URL of this etcd for `--store`.
    """

    def __init__(self, place: Sandbox, address: str) -> None:
        self._place = place
        self.endpoint = f"http://{address}:{CLIENT_PORT}"
        self.url = f"etcd://{address}:{CLIENT_PORT}{PREFIX}"

    def start(self) -> Program:
        """Start etcd, with the data of an earlier start if there is any, and return when it responds."""
        return self._place.start_service(
            [
                "etcd",
                "--data-dir=/var/lib/etcd-lab",
                "--unsafe-no-fsync",  # the data of etcd need not survive a crash of the machine
                f"--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}",
                f"--advertise-client-urls={self.endpoint}",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=default=http://127.0.0.1:2380",
            ],
            name="etcd",
        )

    def etcdctl(self, *argv: str) -> str:
        """Run etcdctl in the same sandbox and return its output."""
        patience = ["--dial-timeout=20s", "--command-timeout=30s"]
        asking = ["etcdctl", f"--endpoints=http://127.0.0.1:{CLIENT_PORT}", *patience]
        return self._place.run(["env", "ETCDCTL_API=3", *asking, *argv]).stdout


_LAST_LINES = 10


class Lab:
    """Several hosts on one machine, in their own namespaces.

    A lab is a context manager. The lab is removed at the end of the block, even after an exception or Ctrl-C.
    At the beginning of the block, the remains of killed runs and a kept lab of the same name are removed.
    Labs with different names are independent of each other.

    Attributes:
        name: name of the lab, unique on this machine.
        directory: directory of all files of the lab, with a subdirectory for each host.
        router: the sandbox that connects the segments. A store or a client outside the overlay may run in
            this sandbox.
        hosts: the hosts by name.
    """

    def __init__(self, name: str, topology: Topology = COOKBOOK) -> None:
        self.name = name
        self.hosts: dict[str, Host] = {}
        self._home = LabDirectory(name)
        self._topology = topology
        self._may_begin = threading.Lock()
        self._is_ending = False
        self._is_kept = False
        self._begun: list[Sandbox] = []
        self.directory = self._home.path
        self.router = Sandbox(ROUTER, self.directory / ROUTER)

    def __enter__(self) -> "Lab":
        if os.geteuid() != 0:
            raise UsageError(
                "the lab needs root to create namespaces and mounts", hint="Run the command with sudo."
            )
        remove_remains()
        self._home.acquire()
        try:
            self._home.clear()
            self._begin(self.router)
            hosts = self._begin_hosts(self._topology.hosts)
            self.router.finish()
            create_segments(self.router, self._topology.segments)
            self._join(hosts)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_kept and error is None:
            self._home.mark_kept()
            self._home.release()
            for sandbox in self._begun:
                sandbox.let_go()
            return
        if isinstance(error, Exception):
            error.add_note(self._last_words())  # the logs are removed with the lab
        self.remove()

    def add_hosts(self, *places: HostPlace) -> list[Host]:
        """Add more hosts, all at the same time."""
        hosts = self._begin_hosts(places)
        self._join(hosts)
        return hosts

    def keep(self) -> None:
        """Keep the lab if the block succeeds. Later, `remove` or a new lab of the same name removes the
        lab.
        """
        self._is_kept = True

    def remove(self) -> None:
        """End all processes, and remove all objects and files of the lab. Signals cannot interrupt the
        removal.
        """
        with self._may_begin:
            self._is_ending = True
        with _uninterrupted():
            self._home.remove()
        for sandbox in self._begun:
            sandbox.reap()

    def each(self, act: Callable[[Host], object]) -> None:
        """Call `act` for all hosts at the same time."""
        together([partial(act, host) for host in self.hosts.values()])

    @property
    def sqlite_url(self) -> str:
        """URL of an embedded store that all hosts of the lab share."""
        store = self.directory / "store"
        store.mkdir(exist_ok=True)
        return f"sqlite://{store}/leases.db"

    def _last_words(self) -> str:
        """Return the end of every log of the lab."""
        ends = []
        for log in sorted(self.directory.glob("*/log/*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            ends.append("\n  ".join([f"{log.relative_to(self.directory)} ends:", *lines]))
        return "\n".join(ends)

    def _begin_hosts(self, places: tuple[HostPlace, ...]) -> list[Host]:
        hosts = [Host(place, self.directory / place.name) for place in places]
        for host in hosts:
            self._begin(host)
        return hosts

    def _begin(self, sandbox: Sandbox) -> None:
        """Begin a sandbox, unless the lab is being removed, because `remove` would not find the new
        sandbox.
        """
        with self._may_begin:
            if self._is_ending:
                raise LabError(
                    f"lab {self.name} is being removed", hint="Add hosts before the lab is removed."
                )
            self._begun.append(sandbox)
            sandbox.begin()

    def _join(self, hosts: list[Host]) -> None:
        def join(host: Host) -> None:
            host.finish()
            plug_in(self.router, host, host.place)

        together([partial(join, host) for host in hosts])
        self.hosts |= {host.name: host for host in hosts}


class StandingLab(Struct, frozen=True, kw_only=True):
    """A lab that has a directory on this machine.

    Attributes:
        state: state of the lab: `in use` by a running program, `kept`, or `remains` of a killed run.
        hosts: names of the running sandboxes, including the router.
    """

    name: str
    state: str
    hosts: tuple[str, ...]
    directory: str


def standing_labs() -> list[StandingLab]:
    """Return the labs on this machine, by name."""
    homes = [LabDirectory(name) for name in lab_names()]
    states = _states(homes)
    return [
        StandingLab(
            name=home.name,
            state=states[home.name],
            hosts=tuple(sorted(home.hosts())),
            directory=str(home.path),
        )
        for home in homes
        if home.path.is_dir()
    ]


def _states(homes: list[LabDirectory]) -> dict[str, str]:
    """Return the states of labs by name. A lab is in use if its lock remains locked for a while."""
    states = dict.fromkeys((home.name for home in homes), "in use")
    end = time.monotonic() + PATIENCE_S
    while homes:
        for home in homes:
            if home.take():
                states[home.name] = "kept" if home.is_kept else "remains"
                home.release()
        homes = [home for home in homes if states[home.name] == "in use"]
        if time.monotonic() >= end:
            break
        time.sleep(POLL_S)
    return states


def remove_lab(name: str) -> None:
    """Remove a kept lab, or the remains of a killed run.

    Raises:
        LabError: a lab of this name does not exist.
        BusyError: a running program uses the lab.
    """
    home = LabDirectory(name)
    if not home.path.is_dir():
        raise LabError(f"there is no lab {name}", hint="`flannelctl lab list` lists the existing labs.")
    home.acquire()
    with _uninterrupted():
        home.remove()


def enter_host(name: str, host: str) -> Sandbox:
    """Return a host, or the router, of an existing lab.

    Raises:
        LabError: the lab or the host does not exist.
    """
    home = LabDirectory(name)
    hosts = home.hosts()
    if host not in hosts:
        known = ", ".join(sorted(hosts)) or "none. Create a lab with `flannelctl lab up`"
        raise LabError(f"lab {name} has no host {host}", hint=f"Its hosts: {known}.")
    sandbox = Sandbox(host, home.path / host)
    sandbox.adopt(hosts[host])
    return sandbox


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM during the block, in the main thread, which receives them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
