"""flannelctl leases prints one line for each key of the store."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from click.shell_completion import ShellComplete

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.assembly.stores import open_store
from pyflannel.commands import network_client, reservations
from pyflannel.commands.network_client import StoreClient
from pyflannel.model.store_record import Put
from pyflannel.programs.flannelctl import flannelctl, run
from testlab.documents import read_document


def write(url: str, values: Mapping[str, bytes]) -> None:
    """Write the values below `subnets/` to the store."""

    async def put() -> None:
        store = open_store(url)
        for name, value in values.items():
            await store.write(Put(key=f"subnets/{name}", value=value, ttl_s=None, expected=0))
        await store.close()

    asyncio.run(put())


def test_two_keys_of_one_subnet_are_distinguished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite://{tmp_path}/leases.db"

    write(url, dict.fromkeys(("10.100.1.0-24", "10.100.1.0-24&fd00:0:0:1::-64"), b'{"PublicIP":"10.0.0.1"}'))

    assert run(["--store", url, "leases"]) == 0
    lines = capfd.readouterr().out.splitlines()[1:]
    assert [line.partition("  ")[0] for line in lines] == ["10.100.1.0/24", "10.100.1.0/24 fd00:0:0:1::/64"]


class TestHostNames:
    """Two hosts with one name, one with an invalid name and an original flannel."""

    LEASES: ClassVar = {
        "10.100.1.0-24": b'{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"5d0f","Host":"docker1"}}',
        "10.100.2.0-24": b'{"PublicIP":"10.0.0.2","Pyflannel":{"Owner":"77d2","Host":"docker1"}}',
        "10.100.3.0-24": b'{"PublicIP":"10.0.0.3","Pyflannel":{"Owner":"a11e","Host":"\\u001b[2J"}}',
        "10.100.4.0-24": b'{"PublicIP":"10.0.0.4"}',
    }
    NAMES = ("docker1", "docker1", "-", "-")

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        url = f"sqlite://{tmp_path}/leases.db"
        write(url, self.LEASES)
        return url

    def test_the_list_shows_names_and_no_identities(
        self, url: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["--store", url, "leases"]) == 0

        headings, *lines = capfd.readouterr().out.splitlines()
        assert headings.split() == ["SUBNET", "HOST", "PUBLIC", "IP", "BACKEND", "EXPIRES"]
        assert tuple(line.split()[1] for line in lines) == self.NAMES

    def test_the_wide_list_shows_identities_too(self, url: str, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["--store", url, "leases", "--wide"]) == 0

        headings, *lines = capfd.readouterr().out.splitlines()
        assert headings.split() == ["SUBNET", "HOST", "PUBLIC", "IP", "BACKEND", "OWNER", "EXPIRES"]
        assert [line.split()[4] for line in lines] == ["5d0f", "77d2", "a11e", "-"]

    @pytest.mark.parametrize(
        ("hosts", "subnets"),
        [
            (["docker1"], ["10.100.1.0/24", "10.100.2.0/24"]),
            (["10.0.0.4", "10.100.2.0/24"], ["10.100.2.0/24", "10.100.4.0/24"]),
        ],
    )
    def test_the_leases_of_named_hosts_are_listed(
        self, hosts: list[str], subnets: list[str], url: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["--store", url, "leases", *hosts]) == 0

        _, *lines = capfd.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == subnets

    @pytest.mark.parametrize("host", ["docker9", "None"])
    def test_a_host_without_a_lease_is_reported(
        self, host: str, url: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["--store", url, "leases", "docker1", host]) == 1

        assert f"{host} is not in the list of hosts" in capfd.readouterr().err

    def test_the_document_contains_both(self, url: str, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["--store", url, "leases", "--json"]) == 0

        entries = read_document(["leases"], capfd.readouterr().out)["leases"]
        assert [entry["host_name"] or "-" for entry in entries] == list(self.NAMES)
        assert [entry["owner"] for entry in entries] == ["5d0f", "77d2", "a11e", None]


class TestVerbs:
    """The verb `ls` may be omitted, and options may be before the verb."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        url = f"sqlite://{tmp_path}/leases.db"
        write(
            url, {"10.100.1.0-24": b'{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"5d0f","Host":"history"}}'}
        )
        return url

    @pytest.mark.parametrize(
        "arguments",
        [
            ["leases", "ls", "--store", "URL"],
            ["leases", "--store", "URL", "ls"],
            ["leases", "--store", "URL"],
            ["leases", "--store", "URL", "10.0.0.1"],
            ["leases", "ls", "history", "--store", "URL"],
        ],
    )
    def test_the_list_is_the_usual_verb(
        self, url: str, arguments: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run([url if word == "URL" else word for word in arguments]) == 0

        assert len(capfd.readouterr().out.splitlines()) == 2

    def test_the_help_lists_the_verbs(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["leases", "--help"]) == 0

        shown = capfd.readouterr().out
        assert all(f"  {verb} " in shown for verb in ("ls", "reserve", "release", "history"))

    def test_a_verb_is_completed(self) -> None:
        completion = ShellComplete(flannelctl, {}, "flannelctl", "_FLANNELCTL_COMPLETE")

        found = [item.value for item in completion.get_completions(["leases"], "re")]

        assert found == ["release", "reserve"]

    def test_the_holder_that_is_alive_is_named(
        self, url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answers(*_: object) -> bool:
            return True

        monkeypatch.setattr(reservations, "_answers", answers)

        assert run(["--store", url, "leases", "release", "10.100.1.0/24"]) == 1

        assert "history (10.0.0.1) is alive, so 10.100.1.0/24 is not released" in capfd.readouterr().err


class TestLateStore:
    """A store that does not answer in time, or not completely."""

    @pytest.fixture
    def store(self) -> FakeStore:
        store = FakeStore(FakeClock())
        for key, ttl_s in (("subnets/10.100.1.0-24", 60), ("subnets/10.100.2.0-24", None)):
            store.change(Put(key=key, value=b'{"PublicIP":"10.0.0.1"}', ttl_s=ttl_s, expected=0))
        return store

    def test_an_expiry_that_arrives_too_late_is_shown_as_unknown(
        self, store: FakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(network_client, "EXPIRIES_S", 0.01)
        monkeypatch.setattr(store, "time_to_live", _never)

        entries = asyncio.run(StoreClient(store).leases())

        assert [(one.is_reservation, one.expires_in_s) for one in entries] == [(False, None), (True, None)]
        assert "the store has not reported the expiry of all leases" in caplog.text


async def _never(*_: object) -> None:
    await asyncio.Event().wait()


def test_a_command_names_each_member_of_etcd_that_hangs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_client, "READ_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        members = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
        url = f"etcd://{','.join(members)}"
        for words in (["leases", "history"], ["leases", "release", "10.100.1.0/24"], ["network", "ls"]):
            assert run(["--store", url, "--json", *words]) == 3

            error = read_document(words, capfd.readouterr().out)["error"]
            failures = "; ".join(f"{member}: no answer in time" for member in members)
            assert error["message"] == f"etcd does not respond: {failures}"
