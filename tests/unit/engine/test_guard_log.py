"""Log lines about the senders that the guard rejected, and their frequency."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine.plan_log import LOOK_S, NAMED_SENDERS, QUIET_S, GuardLog
from pyflannel.model.forwarder import Stranger
from pyflannel.model.status import StrangerStatus
from pyflannel.plan.strangers import explain

ONE = Stranger(
    address=IPv4Address("10.9.0.66"),
    reason="stranger",
    packets=3,
    age_s=0.0,
    inner_source=IPv4Address("10.100.77.2"),
    inner_destination=IPv4Address("10.100.20.2"),
)


class FakeGuard:
    def __init__(self) -> None:
        self.seen: list[Stranger] = []

    async def strangers(self) -> Sequence[Stranger]:
        return list(self.seen)


def described(strangers: Sequence[Stranger]) -> Sequence[StrangerStatus]:
    return explain(strangers, (), None)


def numbered(number: int, packets: int = 1) -> Stranger:
    return replace(ONE, address=IPv4Address("10.10.0.0") + number, packets=packets)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def guard_log(clock: FakeClock) -> GuardLog:
    return GuardLog(FakeGuard(), clock, described)


def test_a_sender_is_logged_with_reason_packets_and_remedy(
    guard_log: GuardLog, caplog: pytest.LogCaptureFixture
) -> None:
    guard_log.log_senders([ONE])

    assert caplog.messages == [
        "Rejected tunnel packets from=10.9.0.66 reason=stranger packets=3: it holds no lease, and no host"
        " has the inner source 10.100.77.2. If the sender is a host of the network, start flanneld there; "
        "if not, stop its program (ip neigh show to 10.9.0.66). This host drops its packets."
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_a_sender_is_logged_immediately_and_then_once_a_minute_with_the_count(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    per_minute = int(QUIET_S / LOOK_S)

    async def live() -> list[int]:
        guard = FakeGuard()
        told: list[int] = []
        running = asyncio.create_task(GuardLog(guard, clock, described).run())
        guard.seen = [ONE]
        await clock.settle()
        for packets in range(4, 4 + 2 * per_minute):
            guard.seen = [replace(ONE, packets=packets)]
            await clock.advance(LOOK_S)
            told.append(len(caplog.records))
        running.cancel()
        return told

    told = asyncio.run(live())

    assert told == [1] * (per_minute - 1) + [2] * per_minute + [3]
    counts = [message.split(" packets=")[1].split(":")[0] for message in caplog.messages]
    assert counts == ["3", str(per_minute), str(per_minute)]


def test_packets_before_a_pause_are_logged_after_the_minute(
    guard_log: GuardLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        guard_log.log_senders([ONE])
        await clock.advance(LOOK_S)
        guard_log.log_senders([replace(ONE, packets=10)])
        await clock.advance(QUIET_S)
        guard_log.log_senders([replace(ONE, packets=10)])
        await clock.advance(QUIET_S)
        guard_log.log_senders([replace(ONE, packets=10)])

    asyncio.run(live())

    assert [message.split(":")[0] for message in caplog.messages] == [
        "Rejected tunnel packets from=10.9.0.66 reason=stranger packets=3",
        "Rejected tunnel packets from=10.9.0.66 reason=stranger packets=7",
    ]


def test_a_restarted_guard_counts_from_zero(
    guard_log: GuardLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        guard_log.log_senders([replace(ONE, packets=100)])
        await clock.advance(QUIET_S)
        guard_log.log_senders([replace(ONE, packets=2)])

    asyncio.run(live())

    assert "packets=2:" in caplog.messages[1]


def test_each_reason_has_its_own_line(guard_log: GuardLog, caplog: pytest.LogCaptureFixture) -> None:
    guard_log.log_senders([ONE, replace(ONE, reason="impostor", packets=5)])

    assert [message.split()[4] for message in caplog.messages] == ["reason=impostor", "reason=stranger"]


def test_many_senders_cause_few_lines(
    guard_log: GuardLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Many senders appear, for example, if each packet of a flood has another forged address."""

    async def flood() -> None:
        for look in range(int(QUIET_S / LOOK_S)):
            guard_log.log_senders([numbered(number) for number in range(1000 * look, 1000 * (look + 1))])
            await clock.advance(LOOK_S)

    asyncio.run(flood())

    assert len(caplog.messages) == NAMED_SENDERS + 1
    assert caplog.messages[-1] == (
        f"Rejected tunnel packets of {1000 - NAMED_SENDERS} more senders packets={1000 - NAMED_SENDERS},"
        " some listed by flannelctl status"
    )


def test_senders_that_were_counted_together_are_named_when_fewer_are_active(
    guard_log: GuardLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        strangers = [numbered(number) for number in range(NAMED_SENDERS + 1)]
        guard_log.log_senders(strangers)
        await clock.advance(QUIET_S)
        caplog.clear()
        guard_log.log_senders([replace(one, packets=1 + (one == strangers[-1])) for one in strangers])

    asyncio.run(live())

    named = f"Rejected tunnel packets from=10.10.0.{NAMED_SENDERS} reason=stranger packets=1"
    assert [message.split(":")[0] for message in caplog.messages] == [named]


def test_a_sender_from_before_the_start_is_logged_only_after_new_packets(
    guard_log: GuardLog, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Programs, forwarder and their counters outlive a daemon. The previous daemon logged these packets."""
    guard_log.log_senders([replace(ONE, packets=1000, age_s=QUIET_S + 1)])
    assert caplog.messages == []

    guard_log.log_senders([replace(ONE, packets=1002, age_s=1)])
    assert [record.args[2] for record in caplog.records] == [2]
