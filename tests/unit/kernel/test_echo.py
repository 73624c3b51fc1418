"""ICMP echo requests to the own host: results, refusals, deadline."""

import asyncio
import os
import time
from collections.abc import Awaitable
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import pytest

from pyflannel.kernel.network.echo import _Pending, _Sender, count_replies, send_echoes
from pyflannel.model.probe import Echo
from pyflannel.wire.icmp import ECHO_REPLY, UNREACHABLE, IcmpMessage

HERE, PEER, ROUTER = IPv4Address("127.0.0.1"), IPv4Address("192.0.2.7"), IPv4Address("192.0.2.1")
HERE_V6 = IPv6Address("::1")
Answers = TypeVar("Answers")


def taken(message_from: IPv4Address, kind: int, body: bytes | None = None) -> str:
    """Return the state of a request to PEER after this message; without `body` it contains the nonce."""
    sender = _Sender({}, [Echo(destination=PEER)])
    (one,) = sender._pending.values()
    one.sent_at.append(time.monotonic())
    around = b"" if kind == ECHO_REPLY else b"headers of a tunnel"
    body = around + one.nonce if body is None else body
    sender._take(IcmpMessage(sender=message_from, kind=kind, code=3, body=body, sequence=1), time.monotonic())
    return sender.results()[0].state


def test_a_reply_counts_only_with_the_nonce_and_from_the_destination() -> None:
    assert taken(PEER, ECHO_REPLY) == "reached"
    assert taken(ROUTER, ECHO_REPLY) == "silent"
    assert taken(PEER, ECHO_REPLY, bytes(16)) == "silent"


def test_an_error_counts_if_it_quotes_the_nonce() -> None:
    assert taken(ROUTER, UNREACHABLE) == "rejected"
    assert taken(ROUTER, UNREACHABLE, b"another packet") == "silent"


def test_each_request_has_its_own_nonce() -> None:
    assert _Pending(Echo(destination=PEER)).nonce != _Pending(Echo(destination=PEER)).nonce


def test_the_number_of_requests_up_to_the_answer_is_known() -> None:
    """A request counts as lost if a later request is answered first, and not if its own answer is late."""

    def attempts(sequence: int | None) -> int:
        sender = _Sender({}, [Echo(destination=PEER)])
        (one,) = sender._pending.values()
        one.sent_at += [1.0, 1.4, 1.9]
        if sequence is not None:
            message = IcmpMessage(sender=PEER, kind=ECHO_REPLY, code=0, body=one.nonce, sequence=sequence)
            sender._take(message, 2.0)
        return sender.results()[0].attempts

    assert [attempts(one) for one in (1, 2, 3, None)] == [1, 2, 3, 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
def test_many_requests_are_answered_and_a_refused_one_is_reported() -> None:
    """The requests use loopback. The largest request is larger than the MTU of any device."""
    echoes = [Echo(destination=HERE + number) for number in range(100)]
    too_large = Echo(destination=HERE, size=65535)
    wrong_source = Echo(destination=HERE, source=PEER)
    here = [Echo(destination=HERE_V6, source=source, size=1500) for source in (None, HERE_V6)]
    wrong_source_v6 = Echo(destination=HERE_V6, source=IPv6Address("2001:db8::7"))

    results = asyncio.run(
        send_echoes([*echoes, too_large, wrong_source, *here, wrong_source_v6], deadline_s=1.0)
    )

    assert {one.state for one in results[:100]} == {"reached"}
    assert all(one.rtt_s is not None and 0 <= one.rtt_s < 1 for one in results[:100])
    assert results[100].state in ("unsent", "reached")
    assert [one.state for one in results[101:]] == ["unsent", "reached", "reached", "unsent"]


def test_an_empty_list_of_requests_returns_immediately() -> None:
    assert asyncio.run(send_echoes([], deadline_s=60.0)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need root")
def test_a_busy_process_loses_no_reply() -> None:
    """The process cannot run its event loop for longer than all deadlines. A request that is not sent yet and
    a reply that is not read yet are not lost.
    """
    here = [Echo(destination=HERE)]

    async def while_busy(asked: Awaitable[Answers]) -> Answers:
        asking = asyncio.ensure_future(asked)
        while not asking.done():
            await asyncio.sleep(0.01)
            time.sleep(0.8)
        return await asking

    assert asyncio.run(while_busy(count_replies(here, 4, interval_s=0.03))) == [4]
    (result,) = asyncio.run(while_busy(send_echoes(here, deadline_s=0.3)))
    assert result.state == "reached"
