"""The control socket serves flannelctl, and no other user than root and the user of the daemon."""

import asyncio
import errno
import os
import shutil
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import TypeVar

import pytest

from pyflannel.api.control import control_routes, serve_control
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import (
    BusyError,
    ConfigError,
    FlannelError,
    NotReadyError,
    StoreError,
    TargetError,
    UsageError,
    WireError,
)
from pyflannel.http.server import Request
from pyflannel.http.sockets import listen_unix, request
from pyflannel.model.lease import Lease, LeaseAttributes, LeaseEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import Matrix, MatrixCell, MatrixRow
from pyflannel.model.status import (
    BackendStatus,
    FastPathStatus,
    ForwarderStatus,
    JournalEntry,
    LeaseStatus,
    NetworkStatus,
    PlannedChange,
    PlanPreview,
    ReconcileStatus,
    Status,
    StoreStatus,
    StoreTimes,
    UnderlayStatus,
)
from pyflannel.wire.control_json import parse_status

CONFIG = '{"Network": "10.100.0.0/16"}'

STATUS = Status(
    version="0.1.0",
    owner="5d0f",
    is_ready=True,
    network=NetworkStatus(text=CONFIG, network=IPv4Network("10.100.0.0/16")),
    lease=LeaseStatus(
        phase="held", subnet=IPv4Network("10.100.15.0/24"), expires_in_s=86000.0, since_s=400.0
    ),
    underlay=UnderlayStatus(
        link="eth0", address=IPv4Address("10.10.10.101"), public_ip=IPv4Address("10.10.10.101"), mtu=1500
    ),
    backend=BackendStatus(type="udp", link="flannel0", mtu=1472),
    store=StoreStatus(url="etcd://10.10.10.1:2379/coreos.com/network", is_connected=True, since_s=12.5),
    peers=3,
    forwarder=ForwarderStatus(pid=4711, is_attached=True, counters={"sent": 10, "no-route": 1}),
    fast_path=FastPathStatus(mode="safe", counters={"encapsulated": 7, "impostor": 0}),
    reconcile=ReconcileStatus(passes=9, repairs=1, last_repair="link flannel0 was down", refused=("route",)),
    warnings=("two hosts share 10.10.10.101",),
)

EVENTS = [
    JournalEntry(at=1792837354.41, event="repaired", found="link flannel0: not up"),
    JournalEntry(at=1792837355.0, event="fought over", found="link flannel0: not up"),
]

LEASE = Lease(
    subnet=IPv4Network("10.100.15.0/24"),
    attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101"), owner="5d0f", port=8285),
    revision=7,
)
RESERVATION = Lease(
    subnet=IPv4Network("10.100.93.0/24"),
    attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.102"), backend_type="vxlan"),
    revision=5,
    has_ttl=False,
)


class Daemon:
    """Answers like a daemon, and records the written config."""

    async def rotate_key(self) -> str:
        if self.failure:
            raise self.failure
        return "hKkG9PwcKtL6B6MdnWAsbASTyQkr88DF+WHHWMIMnzc="

    def __init__(self, *, failure: FlannelError | None = None) -> None:
        self.failure = failure
        self.config: str | None = None

    async def status(self) -> Status:
        return STATUS

    def leases(self, most: int | None = None) -> Sequence[Lease]:
        return [LEASE, RESERVATION][:most]

    def change_ages(self) -> Mapping[IpNetwork, float]:
        return {RESERVATION.subnet: 61.0}

    def events(self) -> Sequence[JournalEntry]:
        return EVENTS

    async def store_times(self) -> StoreTimes:
        return StoreTimes(answered_s=(0.5, 0.25), failure="no answer within 1.8 s")

    async def matrix(self, hosts: Sequence[IpNetwork]) -> Matrix:
        if self.failure:
            raise self.failure
        cells = (MatrixCell(subnet=RESERVATION.subnet, state="reached", rtt_ms=0.25),)
        row = MatrixRow(subnet=LEASE.subnet, public_ip=LEASE.attributes.public_ip, cells=cells)
        return Matrix(rows=(row,), silent=tuple(hosts), left_out=7)

    async def preview(self, text: str | None) -> PlanPreview:
        if self.failure:
            raise self.failure
        changes = (PlannedChange(action="add", kind="route", text=f"for {text}"),)
        return PlanPreview(changes=changes)

    def config_text(self) -> str | None:
        return self.config

    async def set_config(self, text: str) -> None:
        if self.failure:
            raise self.failure
        self.config = text


