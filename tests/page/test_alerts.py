"""Metrics, alerts and the dashboard, checked by promtool and by a Prometheus server on a real host."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pyflannel.api.monitoring.metrics import expose
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.overlay import SOON_S, overlay_in
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


CONFIG = f"""
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [ {RULES}/flannel.rules.yml ]
scrape_configs: [ {{ job_name: flannel, static_configs: [ {{ targets: [ "127.0.0.1:8471" ] }} ] }} ]
"""

_ASK = """
import json, sys, urllib.request as r
for path in json.loads(sys.argv[1]):
    print(r.urlopen("http://127.0.0.1:9090/api/v1/" + path, timeout=30).read().decode())
"""

EMPTY_ON_A_HEALTHY_HOST = {
    "flannel_datastore_staleness_seconds",
    "flannel_forwarder_failed_packets_total",
    "flannel_stranger_packets",
    "flannel_watch_restarts_total",
    "flannel_wireguard_peers",
}
"""The metrics whose expressions have no result on a host with the backend udp whose store responds."""


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_prometheus_server_evaluates_each_panel_and_each_alert() -> None:
    """On a healthy host each panel has data, and no alert fires."""
    board = json.loads((RULES / "flannel.dashboard.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    (variable,) = (one for one in board["templating"]["list"] if one["type"] == "query")
    with overlay_in("prometheus") as overlay:
        one, other = overlay.hosts["docker1"], overlay.hosts["docker2"]
        overlay.daemons[one.name] = one.start_flanneld(f"--store={overlay.etcd.url}", "--http=127.0.0.1:8471")
        overlay.join(other)
        overlay.settle(one, other)
        one.run(["sh", "-c", "cat >/run/prometheus.yml"], text=CONFIG)
        settings = ["config.file=/run/prometheus.yml", "storage.tsdb.path=/run/prometheus"]
        one.start(["prometheus", *(f"--{setting}" for setting in settings)], name="prometheus")

        def empty() -> set[str]:
            """Return the metrics whose expressions have no result."""
            answers = ask(one, *(f"query?query={query(text)}" for text in texts))
            pairs = zip(texts, answers, strict=True)
            return {re.findall(r"\w*_\w+", text)[0] for text, answer in pairs if not answer["data"]["result"]}

        wait_until(lambda: is_up(one), what="Prometheus has read the metrics", deadline_s=SOON_S)
        wait_until(
            lambda: empty() <= EMPTY_ON_A_HEALTHY_HOST, what="each expression has a result", deadline_s=SOON_S
        )
        assert variable["query"]["query"] == "label_values(flannel_build_info, instance)"
        (instances, rules) = ask(one, "label/instance/values?match[]=flannel_build_info", "rules?type=alert")
        alerts = rules["data"]["groups"][0]["rules"]

    assert instances["data"] == ["127.0.0.1:8471"]
    assert [(alert["name"], alert.get("lastError")) for alert in alerts if alert["health"] != "ok"] == []
    assert [alert["name"] for alert in alerts if alert["state"] != "inactive"] == []


def query(expression: str) -> str:
    """Return an expression with the values that Grafana gives its variables, for a URL."""
    text = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in text
    return quote(text)


def ask(host: Host, *paths: str) -> list[Any]:
    """Return the answers of the Prometheus server on a host."""
    return [
        json.loads(line)
        for line in host.run([sys.executable, "-c", _ASK, json.dumps(paths)]).stdout.splitlines()
    ]


def is_up(host: Host) -> bool:
    """Return whether the Prometheus server has read flanneld's metrics and evaluated the rules."""
    done = host.run([sys.executable, "-c", _ASK, json.dumps(["targets", "rules?type=alert"])], check=False)
    if done.returncode:
        return False  # Prometheus does not serve yet
    targets, rules = map(json.loads, done.stdout.splitlines())
    healths = [target["health"] for target in targets["data"]["activeTargets"]]
    return healths == ["up"] and all(
        rule["health"] != "unknown" for group in rules["data"]["groups"] for rule in group["rules"]
    )
