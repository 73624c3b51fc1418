"""After any history, the host soon equals the plan of its inputs, and the engine has done nothing else."""

import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import Phase, given, settings

from engine_law import defects
from engine_law.law import LOOKS, OTHERS_RIGHT, REFUSALS, REPAIRS, RIGHT, BrokenLaw, check
from engine_law.steps import (
    DUAL,
    AddStray,
    Announce,
    Answer,
    Configure,
    CreateUnderlay,
    Damage,
    GoOn,
    History,
    ListLeases,
    LoseWatch,
    MoveUnderlay,
    OwnLease,
    Refuse,
    RemoveUnderlay,
    RenameLink,
    SetPeer,
    Silence,
    SpoilPeer,
    Stall,
    Step,
    histories,
)

EXAMPLES = 400
LONG_EXAMPLES = 20_000


class Counted:
    """The check of the law, with a count of the histories."""

    def __init__(self) -> None:
        self.histories = 0
        self._began = time.monotonic()

    def check(self, history: History) -> None:
        """Check a history."""
        self.histories += 1
        check(history)

    def __str__(self) -> str:
        return f"{self.histories} histories in {time.monotonic() - self._began:.0f} s"


@pytest.fixture
def counted(long_run: bool, capsys: pytest.CaptureFixture[str]) -> Iterator[Counted]:
    """Give a check that prints its count at the end of the long form."""
    counted = Counted()
    yield counted
    if long_run:
        with capsys.disabled():
            print(f"\n  {counted}", end="", flush=True)


@pytest.mark.timeout(4 * 3600)  # the --long form takes twenty minutes of processor time
def test_the_law(long_run: bool, counted: Counted) -> None:
    """The kernel equals the plan within a bounded time, a repair follows damage, scans are few."""
    examples = LONG_EXAMPLES if long_run else EXAMPLES
    settings(max_examples=examples)(given(histories)(counted.check))()


def lived(*steps: Step, config: int = 0, silent: int | None = None) -> History:
    """A history of these steps, 1 ms apart."""
    return History(steps=tuple((step, 0.001) for step in steps), config=config, silent=silent)


def test_a_peer_that_leaves_before_it_was_added_is_removed_at_once() -> None:
    """A scan was in progress when the peer joined, and its batch when the peer left."""
    steps = ((Stall(LINKS), None), (SetPeer(0, 0), 0.001), (SetPeer(0, None), None))
    check(History(steps=steps, is_announced=False))


def test_an_address_whose_answer_was_lost_keeps_its_neighbours() -> None:
    """The address is added again after a peer was added."""
    lost = Refuse(part=LINKS, nth=1, is_permanent=False, takes_effect=True)
    check(History(steps=((lost, 0.001), (SetPeer(0, 0), None)), is_announced=False))


@pytest.mark.timeout(60)
def test_a_refused_replacement_of_a_link_is_tried_again_after_a_pause() -> None:
    """The objects that the kernel would drop with the link are restored each time, and must not shorten the
    pause.
    """
    steps = (
        (Configure(config=3), 0.3),
        (Refuse(part=0, nth=18, is_permanent=False, takes_effect=False), 11.0),
        (Damage(nth=18, how=6, is_announced=True), None),
        (SpoilPeer(slot=1), 0.001),
    )
    check(History(steps=steps, config=1, change=SetPeer(0, None), damage=RenameLink(nth=2)))


def test_each_outdated_scan_counts_as_a_pass() -> None:
    steps = (
        (SpoilPeer(slot=1), 6.0),
        (Silence(part=3), 0.03),
        (AddStray(which=0, is_announced=True), 0.001),
        (OwnLease(number=1), 0.3),
        (OwnLease(number=0), None),
        (Answer(part=3), 0.03),
        (SetPeer(slot=1, variant=None), 0.03),
        (Silence(part=4), 0.06),
        (SetPeer(slot=2, variant=None), 0.001),
        (AddStray(which=0, is_announced=False), 0.001),
    )
    check(History(steps=steps, config=1, is_announced=False))


def test_changes_of_a_target_that_was_never_read_cause_no_scans_of_other_targets() -> None:
    """Peers come and go while the target of links is silent."""
    peer, gone = SetPeer(0, 0), SetPeer(0, None)
    steps = ((Silence(LINKS), None), (peer, None), (RemoveUnderlay(), 0.3), (gone, 0.001), (peer, None)) + (
        (RemoveUnderlay(), 0.001),
        (gone, None),
    ) * 2
    check(History(steps=steps, is_announced=False, change=gone, damage=Damage(0, 0)))


HOST_GW = 1
LINKS, FORWARDER = 0, 1  # targets

DEFECTS = {
    "changes behind an obstacle are lost": (
        defects.forget_changes_behind_an_obstacle,
        RIGHT,
        lived(MoveUnderlay(1), SetPeer(0, 1), MoveUnderlay(0), config=HOST_GW),
    ),
    "changes of IPv6 are lost": (
        defects.forget_changes_of_ipv6,
        RIGHT,
        lived(SetPeer(0, 0), config=DUAL[0]),
    ),
    "a later change is lost": (
        defects.lose_a_later_change,
        f"{RIGHT}|{REPAIRS}",  # an audit finds the difference, and counts it as damage
        lived(SetPeer(0, 0), Stall(LINKS), SetPeer(0, 1), Announce(LINKS), SetPeer(0, 2), GoOn(LINKS)),
    ),
    "a refused object costs a scan each second": (
        defects.look_while_refused,
        LOOKS,
        History(steps=((SetPeer(0, 0), 0.001), (Refuse(LINKS, None, True), 0.001), (SetPeer(0, 1), 11.0))),
    ),
    "a lease that became unreadable is dropped": (
        defects.drop_unreadable_leases,
        RIGHT,
        lived(SetPeer(0, 0), SpoilPeer(0), LoseWatch(), ListLeases()),
    ),
    "a silent target delays the others": (
        defects.wait_for_all_targets,
        OTHERS_RIGHT,
        lived(Silence(FORWARDER), Announce(LINKS), MoveUnderlay(2), silent=FORWARDER),
    ),
    "a renamed device is in the way of its successor": (
        defects.build_before_removing,
        REFUSALS,
        History(damage=RenameLink(0)),
    ),
    "no event ends a pause": (
        defects.sleep_through_events,
        RIGHT,
        History(steps=((RemoveUnderlay(), 6.0), (CreateUnderlay(), 0.001))),
    ),
}


@pytest.mark.timeout(4 * 3600)  # the --long form takes twenty minutes of processor time
@pytest.mark.parametrize(("defect", "rule", "history"), DEFECTS.values(), ids=DEFECTS)
def test_the_law_finds_each_seeded_defect(
    monkeypatch: pytest.MonkeyPatch,
    defect: Callable[[pytest.MonkeyPatch], None],
    rule: str,
    history: History,
    long_run: bool,
    counted: Counted,
) -> None:
    """Each former defect of the engine, restored, breaks a rule. The long form searches for a history that
    shows the defect.
    """
    check(history)
    defect(monkeypatch)

    with pytest.raises(BrokenLaw, match=rule):
        check(history)

    if long_run:
        search = settings(max_examples=LONG_EXAMPLES, phases=[Phase.generate], report_multiple_bugs=False)
        with pytest.raises(BrokenLaw):
            search(given(histories)(counted.check))()
