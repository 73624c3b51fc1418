"""Common parts of all levels of the tests: `--long`, its fixture, and hypothesis without deadlines."""

import pytest
from hypothesis import HealthCheck, settings

# A machine may be slow, so that the duration of an example has no meaning for a law.
settings.register_profile("pyflannel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
