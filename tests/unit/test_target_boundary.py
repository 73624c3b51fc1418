"""`apply` of a target returns refusals in every case."""

import asyncio
import errno
from collections.abc import Sequence

import pytest

from pyflannel.errors import TargetError
from pyflannel.model.host import HostFile
from pyflannel.model.state import Add, Operation, Refusal
from pyflannel.ports import in_thread, performed

ADDS: list[Operation] = [Add(HostFile(path=path, text="")) for path in ("/a", "/b")]


@pytest.mark.parametrize(
    ("error", "cause", "is_permanent"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "EMFILE: Too many open files", False),
        (OSError(errno.EROFS, "Read-only file system"), "EROFS: Read-only file system", True),
        (TargetError("nft is not installed", hint="Install it.", is_permanent=True), "not installed", True),
        (TargetError("no answer", hint="Wait."), "no answer", False),
    ],
)
def test_if_the_call_fails_every_operation_is_refused_with_its_cause(
    error: Exception, cause: str, is_permanent: bool
) -> None:
    async def fail() -> Sequence[Refusal]:
        raise error

    refused = asyncio.run(performed(ADDS, fail()))

    assert [each.operation for each in refused] == ADDS
    assert all(cause in each.cause and each.hint for each in refused)
    assert {each.is_permanent for each in refused} == {is_permanent}


def test_a_defect_is_not_a_refusal() -> None:
    async def fail() -> Sequence[Refusal]:
        raise KeyError("mistake")

    with pytest.raises(KeyError):
        asyncio.run(performed(ADDS, fail()))


def test_a_failed_start_of_a_thread_is_a_system_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter raises RuntimeError, which is a defect in other cases."""

    async def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio, "to_thread", refuse)

    with pytest.raises(BlockingIOError) as raised:
        asyncio.run(in_thread(len, []))

    assert raised.value.errno == errno.EAGAIN
