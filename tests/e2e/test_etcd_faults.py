"""The etcd store when a real etcd is unreachable, hangs, loses data, or is shared with other clients."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.client import Channel

from pyflannel.assembly.stores import open_store
from pyflannel.errors import StoreError
from pyflannel.model.store_record import Conflict, Delete, Put, PutSeen, StoreChanges, Written
from pyflannel.ports import Store, Watcher
from pyflannel.stores.etcd.rpc_grpc import KVStub
from pyflannel.stores.etcd.rpc_pb2 import PutRequest, RequestOp, TxnRequest
from pyflannel.stores.etcd.watch import ANSWER_S, SILENT_S

PATIENCE_S = 120
"""Maximum time in seconds until a hang is detected, by the deadline of a call or pings of a connection."""

CLOSED = "127.0.0.1:1"
BUSY_S = 5.0
"""Additional seconds for a busy machine."""


def run(test: Awaitable[None]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def opened(*endpoints: str, prefix: str = "/test") -> AsyncIterator[Store]:
    store = open_store(f"etcd://{','.join(endpoints)}{prefix}")
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def watching(store: Store, prefix: str, after: int) -> AsyncIterator[Watcher]:
    async with store.watch(prefix, after) as watch:
        assert await watch.next() == StoreChanges((), after)  # the watch is open
        yield watch


async def put(store: Store, key: str, **options: Any) -> int:
    written = await store.write(
        Put(**{"key": key, "value": b"{}", "ttl_s": None, "expected": None} | options)
    )
    assert isinstance(written, Written)
    return written.revision


async def put_at_one_revision(etcd: Any, keys: list[str], value: bytes) -> None:
    channel = Channel("127.0.0.1", etcd.port)
    try:
        puts = [RequestOp(request_put=PutRequest(key=key.encode(), value=value)) for key in keys]
        await KVStub(channel).Txn(TxnRequest(success=puts))
    finally:
        channel.close()


def lease_count(etcd: Any) -> int:
    return len(etcd.ctl("lease", "list").stdout.splitlines()) - 1


def test_the_next_endpoint_answers_when_one_is_down(shared_etcd: Any) -> None:
    async def test() -> None:
        async with opened(CLOSED, shared_etcd.endpoint, prefix="/failover") as store:
            revision = await put(store, "config", expected=0)

            assert (await store.list("")).records[0].revision == revision
            async with watching(store, "", revision - 1) as watch:
                assert (await watch.next()).revision == revision

    run(test())


def test_an_unreachable_etcd_is_an_error_until_it_starts(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            for call in (
                store.get("config"),
                store.list(""),
                put(store, "config"),
                store.watch("", 0).__aenter__(),
            ):
                with pytest.raises(StoreError, match=f"{etcd.endpoint}: connection refused"):
                    await call

            await asyncio.to_thread(etcd.start)

            await put(store, "config", expected=0)

    run(test())


def test_a_watch_ends_when_etcd_is_killed_and_continues_at_its_revision(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()
    etcd.start()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            seen = await put(store, "subnets/a")
            async with watching(store, "subnets/", seen - 1) as watch:
                assert (await watch.next()).revision == seen
                etcd.kill()
                with pytest.raises(StoreError, match="ended"):
                    await watch.next()

            await asyncio.to_thread(etcd.start)
            etcd.ctl("put", "/test/subnets/b", "{}")

            async with watching(store, "subnets/", seen) as watch:
                (change,) = (await watch.next()).changes
                assert isinstance(change, PutSeen)
                assert change.record.key == "subnets/b"

    run(test())


def test_a_hanging_member_is_detected(new_etcd: Callable[[], Any], shared_etcd: Any) -> None:
    """Calls and watches notice it, reads use the next member, and a write is not repeated there."""
    hanging = new_etcd()
    hanging.start()
    both = hanging.endpoint, shared_etcd.endpoint

    async def test() -> None:
        async with (
            opened(hanging.endpoint) as caller,
            opened(hanging.endpoint) as watcher,
            opened(*both, prefix="/hang") as reader,
            opened(*both, prefix="/once") as writer,
        ):
            revision = await put(caller, "config")
            await reader.list("")
            await writer.list("")
            async with watching(watcher, "", revision - 1) as watch:
                await watch.next()
                hanging.signal(signal.SIGSTOP)
                await asyncio.gather(
                    calls_and_watches_end(caller, watch),
                    the_next_member_answers(reader),
                    a_write_that_may_have_happened_is_not_sent_to_another_member(writer),
                )

            hanging.signal(signal.SIGCONT)

            assert await caller.get("config") is not None
            assert await watcher.get("config") is not None

    run(test())


async def calls_and_watches_end(caller: Store, watch: Watcher) -> None:
    stopped = time.monotonic()
    with pytest.raises(StoreError, match="no answer in time"):
        await caller.get("config")
    with pytest.raises(StoreError, match="ended"):
        await watch.next()
    assert time.monotonic() - stopped < SILENT_S + ANSWER_S + BUSY_S


async def the_next_member_answers(store: Store) -> None:
    started = time.monotonic()
    await store.list("")
    hung_s = time.monotonic() - started

    started = time.monotonic()
    await store.list("")
    assert time.monotonic() - started < hung_s  # the endpoint of the last success is used first


async def a_write_that_may_have_happened_is_not_sent_to_another_member(store: Store) -> None:
    with pytest.raises(StoreError, match="no answer in time"):
        await put(store, "config")

    assert await store.get("config") is None


@pytest.fixture
def proxy(shared_etcd: Any, free_port: Callable[[], int]) -> Iterator[str]:
    """The address of etcd's own proxy."""
    endpoint = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        ["etcd", "grpc-proxy", "start", f"--endpoints={shared_etcd.endpoint}", f"--listen-addr={endpoint}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield endpoint
    finally:
        process.kill()
        process.wait()


def test_an_idle_watch_stays_open(shared_etcd: Any, proxy: str, long_run: bool) -> None:
    """The pings, one every 6 s, neither end the watch nor cause errors of etcd.

    The proxy does not forward progress requests, so that a missing response has no meaning.
    """

    async def test() -> None:
        await asyncio.gather(
            idle_watch_stays_open(shared_etcd.endpoint, "/idle", 40 if long_run else 13),
            idle_watch_stays_open(proxy, "/proxy", SILENT_S + ANSWER_S + 1),
        )

    run(test())


async def idle_watch_stays_open(endpoint: str, prefix: str, seconds: float) -> None:
    async with opened(endpoint, prefix=prefix) as store:
        revision = await written_at_last(store, "config")
        async with watching(store, "", revision) as watch:
            next_changes = asyncio.ensure_future(watch.next())
            done, _ = await asyncio.wait([next_changes], timeout=seconds)
            assert not done
            later = await put(store, "config")
            assert (await next_changes).revision == later


def test_events_of_one_revision_are_returned_together(shared_etcd: Any) -> None:
    keys = [f"/together/subnets/{number:03}" for number in range(100)]

    async def test() -> None:
        async with opened(shared_etcd.endpoint, prefix="/together") as store:
            start = (await store.list("")).revision
            async with watching(store, "subnets/", start) as watch:
                await put_at_one_revision(shared_etcd, keys, b"{}")

                changes = await watch.next()

            assert [f"/together/{change.record.key}" for change in changes.changes] == keys
            assert {change.record.revision for change in changes.changes} == {changes.revision}

    run(test())


def test_a_replay_of_many_megabytes_arrives_completely(shared_etcd: Any) -> None:
    """A replay of this size arrives in fragments. No fragment ends within a revision."""

    async def test() -> None:
        async with opened(shared_etcd.endpoint, prefix="/large") as store:
            start = (await store.list("")).revision
            for batch in range(30):
                keys = [f"/large/subnets/{batch}-{number}" for number in range(20)]
                await put_at_one_revision(shared_etcd, keys, b"x" * 20_000)

            seen: list[StoreChanges] = []
            async with watching(store, "subnets/", start) as watch:
                while sum(len(changes.changes) for changes in seen) < 600:
                    seen.append(await watch.next())

            keys_seen = [change.record.key for changes in seen for change in changes.changes]
            assert len(keys_seen) == len(set(keys_seen)) == 600
            last = [changes.changes[-1].record.key.rpartition("-")[2] for changes in seen]
            assert set(last) == {"19"}

    run(test())


def test_ten_thousand_keys_are_listed_at_one_revision(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()
    etcd.start()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            for batch in range(100):
                keys = [f"/test/subnets/{batch:03}-{number:03}" for number in range(100)]
                await put_at_one_revision(etcd, keys, b"x" * 158)

            listing, written = await asyncio.gather(store.list("subnets/"), put(store, "subnets/later"))

            keys_listed = [record.key for record in listing.records if record.key != "subnets/later"]
            assert keys_listed == sorted(keys_listed)
            assert len(keys_listed) == 10_000
            assert (len(listing.records) == 10_001) == (listing.revision >= written)

    run(test())


def test_no_etcd_lease_remains_after_a_lost_race(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()
    etcd.start()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            await put(store, "subnets/a", ttl_s=600, expected=0)

            lost = await store.write(Put(key="subnets/a", value=b"", ttl_s=600, expected=0))

            assert isinstance(lost, Conflict)
            assert lease_count(etcd) == 1

    run(test())


def test_no_etcd_lease_remains_after_renewals_and_deletions(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()
    etcd.start()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            revision = await put(store, "subnets/a", ttl_s=600, expected=0)
            for _ in range(5):
                revision = await put(store, "subnets/a", ttl_s=600, expected=revision)
            assert lease_count(etcd) == 1

            await store.write(Delete(key="subnets/a", expected=revision))

            assert lease_count(etcd) == 0

    run(test())


def test_an_etcd_lease_that_other_clients_use_is_kept(new_etcd: Callable[[], Any]) -> None:
    etcd = new_etcd()
    etcd.start()

    async def test() -> None:
        async with opened(etcd.endpoint) as store:
            revision = await put(store, "subnets/a", ttl_s=600, expected=0)
            record = await store.get("subnets/a")
            assert record is not None
            etcd.ctl("put", f"--lease={record.lease_id:x}", "/elsewhere", "manual")

            await put(store, "subnets/a", ttl_s=600, expected=revision)

            assert etcd.ctl("get", "/elsewhere", "--print-value-only").stdout == "manual\n"

    run(test())


def test_a_slash_at_the_end_of_the_prefix_has_no_effect(shared_etcd: Any) -> None:
    async def test() -> None:
        async with opened(shared_etcd.endpoint, prefix="/slash/") as with_slash:
            await put(with_slash, "config")
        async with opened(shared_etcd.endpoint, prefix="/slash") as without:
            assert await without.get("config") is not None
        assert shared_etcd.ctl("get", "/slash/config", "--keys-only").stdout.strip() == "/slash/config"

    run(test())


class Member:
    """One of three members of a cluster on loopback."""

    def __init__(self, name: str, directory: Path, port: int, cluster: dict[str, str]) -> None:
        self.endpoint = f"127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [
                "etcd",
                f"--name={name}",
                f"--data-dir={directory / name}",
                "--unsafe-no-fsync",
                "--election-timeout=1500",  # a leader without processor time for a second remains leader
                f"--listen-client-urls=http://{self.endpoint}",
                f"--advertise-client-urls=http://{self.endpoint}",
                f"--listen-peer-urls={cluster[name]}",
                f"--initial-advertise-peer-urls={cluster[name]}",
                f"--initial-cluster={','.join(f'{member}={url}' for member, url in cluster.items())}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def is_leader(self) -> bool:
        answer = subprocess.run(
            ["etcdctl", f"--endpoints={self.endpoint}", "endpoint", "status", "-w", "json"],
            env=os.environ | {"ETCDCTL_API": "3"},
            capture_output=True,
            check=False,
        )
        (status,) = json.loads(answer.stdout or b"[{}]")
        return bool(status) and status["Status"]["header"]["member_id"] == status["Status"]["leader"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def members(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[list[Member]]:
    """A cluster of three members, with the leader first."""
    names = ("one", "two", "three")
    ports, peer_ports = [free_port() for _ in names], [free_port() for _ in names]
    cluster = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, peer_ports, strict=True)}
    running = [Member(name, tmp_path, port, cluster) for name, port in zip(names, ports, strict=True)]
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not any(member.is_leader() for member in running):
            assert time.monotonic() < deadline, "the cluster elected no leader"
        yield sorted(running, key=Member.is_leader, reverse=True)
    finally:
        for member in running:
            member.kill()


def test_writes_and_watches_continue_at_other_members_when_the_leader_is_killed(
    members: list[Member],
) -> None:
    leader, *others = members

    async def test() -> None:
        async with opened(*(member.endpoint for member in [leader, *others])) as store:
            seen = await written_at_last(store, "subnets/a")
            async with watching(store, "subnets/", seen - 1) as watch:
                await watch.next()
                leader.kill()
                with pytest.raises(StoreError, match="ended"):
                    await watch.next()

            later = await written_at_last(store, "subnets/b")

            async with watching(store, "subnets/", seen) as watch:
                while (await watch.next()).revision < later:  # a write without a response may have happened
                    pass

    run(test())


def test_a_member_cut_off_from_the_others_ends_its_watches(members: list[Member]) -> None:
    *others, left = members

    async def test() -> None:
        async with opened(left.endpoint) as store:
            seen = await written_at_last(store, "subnets/a")
            async with watching(store, "subnets/", seen) as watch:
                waiting = asyncio.ensure_future(watch.next())
                await asyncio.wait([waiting], timeout=0.1)
                for member in others:
                    member.kill()

                with pytest.raises(StoreError, match="no leader"):
                    await waiting
            with pytest.raises(StoreError):
                await store.get("subnets/a")

    run(test())


async def written_at_last(store: Store, key: str) -> int:
    """Write as soon as there is a leader."""
    while True:
        with contextlib.suppress(StoreError):
            return await put(store, key)
