"""flannelctl network lists, creates and removes the networks of a store."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.assembly.stores import open_store
from pyflannel.commands.networks import find_network, remove_network
from pyflannel.errors import FlannelError, StoreError
from pyflannel.model.store_record import Put
from pyflannel.programs.flannelctl import run
from testlab.documents import read_document

Printed = pytest.CaptureFixture[str]
BLUE = '{"Network": "10.101.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}'
LEASE = b'{"PublicIP":"10.0.0.1"}'


def put(url: str, key: str, value: bytes, ttl_s: int | None = 60) -> None:
    async def write() -> None:
        store = open_store(url)
        await store.write(Put(key=key, value=value, ttl_s=ttl_s, expected=None))
        await store.close()

    asyncio.run(write())


class TestStore:
    """A store with the network without a name, in a file."""

    @pytest.fixture
    def url(self, tmp_path: Path, capfd: Printed) -> str:
        url = f"sqlite://{tmp_path}/leases.db"
        assert run(["--store", url, "config", "set", '{"Network": "10.100.0.0/16"}']) == 0
        capfd.readouterr()
        return url

    def command(self, capfd: Printed, url: str, *words: str) -> Any:
        """Run a verb of `network` and return its document."""
        run(["--store", url, "network", *words, "--json"])
        return read_document(["network", *words[:1]], capfd.readouterr().out)

    def test_networks_are_listed_with_their_leases(self, url: str, capfd: Printed) -> None:
        assert self.command(capfd, url, "create", "blue", BLUE)["network"] == "10.101.0.0/16"
        put(url, "blue/subnets/10.101.1.0-24", LEASE)
        put(url, "blue/subnets/10.101.2.0-24", LEASE, None)
        put(url, "red/config", b'{"Network": "x"}', None)
        put(url, "green/subnets/10.103.1.0-24", LEASE)
        put(url, "claims/10.100.1.0-24", LEASE)

        listed = self.command(capfd, url, "ls")["networks"]

        assert [(one["name"], one["network"], one["leases"], one["reservations"]) for one in listed] == [
            (None, "10.100.0.0/16", 0, 0),
            ("blue", "10.101.0.0/16", 2, 1),
            ("green", None, 1, 0),
            ("red", None, 0, 0),
        ]
        assert [one["error"] is None for one in listed] == [True, True, False, False]
        assert listed[2]["error"] == "there is no config"

    def test_the_table_ignores_a_network_in_the_url(self, url: str, capfd: Printed) -> None:
        assert run(["--store", f"{url}#blue", "network", "ls"]) == 0

        assert capfd.readouterr().out.splitlines()[1].split() == [
            "-",
            "10.100.0.0/16",
            "udp",
            "0",
            "0",
            "valid",
        ]

    @pytest.mark.parametrize(
        ("config", "conflict"),
        [
            (
                '{"Network": "10.100.128.0/17", "Backend": {"Type": "host-gw"}}',
                "its range 10.100.128.0/17 overlaps 10.100.0.0/16",
            ),
            ('{"Network": "10.101.0.0/16"}', "it has the same Port 8285"),
        ],
    )
    def test_a_conflict_is_refused_unless_forced(
        self, url: str, config: str, conflict: str, capfd: Printed
    ) -> None:
        refused = self.command(capfd, url, "create", "blue", config)["error"]
        forced = self.command(capfd, url, "create", "blue", config, "--force")

        assert (refused["code"], f"{conflict} as the network without a name" in refused["message"]) == (
            1,
            True,
        )
        assert forced["conflicts"] == [f"{conflict} as the network without a name"]

    @pytest.mark.parametrize("kind", ["vxlan", "wireguard"])
    def test_two_networks_of_one_backend_need_different_devices(
        self, url: str, kind: str, capfd: Printed
    ) -> None:
        text = '{{"Network": "10.10{}.0.0/16", "Backend": {{"Type": "{}"}}}}'
        self.command(capfd, url, "create", "blue", text.format(1, kind))

        refused = self.command(capfd, url, "create", "red", text.format(2, kind))["error"]

        assert "it has the same" in refused["message"]

    @pytest.mark.parametrize("name", ["subnets", "-x", "a/b", "", "flanneld.sock"])
    def test_a_wrong_name_is_refused(self, url: str, name: str, capfd: Printed) -> None:
        for words in (["create", "--", name, BLUE], ["rm", "--", name]):
            assert run(["--store", url, "network", *words]) == 2
            assert "cannot be the name of a network" in capfd.readouterr().err

    def test_an_invalid_config_is_refused(self, url: str) -> None:
        assert run(["--store", url, "network", "create", "blue", '{"Network": "x"}']) == 2

    def test_an_existing_network_is_refused(self, url: str, capfd: Printed) -> None:
        self.command(capfd, url, "create", "blue", BLUE)

        assert (
            "the network blue exists" in self.command(capfd, url, "create", "blue", BLUE)["error"]["message"]
        )

    def test_a_network_with_leases_is_removed_only_with_force(self, url: str, capfd: Printed) -> None:
        self.command(capfd, url, "create", "blue", BLUE)
        put(url, "blue/subnets/10.101.1.0-24", LEASE)
        put(url, "bluebird/subnets/10.104.1.0-24", LEASE)

        refused = self.command(capfd, url, "rm", "blue")["error"]
        removed = self.command(capfd, url, "rm", "blue", "--force")

        assert (refused["code"], refused["message"]) == (1, "the network blue has 1 lease")
        assert removed["removed_leases"] == 1
        assert [one["name"] for one in self.command(capfd, url, "ls")["networks"]] == [None, "bluebird"]

    def test_an_unknown_network_is_reported(self, url: str, capfd: Printed) -> None:
        assert self.command(capfd, url, "rm", "blue")["error"]["code"] == 3

    def test_in_kubernetes_the_command_is_refused(self, capfd: Printed) -> None:
        assert run(["--store", "kube:", "network", "ls"]) == 1

        assert "Nodes of Kubernetes" in capfd.readouterr().err


class TestRaces:
    """Writes of other programs between the steps of the removal."""

    @pytest.fixture
    def store(self) -> FakeStore:
        store = FakeStore(FakeClock())
        store.change(Put(key="blue/config", value=BLUE.encode(), ttl_s=None, expected=None))
        return store

    def test_a_lease_that_appears_meanwhile_keeps_the_network(
        self, store: FakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = store.write

        async def late(operation: Any) -> Any:
            store.change(Put(key="blue/subnets/10.101.1.0-24", value=LEASE, ttl_s=60, expected=None))
            return await write(operation)

        async def test() -> None:
            found = await find_network(store, "blue")
            monkeypatch.setattr(store, "write", late)
            await remove_network(store, found, is_forced=False)

        with pytest.raises(FlannelError, match="has 1 lease"):
            asyncio.run(test())
        assert {one.key for one in store.listing().records} == {"blue/config", "blue/subnets/10.101.1.0-24"}

    def test_a_config_that_was_written_meanwhile_is_kept(self, store: FakeStore) -> None:
        async def test() -> None:
            found = await find_network(store, "blue")
            store.change(Put(key="blue/config", value=b"{}", ttl_s=None, expected=None))
            await remove_network(store, found, is_forced=True)

        with pytest.raises(StoreError, match="written by another program"):
            asyncio.run(test())
