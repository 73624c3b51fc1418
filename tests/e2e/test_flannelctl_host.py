"""flannelctl on a host where flanneld runs, ran, or was killed: the real daemon, kernel and forwarder."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.commands.network_client import live_status
from pyflannel.errors import NotReadyError
from pyflannel.model.status import Status
from pyflannel.model.store_record import Put
from pyflannel.processes.forwarder_client import forwarder_status
from pyflannel.wire.lease_record import CONFIG as CONFIG_KEY
from testlab.documents import read_document

BIN = Path(sys.executable).parent
CONFIG = '{"Network": "10.100.0.0/16"}'
DEADLINE_S = 60.0
_numbers = count()


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.02)


async def write(store_url: str, key: str, text: str) -> None:
    """Write a config that flannelctl refuses."""
    store = open_store(store_url)
    try:
        await store.write(Put(key=key, value=text.encode(), ttl_s=None, expected=None))
    finally:
        await store.close()


class Host:
    """A host with an interface and a default route; its leases are in a file."""

    def __init__(self, directory: Path, store: str, address: str = "10.10.10.101/24") -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.namespace = f"pfctl{os.getpid()}-{next(_numbers)}"
        self.store = store
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.ip("netns", "add", self.namespace)
        # The kernel adds IPv6 routes some time after a link is up. These routes are not compared.
        self.ip("netns", "exec", self.namespace, "sysctl", "-q", "net.ipv6.conf.default.disable_ipv6=1")
        for words in (
            "link set lo up",
            "link add eth0 type veth peer name router",
            "link set router up",
            f"address add {address} dev eth0",
            "link set eth0 up",
            "route add default via 10.10.10.1",
        ):
            self.ip("-n", self.namespace, *words.split())

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "FLANNELD_STORE": self.store,
            "FLANNELD_RUN_DIR": str(self.directory / "run"),
            "FLANNELD_STATE_DIR": str(self.directory / "state"),
            "FLANNELD_SUBNET_FILE": str(self.directory / "run" / "subnet.env"),
        }

    @contextlib.contextmanager
    def launched(self) -> Iterator[None]:
        """Run flanneld for the duration of a block, ready or not."""
        daemon = self._launch()
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait()

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.directory / "flanneld.log").open("ab") as log:
            daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, BIN / "flanneld"], env=self.variables, stderr=log
            )
        self._daemons.append(daemon)
        return daemon

    def start(self) -> subprocess.Popen[bytes]:
        """Start flanneld, and wait until it is ready."""
        daemon = self._launch()
        self.wait(lambda status: status.is_ready, "flanneld is ready")
        return daemon

    def wait(self, holds: Callable[[Status], object], what: str) -> None:
        """Wait until `holds` is true for the status of flanneld."""

        def look() -> bool:
            with contextlib.suppress(NotReadyError):
                return bool(holds(asyncio.run(live_status(self.directory / "run/flanneld.sock"))))
            return False

        eventually(look, what)

    def wait_forwarder(self) -> None:
        """Wait until the forwarder responds, because a status waits for it only for a short time."""
        run_dir = self.directory / "run"
        eventually(lambda: asyncio.run(forwarder_status(run_dir)) is not None, "the forwarder answers")

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, BIN / "flannelctl", *arguments],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def document(self, *arguments: str) -> Any:
        return read_document(arguments, self.ctl(*arguments, "--json").stdout)

    def ip(self, *words: str) -> str:
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout

    def trace(self) -> dict[str, list[str]]:
        """Return everything that a daemon can leave on a host: links, addresses, routes, processes, files."""
        return {
            "links": sorted(
                line.split(":")[1].strip()
                for line in self.ip("-n", self.namespace, "-o", "link").splitlines()
            ),
            "routes": self.ip("-n", self.namespace, "route", "show", "table", "all").splitlines(),
            "processes": self.ip("netns", "pids", self.namespace).split(),
            "files": sorted(
                str(path.relative_to(self.directory))
                for name in ("run", "state")
                for path in [self.directory / name, *(self.directory / name).rglob("*")]
                if path.exists()
            ),
        }

    def close(self) -> None:
        for pid in self.ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for daemon in self._daemons:
            daemon.wait()
        self.ip("netns", "delete", self.namespace)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host on which no flanneld has run. The network config is written."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    made = Host(tmp_path / "host", f"sqlite://{tmp_path}/store/leases.db")
    try:
        assert made.ctl("config", "set", CONFIG).returncode == 0
        yield made
    finally:
        made.close()


@pytest.fixture
def other(host: Host, tmp_path: Path) -> Iterator[Host]:
    """Another host of the same network."""
    made = Host(tmp_path / "other", host.store, "10.10.10.102/24")
    yield made
    made.close()


class TestStatus:
    def test_the_status_of_a_ready_daemon_is_complete(self, host: Host) -> None:
        host.start()
        host.wait_forwarder()

        status = host.document("status")

        assert (status["is_live"], status["is_ready"], status["waiting_for"]) == (True, True, None)
        network = {"text": CONFIG, "network": "10.100.0.0/16", "ipv6_network": None, "trouble": None}
        assert status["network"] == network
        assert status["lease"]["phase"] == "held"
        assert 86000 < status["lease"]["expires_in_s"] <= 86400
        assert status["underlay"] == {
            "link": "eth0",
            "address": "10.10.10.101",
            "public_ip": "10.10.10.101",
            "mtu": 1500,
            "ipv6_address": None,
            "public_ipv6": None,
            "ipv6_link": None,
            "prefix_length": 24,
        }
        assert status["backend"] == {
            "type": "udp",
            "link": "flannel0",
            "mtu": 1472,
            "notes": [],
            "is_encrypted": False,
            "port": 8285,
            "ipv6_link": None,
            "ipv6_port": None,
            "received": 0,
            "sent": 0,
        }
        assert (status["store"]["url"], status["store"]["is_connected"]) == (host.store, True)
        assert status["forwarder"]["is_attached"]
        assert status["forwarder"]["counters"]["dropped_in_stranger"] == 0
        assert status["fast_path"]["mode"] == "safe"
        assert status["fast_path"]["counters"]["impostor"] == 0

    def test_the_text_contains_the_same_facts(self, host: Host) -> None:
        host.ip("netns", "exec", host.namespace, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        host.start()

        done = host.ctl("status")

        assert done.returncode == 0
        facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        assert facts["flanneld"].endswith(", ready"), done.stdout
        assert facts["host"] == os.uname().nodename == host.document("status")["host_name"]
        assert facts["network"] == "10.100.0.0/16"
        assert facts["backend"] == "udp, flannel0, mtu 1472"
        assert "fast path  safe" in done.stdout

    def test_a_waiting_daemon_is_not_ready(self, host: Host) -> None:
        host.ip("-n", host.namespace, "route", "delete", "default")
        with host.launched():
            host.wait(lambda status: "default route" in str(status.waiting_for), "flanneld waits for it")
            done = host.ctl("status", "--json")

        assert done.returncode == 3
        assert json.loads(done.stdout)["is_live"]

    def test_a_store_without_a_config_is_connected(self, host: Host) -> None:
        """The status reports only the missing config."""
        asyncio.run(write(host.store, CONFIG_KEY, "{}"))

        with host.launched():
            host.wait(
                lambda status: "a valid network config" in str(status.waiting_for), "flanneld waits for one"
            )
            store = host.document("status")["store"]

        assert store["is_connected"]

    def test_the_status_of_a_killed_daemon_is_read_from_its_files(self, host: Host) -> None:
        """The status contains the lease and the network of the daemon, and the forwarder, which still carries
        packets.
        """
        daemon = host.start()
        before = host.document("status")
        daemon.kill()
        daemon.wait()
        host.wait_forwarder()

        done = host.ctl("status", "--json")

        left = json.loads(done.stdout)
        assert done.returncode == 3
        assert (left["is_live"], left["is_ready"]) == (False, False)
        assert left["owner"] == before["owner"]
        assert left["lease"]["subnet"] == before["lease"]["subnet"]
        assert left["network"]["network"] == "10.100.0.0/16"
        assert left["backend"] == {**before["backend"], "sent": None, "received": None}
        assert left["forwarder"]["pid"]
        message, hint = done.stderr.splitlines()
        assert "does not respond" in message
        assert "Start flanneld. Until then" in hint

    def test_a_hanging_daemon_is_reported(self, host: Host) -> None:
        daemon = host.start()
        daemon.send_signal(signal.SIGSTOP)

        done = host.ctl("status")

        daemon.send_signal(signal.SIGCONT)
        assert done.returncode == 3
        assert f"(pid {daemon.pid}) runs" in done.stderr

    def test_a_host_without_flanneld_is_reported(self, host: Host) -> None:
        done = host.ctl("status")

        assert done.returncode == 3
        assert "Start flanneld" in done.stderr
        assert not (host.directory / "run").exists()


class TestThroughTheDaemon:
    def test_leases_are_listed_with_their_expiry(self, host: Host) -> None:
        host.start()

        (lease,) = host.document("leases")["leases"]

        assert lease["subnet"] == host.document("status")["lease"]["subnet"]
        assert lease["public_ip"] == "10.10.10.101"
        assert 86000 < lease["expires_in_s"] <= 86400

    def test_an_ignored_lease_is_a_refused_peer(self, host: Host) -> None:
        """Peers minus refused peers are the reachable ones."""
        host.start()
        own = host.document("status")["lease"]["subnet"]
        subnet = "10.100.9.0/24" if own != "10.100.9.0/24" else "10.100.10.0/24"

        asyncio.run(write(host.store, f"subnets/{subnet.replace('/', '-')}", '{"PublicIP":"10.10.10.101"}'))

        host.wait(lambda status: status.refused_peers, "the daemon refuses it")
        status = host.document("status")
        assert [peer["subnet"] for peer in status["refused_peers"]] == [subnet]
        assert status["peers"] == len(host.document("peers")["peers"]) == 1

    def test_a_written_config_reaches_the_daemon(self, host: Host) -> None:
        host.start()

        done = host.ctl("config", "set", '{"Network": "10.100.0.0/16", "SubnetLen": 24}')

        assert done.returncode == 0
        host.wait(lambda status: "SubnetLen" in str(status.network), "the daemon knows the new config")
        assert "SubnetLen" in host.document("status")["network"]["text"]

    def test_a_bad_config_is_refused(self, host: Host) -> None:
        host.start()

        done = host.ctl("config", "set", '{"Network": "10.100.0.0/16", "SubnetLen": 99}')

        assert done.returncode == 2
        assert "SubnetLen" in done.stderr
        assert host.ctl("config", "get").stdout == CONFIG + "\n"

    def test_a_bad_config_of_another_program_is_shown(self, host: Host) -> None:
        """The host uses another config, and status reports this."""
        host.start()
        bad = '{"Network": "10.100.0.0/16", "SubnetLen": "24"}'

        asyncio.run(write(host.store, CONFIG_KEY, bad))

        assert host.ctl("config", "get").stdout == bad + "\n"
        host.wait(lambda status: status.warnings, "the daemon warns")
        status = host.document("status")
        assert status["warnings"] == [
            "keeps running with the last valid network config, waits for a valid network config:"
            ' not a prefix length: SubnetLen="24"'
        ]
        assert (status["is_ready"], status["network"]["text"]) == (True, CONFIG)

    def test_the_config_is_known_while_the_store_is_unreachable(self, host: Host) -> None:
        host.start()
        leases = Path(host.store.removeprefix("sqlite://"))
        rubbish = leases.with_name("rubbish")
        rubbish.write_text("no database")
        rubbish.replace(leases)  # immediately: the daemon creates a missing file again
        for side in ("-wal", "-shm"):
            leases.with_name(leases.name + side).unlink(missing_ok=True)

        done = host.ctl("config", "get")

        assert (done.returncode, done.stdout) == (0, CONFIG + "\n")
        assert "read the config that flanneld uses, because the store cannot be read: " in done.stderr

    def test_another_user_is_refused(self, host: Host) -> None:
        """The mode of the socket has no effect, because the kernel reports the user of the client."""
        host.start()
        (host.directory / "run" / "flanneld.sock").chmod(0o666)

        # Start in the directory, so that permissions of parent directories have no effect.
        program = """
