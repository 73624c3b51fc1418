"""What every level of the tests shares: the option `--long` and the fixture that tells of it."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`, as in `scripts/test e2e --long`."""
    parser.addoption(
        "--long",
        action="store_true",
        help="run the long forms: more repeats, more hosts, more inputs",
    )


@pytest.fixture(scope="session")
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms were asked for."""
    return bool(request.config.getoption("--long"))