Answer = TypeVar("Answer")


def ask(path: Path, daemon: Daemon, question: Callable[[ControlClient], Awaitable[Answer]]) -> Answer:
    """Serve `daemon` at `path` for one request."""

    async def exchange() -> Answer:
        serving = asyncio.ensure_future(serve_control(path, daemon, look_s=0.01))
        try:
            async with asyncio.timeout(30):
                while not path.exists() and not serving.done():
                    await asyncio.sleep(0)
                return await question(ControlClient(path))
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    return asyncio.run(exchange())


def test_a_status_is_received_unchanged(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", Daemon(), lambda client: client.status()) == STATUS


def test_the_journal_is_received_unchanged(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", Daemon(), lambda client: client.events()) == EVENTS


def test_the_changes_of_a_plan_are_received_and_a_refusal_keeps_its_error_class(tmp_path: Path) -> None:
    for text in (None, "{}"):
        found = ask(tmp_path / "s", Daemon(), lambda client, text=text: client.preview(text))
        assert [one.text for one in found.changes] == [f"for {text}"]

    refusal = ConfigError("this host would keep its config", hint="Write another.")
    with pytest.raises(ConfigError, match="this host would keep its config"):
        ask(tmp_path / "s", Daemon(failure=refusal), lambda client: client.preview("{}"))


def test_a_rotated_key_is_received_and_a_refusal_keeps_its_error_class(tmp_path: Path) -> None:
    refused = NotReadyError("the store is unreachable", hint="Try again.")

    assert ask(tmp_path / "s", Daemon(), lambda client: client.rotate_key()).startswith("hKkG9Pwc")
    with pytest.raises(NotReadyError, match="the store is unreachable"):
        ask(tmp_path / "t", Daemon(failure=refused), lambda client: client.rotate_key())


def test_the_times_of_requests_to_the_store_are_received(tmp_path: Path) -> None:
    found = ask(tmp_path / "s", Daemon(), lambda client: client.store_times())

    assert found == StoreTimes(answered_s=(0.5, 0.25), failure="no answer within 1.8 s")


def test_a_matrix_is_received_and_a_refusal_keeps_its_error_class(tmp_path: Path) -> None:
    hosts = [LEASE.subnet, IPv6Network("fd00:5:0:9::/64")]
    found = ask(tmp_path / "s", Daemon(), lambda client: client.matrix(hosts))

    assert found.silent == tuple(hosts)
    assert found.rows[0].cells == (MatrixCell(subnet=RESERVATION.subnet, state="reached", rtt_ms=0.25),)
    refused = UsageError("a matrix needs at least two hosts", hint="Name two.")
    with pytest.raises(UsageError, match="at least two"):
        ask(tmp_path / "t", Daemon(failure=refused), lambda client: client.matrix([]))


def test_the_status_of_a_daemon_that_has_just_started_is_received(tmp_path: Path) -> None:
    class NewDaemon(Daemon):
        async def status(self) -> Status:
            return Status(version="0.1.0", waiting_for="the network config")

    status = ask(tmp_path / "s", NewDaemon(), lambda client: client.status())

    assert status == Status(version="0.1.0", waiting_for="the network config")


def test_a_status_of_another_version_is_read_without_its_new_names() -> None:
    text = b'{"version": "9", "is_live": true, "new": [1], "store": {"url": "kube:", "new": {}}}'

    assert parse_status(text) == Status(version="9", store=StoreStatus(url="kube:"))


def test_a_client_can_request_a_part_of_the_leases(tmp_path: Path) -> None:
    assert ask(tmp_path / "s", Daemon(), lambda client: client.leases(1)) == [LeaseEntry.of(LEASE)]


@pytest.mark.parametrize("value", ["", "-1", "1.5", "all", "1" * 10])
def test_a_number_of_leases_that_is_no_number_is_refused(value: str) -> None:
    route = control_routes(Daemon())["GET", "/v1/leases"]
    answer = asyncio.run(route(Request(method="GET", path="/v1/leases", query=f"most={value}")))

    assert answer.status == 422
    assert f"most is '{value}', and must be a number" in answer.body.decode()


def test_leases_are_received_one_by_one(tmp_path: Path) -> None:
    leases = ask(tmp_path / "s", Daemon(), lambda client: client.leases())

    assert leases == [LeaseEntry.of(LEASE), LeaseEntry.of(RESERVATION, change_age_s=61.0)]
    assert [(each.owner, each.is_reservation) for each in leases] == [("5d0f", False), (None, True)]


def test_a_written_config_is_read_back(tmp_path: Path) -> None:
    async def exchange(client: ControlClient) -> tuple[str | None, str | None]:
        before = await client.config_text()
        await client.set_config(CONFIG)
        return before, await client.config_text()

    assert ask(tmp_path / "s", Daemon(), exchange) == (None, CONFIG)


@pytest.mark.parametrize("text", ["{", "{}", '{"Network": "10.100.0.0/16", "SubnetLen": 8}', "\udcff"])
def test_a_bad_config_is_refused_and_not_written(tmp_path: Path, text: str) -> None:
    daemon = Daemon()
    body = text.encode(errors="surrogateescape")

    async def put(_: ControlClient) -> int:
        return (await request(tmp_path / "s", "PUT", "/v1/config", body=body, deadline_s=20)).status

    assert ask(tmp_path / "s", daemon, put) == 422
    assert daemon.config is None


def test_message_and_hint_of_a_bad_config_are_received(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Network") as raised:
        ask(tmp_path / "s", Daemon(), lambda client: client.set_config("{}"))

    assert raised.value.hint


@pytest.mark.parametrize("family", [StoreError, BusyError, NotReadyError])
def test_an_error_of_the_daemon_is_received_with_its_error_class(
    tmp_path: Path, family: type[FlannelError]
) -> None:
    daemon = Daemon(failure=family("etcd is unreachable", hint="Start it."))

    with pytest.raises(family, match="etcd is unreachable") as raised:
        ask(tmp_path / "s", daemon, lambda client: client.set_config(CONFIG))

    assert raised.value.hint == "Start it."


def test_only_the_owner_may_use_the_socket_and_it_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s"

    async def mode(_: ControlClient) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert ask(path, Daemon(), mode) == 0o600
    assert not path.exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: shutil.rmtree(path.parent)], ids=["it", "all"])
def test_a_deleted_socket_is_created_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "run" / "flanneld.sock"

    async def delete_and_ask() -> Status:
        serving = asyncio.ensure_future(serve_control(path, Daemon(), look_s=0.01))
        try:
            async with asyncio.timeout(20):
                for is_damaged in (False, True):
                    while not path.exists():
                        await asyncio.sleep(0.001)
                    if not is_damaged:
                        damage(path)
                return await ControlClient(path).status()
        finally:
            serving.cancel()

    assert asyncio.run(delete_and_ask()) == STATUS
    assert not path.exists()


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.http.sockets.peer_uid", lambda _: 65534)

    with pytest.raises((WireError, NotReadyError)):
        ask(tmp_path / "s", Daemon(), lambda client: client.status())


def test_an_unusable_path_of_the_socket_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="too long"):
        asyncio.run(serve_control(tmp_path / ("x" * 120), Daemon()))


