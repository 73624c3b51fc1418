"""Common parts of all levels of the tests: `--long`, its fixture, drawn parameters, and the settings of
hypothesis.
"""

import random
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES, EXAMPLES_LONG = 100, 200
"""Examples of each law that states no other number. Each run draws other examples."""


def pytest_configure(config: pytest.Config) -> None:
    """Select the number of examples, and the seed of the drawn parameters."""
    config.addinivalue_line(
        "markers", "drawn(first, more): without --long, run the first parameters and more drawn ones"
    )
    config.stash[_SEED] = config.getoption("--draw") or random.randrange(1, 1_000_000)
    settings.register_profile(
        "pyflannel",
        deadline=None,  # a machine may be slow, so that the duration of an example has no meaning for a law
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=EXAMPLES_LONG if config.getoption("--long") else EXAMPLES,
    )
    settings.load_profile("pyflannel")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`, as in `scripts/test e2e --long`."""
    parser.addoption(
        "--long",
        action="store_true",
        help="run the long forms: more repeats, more hosts, more inputs",
    )
    parser.addoption(
        "--draw", type=int, metavar="SEED", help="draw the same parameters as a run with this seed"
    )


_SEED = pytest.StashKey[int]()
_DRAWN = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--long`, leave out parameters of tests with the marker `drawn`."""
    if config.getoption("--long"):
        return
    by_test: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("drawn") is not None:
            by_test[item.nodeid.partition("[")[0]].append(item)
    omitted: set[pytest.Item] = set()
    config.stash[_DRAWN] = []
    for test, found in by_test.items():
        marker = found[0].get_closest_marker("drawn")
        assert marker is not None
        first, more = marker.kwargs["first"], marker.kwargs["more"]
        drawn = random.Random(f"{config.stash[_SEED]} {test}").sample(
            found[first:], min(more, len(found[first:]))
        )
        config.stash[_DRAWN] += [item.nodeid for item in drawn]
        omitted.update(item for item in found[first:] if item not in drawn)
    items[:] = [item for item in items if item not in omitted]
    config.hook.pytest_deselected(items=list(omitted))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the drawn parameters, and the option that draws them again."""
    if drawn := config.stash.get(_DRAWN, []):
        terminalreporter.write_line(f"drawn with --draw={config.stash[_SEED]}: {', '.join(drawn)}")


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """True if the option `--long` was given."""
    return bool(request.config.getoption("--long"))
