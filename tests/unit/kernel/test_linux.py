"""Batches of changes, and a kernel that stops answering during a batch."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Operation
from pyflannel.wire.netlink.message import Acknowledgement, Request


def routes(count: int, link: str = "lo") -> list[Add]:
    return [
        Add(Route(destination=IPv4Network((0x0A000000 + 256 * number, 24)), link=link))
        for number in range(count)
    ]


async def refused(operations: Sequence[Operation]) -> list[tuple[Operation, str]]:
    async with LinuxTarget() as target:
        return [(refusal.operation, refusal.cause) for refusal in await target.apply(operations)]


def test_operations_after_an_unanswered_operation_are_refused_without_an_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapter does not know which operations took effect. The next pass reads the host."""
    asked: list[int] = []

    async def transact(_: RequestSocket, requests: Sequence[Request]) -> list[Acknowledgement]:
        if requests:
            asked.append(len(requests))
        if len(asked) > 1:
            raise TargetError("the kernel did not answer", hint="Look.")
        return [Acknowledgement(sequence=0, errno=0, text="") for _ in requests]

    monkeypatch.setattr(RequestSocket, "transact", transact)
    operations = [*routes(150), *routes(1, link="nowhere"), *routes(400)[200:]]

    found = asyncio.run(refused(operations))

    assert asked == [100, 99]
    assert found == [(operation, "the kernel did not answer") for operation in operations[100:]]


def test_operations_are_sent_in_order_despite_refusals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Request] = []

    async def transact(_: RequestSocket, requests: Sequence[Request]) -> list[Acknowledgement]:
        await asyncio.sleep(0)
        sent.extend(requests)
        return [Acknowledgement(sequence=0, errno=0, text="") for _ in requests]

    monkeypatch.setattr(RequestSocket, "transact", transact)
    good = routes(350)

    found = asyncio.run(refused([*good[:120], *routes(1, link="nowhere"), *good[120:]]))

    destinations = [IPv4Address(request.body[16:20]) for request in sent]
    assert [Add(Route(destination=IPv4Network((one, 24)), link="lo")) for one in destinations] == good
    assert [cause for _, cause in found] == ["ENODEV: No such device (nowhere)"]
