"""Common parts of all levels of the tests: `--long`, its fixture, and the settings of hypothesis."""

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES, EXAMPLES_LONG = 50, 200
"""Examples of each law that states no other number. Each run draws other examples."""


def pytest_configure(config: pytest.Config) -> None:
    """Select the number of examples."""
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


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """True if the option `--long` was given."""
    return bool(request.config.getoption("--long"))
