"""flannelctl leases prints one line for each key of the store."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.model.store_record import Put
from pyflannel.programs.flannelctl import run
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

        assert f"{host} is not in the list" in capfd.readouterr().err

    def test_the_document_contains_both(self, url: str, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["--store", url, "leases", "--json"]) == 0

        entries = read_document(["leases"], capfd.readouterr().out)["leases"]
        assert [entry["host_name"] or "-" for entry in entries] == list(self.NAMES)
        assert [entry["owner"] for entry in entries] == ["5d0f", "77d2", "a11e", None]
