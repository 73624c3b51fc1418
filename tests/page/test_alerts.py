"""Metrics and alerts, checked by the promtool of Prometheus."""

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from pyflannel.api.monitoring.metrics import expose
from testlab.shown_network import ShownHosts

RULES = Path(__file__).parents[2] / "deploy/prometheus"

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*words: str, given: bytes = b"") -> str:
    """Return the output of promtool, which must find nothing."""
    done = subprocess.run(
        ["promtool", *words],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=RULES,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("names", [[""], ["blue", "red"]])
def test_the_metrics_follow_the_conventions_of_prometheus(names: list[str]) -> None:
    status = asyncio.run(ShownHosts(3).status())

    assert promtool("check", "metrics", given=expose(dict.fromkeys(names, status), 1_700_000_000.0)) == ""


def test_the_alerts_fire_when_they_must() -> None:
    assert "SUCCESS" in promtool("check", "rules", "flannel.rules.yml")
    assert "SUCCESS" in promtool("test", "rules", "flannel.rules.test.yml")