import os, socket
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    client.connect("flanneld.sock")
    client.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n")
    print(client.recv(100))
"""
        done = subprocess.run(
            ["/usr/bin/python3", "-c", program],
            cwd=host.directory / "run",
            capture_output=True,
            text=True,
            check=True,
        )

        assert "HTTP/1.1 403" in done.stdout


class TestCleanup:
    @pytest.mark.parametrize("was_killed", [False, True])
    def test_cleanup_removes_everything(self, host: Host, was_killed: bool) -> None:
        before = host.trace()
        daemon = host.start()
        if was_killed:
            daemon.kill()
            daemon.wait()

        done = host.ctl("cleanup")

        assert (done.returncode, done.stderr) == (0, "")
        daemon.wait(DEADLINE_S)
        eventually(lambda: host.trace() == before, "the host is as it was")
        assert host.document("leases") == {"leases": []}
        assert "removed link flannel0" in done.stdout
        assert "removed lease 10.100." in done.stdout

    def test_a_dry_run_lists_the_objects_and_changes_nothing(self, host: Host) -> None:
        host.start()
        before = host.trace()

        listed = host.document("cleanup", "--dry-run")["removed"]

        assert host.trace() == before
        assert host.ctl("status").returncode == 0
        removed = host.document("cleanup")["removed"]
        named = {line for line in removed if not line.startswith("directory")}
        assert named - set(listed) == set()
        assert {"link flannel0", f"file {host.directory}/run/subnet.env"} <= set(listed)

    def test_a_second_cleanup_finds_nothing(self, host: Host) -> None:
        host.start()
        host.ctl("cleanup")

        again = host.ctl("cleanup")

        assert again.returncode == 0
        assert again.stdout == "found nothing of flannel on this host\n"
        assert not (host.directory / "run").exists()

    def test_cleanup_keeps_foreign_objects(self, host: Host) -> None:
        host.ip("-n", host.namespace, "link", "add", "other0", "type", "veth", "peer", "name", "other1")
        host.ip("-n", host.namespace, "route", "add", "10.99.0.0/16", "via", "10.10.10.1")
        before = host.trace()
        host.start()
        (host.directory / "state" / "notes").write_text("mine")

        done = host.ctl("cleanup")

        assert done.returncode == 0
        eventually(lambda: host.trace()["files"] == ["state", "state/notes"], "files of others are left")
        after = host.trace()
        assert (after["links"], after["routes"]) == (before["links"], before["routes"])

    def test_the_next_daemon_holds_a_kept_lease_again(self, host: Host) -> None:
        host.start()
        subnet = host.document("status")["lease"]["subnet"]

        report = host.document("cleanup", "--keep-lease")

        (lease,) = host.document("leases")["leases"]
        assert (lease["subnet"], report["problems"]) == (subnet, [])
        assert not any(line.startswith("lease") for line in report["removed"])
        host.start()
        assert host.document("status")["lease"]["subnet"] == subnet

    def test_cleanup_keeps_leases_of_others(self, host: Host, other: Host) -> None:
        host.start()
        other.start()
        ours = host.document("status")["lease"]["subnet"]
        theirs = other.document("status")["lease"]["subnet"]

        removed = host.document("cleanup")["removed"]

        # The other daemon would soon create its lease again if it had been deleted.
        assert [line for line in removed if line.startswith("lease")] == [f"lease {ours}"]
        assert [lease["subnet"] for lease in host.document("leases")["leases"]] == [theirs]
        assert other.ctl("status").returncode == 0

    def test_an_unreachable_store_is_reported_and_the_rest_is_removed(self, host: Host) -> None:
        before = host.trace()
        daemon = host.start()

        done = host.ctl("--store", "etcd://127.0.0.1:9/prefix", "cleanup")

        assert done.returncode == 1
        assert "could not delete the lease" in done.stderr
        daemon.wait(DEADLINE_S)
        after = host.trace()
        assert (after["links"], after["routes"]) == (before["links"], before["routes"])
        assert "state/identity.json" in after["files"]
        assert host.ctl("cleanup").returncode == 0
        eventually(lambda: host.trace() == before, "the host is as it was")

    def test_a_daemon_of_another_namespace_is_not_stopped(self, host: Host, other: Host) -> None:
        """The objects of that daemon cannot be removed from this namespace."""
        daemon = host.start()

        done = other.ctl("cleanup", "--run-dir", str(host.directory / "run"))

        assert done.returncode == 2
        assert f"nsenter --net=/proc/{daemon.pid}/ns/net" in done.stderr
        assert host.ctl("status").returncode == 0
