"""Each verb of flannelctl answers in time while a real flanneld or a real etcd hangs."""

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

from pyflannel.lab.program import Program
from pyflannel.lab.waiting import together
from testlab.every_verb import CONFIG, VERBS, Answer, calls, check_answers, read_answers, running_each

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.mark.timeout(180)
def test_each_verb_answers_in_time_while_a_real_daemon_or_etcd_hangs(
    new_network: Callable[..., Any],
) -> None:
    """On one network flanneld and its forwarder hang, on the other etcd hangs."""
    networks = [new_network("docker1", "docker2", config=None) for _ in range(2)]
    (daemon, _), (_, etcd) = together([partial(running, network) for network in networks])
    forwarder = networks[0].status("docker1")["forwarder"]["pid"]
    networks[0].hosts["docker1"].run(["kill", "-STOP", str(forwarder)])
    daemon.pause()
    etcd.pause()

    without_daemon, without_store = together([partial(answers_of, network) for network in networks])

    for one in (*without_daemon.values(), *without_store.values()):
        assert one.code in (0, 1, 3), one
        assert one.code < 3 or re.search("flanneld|forwarder|etcd|the store|no WireGuard key", one.text), one
    assert "The list contains the last known hosts" in without_daemon["peers"].text
    # flanneld answers too late for its leases while 25 verbs run at the same time.
    alone = answers_of(networks[1], ["leases ls"])["leases ls"]
    assert "cannot be read: etcd does not respond" in alone.text


def running(network: Any) -> tuple[Program, Program]:
    """Start etcd and flanneld on both hosts. Return flanneld on docker1, and etcd."""
    etcd = network.etcd.start()
    network.put("config", CONFIG)
    network.put("red/config", '{"Network": "10.102.0.0/16", "Backend": {"Type": "host-gw"}}')
    daemon, _ = network.start_all()
    return daemon, etcd


def answers_of(network: Any, names: Iterable[str] = VERBS) -> dict[str, Answer]:
    """Run these verbs on docker1 at the same time, about docker2. Return the answers by verb."""
    commands = calls(network.overlay("docker2"), str(network.hosts["docker2"].lease()), names)
    environment = ["env", "--chdir=/run", f"FLANNELD_STORE={network.url}"]
    done = network.hosts["docker1"].run([*environment, *running_each(commands)])
    answers = {one.verb: one for one in read_answers(done.stdout)}
    assert len(answers) == len(commands), done.stderr
    check_answers([*answers.values()])
    return answers