@pytest.mark.parametrize(
    ("cause", "hint"),
    [
        (errno.ENOSPC, "Free space and inodes"),
        (errno.EROFS, "Mount this file system writable"),
        (errno.EMFILE, "LimitNOFILE="),
    ],
)
def test_a_full_or_read_only_disk_delays_only_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cause: int, hint: str
) -> None:
    """The daemon repairs and follows leases meanwhile, and logs the reason once."""
    failures = iter([cause, cause, cause])

    def listen(path: Path) -> socket.socket:
        if (number := next(failures, None)) is not None:
            raise OSError(number, os.strerror(number))
        return listen_unix(path)

    monkeypatch.setattr("pyflannel.http.sockets.listen_unix", listen)

    assert ask(tmp_path / "s", Daemon(), lambda client: client.status()) == STATUS
    (line,) = caplog.messages
    assert os.strerror(cause) in line
    assert hint in line


def test_without_a_daemon_the_error_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="no such file"):
        asyncio.run(ControlClient(tmp_path / "s").status())


def test_a_server_that_is_not_the_daemon_is_reported(tmp_path: Path) -> None:
    async def ask_elsewhere(_: ControlClient) -> int:
        return (await request(tmp_path / "s", "GET", "/v2/status", deadline_s=20)).status

    assert ask(tmp_path / "s", Daemon(), ask_elsewhere) == 404
