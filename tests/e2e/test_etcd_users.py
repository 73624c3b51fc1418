"""The etcd store when a real etcd requires users, or refuses a token during operation."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.errors import StoreError
from pyflannel.model.store_record import Put, Secret, StoreChanges, Written
from pyflannel.ports import Store

PATIENCE_S = 90
PASSWORD = "correct-horse"


class Users:
    """An etcd with a user `flannel`, with all rights below /test, and a user `guest` without rights."""

    def __init__(self, etcd: Any) -> None:
        self.endpoint = etcd.endpoint
        self._etcd = etcd
        for command in (
            f"user add root:{PASSWORD}",
            "user grant-role root root",
            "role add hosts",
            "role grant-permission hosts readwrite --prefix=true /test/",
            f"user add flannel:{PASSWORD}",
            "user grant-role flannel hosts",
            f"user add guest:{PASSWORD}",
            "auth enable",
        ):
            etcd.ctl(*command.split())

    def invalidate_tokens(self, password: str = PASSWORD) -> None:
        """Change the password, possibly to the same password. etcd then refuses earlier tokens of the
        user.
        """
        root = f"--user=root:{PASSWORD}"
        self._etcd.ctl(root, "user", "passwd", "flannel", "--interactive=false", text=password)


@pytest.fixture
def users(new_etcd: Callable[[], Any]) -> Users:
    etcd = new_etcd()
    etcd.start()
    return Users(etcd)


def run(test: Awaitable[None]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def opened(users: Users, user: str = "flannel") -> AsyncIterator[Store]:
    store = open_store(f"etcd://{users.endpoint}/test?username={user}", Secret(PASSWORD))
    try:
        yield store
    finally:
        await store.close()


async def put(store: Store, key: str) -> int:
    written = await store.write(Put(key=key, value=b"{}", ttl_s=60, expected=None))
    assert isinstance(written, Written)
    return written.revision


def logins(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage().startswith("Logged in") for record in caplog.records)


def test_a_refused_token_is_replaced_by_one_login_for_all_calls(
    users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pyflannel")

    async def test() -> None:
        async with opened(users) as store:
            await asyncio.gather(*(store.list("") for _ in range(20)))
            assert logins(caplog) == 1
            await asyncio.to_thread(users.invalidate_tokens)

            await asyncio.gather(*(put(store, f"subnets/{number}") for number in range(20)))

            assert logins(caplog) == 2
            assert len((await store.list("subnets/")).records) == 20

    run(test())


def test_a_watch_begins_with_a_token_that_was_refused(users: Users) -> None:
    async def test() -> None:
        async with opened(users) as store:
            revision = await put(store, "subnets/a")
            await asyncio.to_thread(users.invalidate_tokens)

            async with store.watch("subnets/", revision) as watch:
                assert await watch.next() == StoreChanges((), revision)

    run(test())


def test_an_open_watch_continues_while_tokens_change(users: Users) -> None:
    async def test() -> None:
        async with opened(users) as store:
            revision = await put(store, "subnets/a")
            async with store.watch("subnets/", revision) as watch:
                await watch.next()
                await asyncio.to_thread(users.invalidate_tokens)
                later = await put(store, "subnets/b")

                assert (await watch.next()).revision == later

    run(test())


def test_the_error_of_a_user_without_rights_names_the_key(users: Users) -> None:
    async def test() -> None:
        async with opened(users, "guest") as store:
            for call, key in (
                (store.get("config"), "/test/config"),
                (store.list("subnets/"), "/test/subnets/"),
                (put(store, "subnets/a"), "/test/subnets/a"),
                (store.watch("subnets/", 0).__aenter__(), "/test/subnets/"),
            ):
                with pytest.raises(StoreError, match=f"user 'guest' {key}: permission denied") as caught:
                    await call
                assert "role" in caught.value.hint

    run(test())


def test_an_unknown_user_and_a_wrong_password_cause_the_same_error(users: Users) -> None:
    async def test() -> None:
        async with opened(users, "unknown") as store:
            with pytest.raises(StoreError, match="refused user 'unknown': authentication failed"):
                await store.get("config")
        async with opened(users) as store:
            await store.get("config")
            await asyncio.to_thread(users.invalidate_tokens, "another")
            with pytest.raises(StoreError, match="refused user 'flannel': authentication failed") as caught:
                await store.get("config")
            assert PASSWORD not in str(caught.value) + caught.value.hint

    run(test())


def test_a_missing_user_is_reported(users: Users) -> None:
    async def test() -> None:
        store = open_store(f"etcd://{users.endpoint}/test")
        with pytest.raises(StoreError, match="/test/config: user name is empty") as caught:
            await store.get("config")
        await store.close()
        assert "--etcd-username" in caught.value.hint

    run(test())


def test_a_user_can_connect_without_authentication(shared_etcd: Any, tmp_path: Path) -> None:
    url = f"etcd://{shared_etcd.endpoint}/open?username=flannel&password-file={tmp_path / 'password'}"
    (tmp_path / "password").write_text(PASSWORD)

    async def test() -> None:
        store = open_store(url)
        await put(store, "config")
        await store.close()

    run(test())
