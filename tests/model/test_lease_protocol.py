"""The lease protocol, checked: the real step in every interleaving within the bounds that are printed."""

import pytest

from pyflannel.testing.lease_model.explorer import explore
from pyflannel.testing.lease_model.scenarios import every_scenario
from pyflannel.testing.lease_model.story import tell

STATES, STATES_LONG = 100_000, 1_000_000


@pytest.mark.timeout(7200)
def test_no_interleaving_breaks_a_rule(long_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """No two owners, no renumbering, no write to what is not ours, all leases known, no reservation ends."""
    scenarios = every_scenario()
    least = STATES_LONG if long_run else STATES
    left, states = least, 0
    for number, scenario in enumerate(scenarios):
        # What the small ones leave is for the larger ones after them.
        most = left // (len(scenarios) - number) + 1
        found = explore(scenario, most_states=most, settle_every=50)
        with capsys.disabled():
            print(f"\n{found.text}", end="")
        assert found.counterexample is None, tell(found.counterexample)
        left -= found.states
        states += found.states
    assert states >= least
