"""flannelctl leases prints one line for each key of the store."""

import asyncio
from pathlib import Path

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.model.store_record import Put
from pyflannel.programs.flannelctl import run


def test_two_keys_of_one_subnet_are_distinguished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite://{tmp_path}/leases.db"

    async def write() -> None:
        store = open_store(url)
        for name in ("10.100.1.0-24", "10.100.1.0-24&fd00:0:0:1::-64"):
            value = b'{"PublicIP":"10.0.0.1"}'
            await store.write(Put(key=f"subnets/{name}", value=value, ttl_s=None, expected=0))
        await store.close()

    asyncio.run(write())

    assert run(["--store", url, "leases"]) == 0
    lines = capfd.readouterr().out.splitlines()[1:]
    assert [line.partition("  ")[0] for line in lines] == ["10.100.1.0/24", "10.100.1.0/24 fd00:0:0:1::/64"]
