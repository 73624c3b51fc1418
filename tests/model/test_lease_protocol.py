"""The model check of the lease protocol: the real step with every interleaving within printed bounds."""

import pytest
from msgspec.structs import replace

from lease_model.explorer import explore
from lease_model.scenarios import every_scenario, host, network, scenario
from lease_model.story import tell

STATES, STATES_LONG = 100_000, 1_000_000


@pytest.mark.timeout(7200)
def test_no_interleaving_breaks_a_rule(long_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The rules: one owner, no renumbering, no foreign key written, all leases known, reservations stay."""
    scenarios = every_scenario()
    least = STATES_LONG if long_run else STATES
    left, states = least, 0
    for number, where in enumerate(scenarios):
        # The larger scenarios get the states that the small scenarios before them do not need.
        most = left // (len(scenarios) - number) + 1
        found = explore(where, most_states=most, settle_every=50)
        with capsys.disabled():
            print(f"\n{found.text}", end="")
        assert found.counterexample is None, tell(found.counterexample)
        left -= found.states
        states += found.states
    assert states >= least


@pytest.mark.parametrize(
    "name",
    ["a host alone", "a reservation", "a re-installed host", "a change of the network config", "two hosts"],
)
def test_no_interleaving_without_faults_breaks_a_rule(name: str) -> None:
    """The check visits all interleavings until time has moved once, and follows each until it settles."""
    where = next(where for where in every_scenario() if where.name == name)
    calm = replace(where, world=replace(where.world, faults=0, ticks=1))

    found = explore(calm, settle_every=1)

    assert found.counterexample is None, tell(found.counterexample)
    assert found.is_complete


def test_no_interleaving_of_two_starts_with_a_change_of_the_subnet_length_breaks_a_rule() -> None:
    """The revision of the config prevents two leases that overlap. A transaction on one key does not."""
    where = scenario(
        "two subnet lengths",
        (host(1), host(2)),
        faults=("config",),
        most_faults=1,
        ticks=1,
        last=2,
        other_network=network(last=2, length=25),
        folds_subnets=False,
    )

    found = explore(where)

    assert found.counterexample is None, tell(found.counterexample)
    assert found.is_complete
