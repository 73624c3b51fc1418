"""The adapter of nftables while another program changes tables."""

import asyncio

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.filters import nftables
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.model.state import State

ONE = "table ip flannel-ipv4\n"
NONE = ""


def read(monkeypatch, *listings: str) -> State:
    """Return the result if the listings of tables contain these names in turn, and no table is readable."""
    answers = iter(listings)

    async def nft(*words: str, given: str = "") -> str:
        if words[-1] == "tables":
            return next(answers)
        raise TargetError("nft failed: No such file or directory", hint="")

    async def run() -> State:
        monkeypatch.setattr(nftables, "_nft", nft)
        seen = await NftTarget(60)._read()
        if seen.error is not None:
            raise seen.error
        return State.of(*seen.tables)

    return asyncio.run(run())


def test_a_table_that_was_deleted_between_two_reads_is_absent(monkeypatch) -> None:
    assert read(monkeypatch, ONE, NONE) == State.EMPTY


def test_an_unreadable_table_is_reported(monkeypatch) -> None:
    with pytest.raises(TargetError, match="No such file"):
        read(monkeypatch, ONE, ONE)
