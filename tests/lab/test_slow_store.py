"""flannelctl doctor reports a store that answers slowly, by requests to a real etcd behind a slow path."""

import os
import re
import sys
from pathlib import Path

import pytest

import testlab
from testlab.doctor import problems
from testlab.documents import read_document
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

LATE_S, LATE_PORT = 0.4, 2479


def test_doctor_reports_a_slow_path_to_etcd_and_nothing_on_a_host_with_a_fast_one(overlay: Overlay) -> None:
    overlay.set_backend("vxlan")
    slow, fast = overlay.hosts["docker1"], overlay.hosts["docker2"]
    script = Path(testlab.__file__).with_name("late_etcd.py")
    port = re.search(r":(\d+)/", overlay.etcd.url)
    assert port is not None
    words = [sys.executable, script, LATE_PORT, "127.0.0.1", port[1], LATE_S, 0.0]
    late_etcd = overlay.lab.router.start_service([str(word) for word in words], name="late-etcd")
    url = overlay.etcd.url.replace(port[1], str(LATE_PORT))
    overlay.daemons[slow.name] = slow.start_flanneld(f"--store={url}")
    overlay.join(fast)
    overlay.settle(slow, fast)

    (found,) = problems(slow)

    assert (found["code"], found["severity"]) == ("store-slow", "warning")
    times = [int(time) for time in re.findall(r"(\d+) ms", found["evidence"][0])]
    assert len(times) == 3
    assert min(times) >= LATE_S * 1000
    assert problems(fast) == []
    store = read_document(["status"], slow.flannelctl("status", "--json"))["store"]
    assert store["answer_s"] >= LATE_S
    assert store["answer_age_s"] >= 0

    late_etcd.pause()  # the watch is still open, and no request is answered
    (silent,) = [one for one in problems(slow) if one["code"].startswith("store-")]
    late_etcd.go_on()
    assert silent["code"] == "store-slow"
    assert "no answer within 1.8 s" in silent["evidence"][0]


def test_doctor_names_the_rule_of_the_host_that_drops_packets_to_the_store(overlay: Overlay) -> None:
    host = overlay.hosts["docker3"]
    overlay.set_backend("vxlan")
    overlay.join(host)
    port = re.search(r":(\d+)/", overlay.etcd.url)
    assert port is not None
    rule = f"OUTPUT -p tcp --dport {port[1]} -j REJECT --reject-with tcp-reset"
    host.run(["iptables", "-A", *rule.split()])
    overlay.wait_status(host, lambda status: not status.store.is_connected, "misses the store")

    (found,) = problems(host)

    assert (found["code"], found["severity"]) == ("store-dropped", "error")
    assert any(line.startswith("consequence: the store does not respond") for line in found["evidence"])
    host.run(["sh", "-c", found["fix"]])
    overlay.wait_status(host, lambda status: status.store.is_connected, "reaches the store")
    assert problems(host) == []
