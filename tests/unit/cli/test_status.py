"""flannelctl status lists the reasons why a host is not ready, limits long lists, waits and repeats."""

import json
import re
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from pyflannel.cli import status as status_verb
from pyflannel.cli.status import facts, health
from pyflannel.model.status import (
    DockerNetworkStatus,
    DockerPortStatus,
    DockerStatus,
    FastPathStatus,
    FirewallStatus,
    LeaseSigningStatus,
    Notice,
    ReachStatus,
    ReconcileStatus,
    RefusedLease,
    RefusedPeer,
    Status,
    StoreStatus,
)
from pyflannel.programs.flannelctl import run
from testlab.control_socket import serving
from testlab.shown_network import ShownHosts

QUIET = ReconcileStatus(
    passes=7, failures=0, duration_s=0.01, repairs=6, repairs_by_kind={"route": 6}, last_repair=None
)


def told(reconcile: ReconcileStatus, name: str) -> list[str]:
    return [text for each, text in facts(Status(version="1", reconcile=reconcile)) if each == name]


def test_a_delayed_repair_is_listed() -> None:
    fought = replace(QUIET, held=("route 10.100.0.0/16: missing",))

    assert told(fought, "held back") == ["route 10.100.0.0/16: missing"]
    assert told(QUIET, "held back") == []


def test_the_host_name_is_a_fact_and_the_identity_only_in_the_wide_status() -> None:
    found = Status(version="1", owner="5d0f", host_name="docker1")

    assert [name for name, _ in facts(found)] == ["flanneld", "host", "peers"]
    assert dict(facts(found, is_wide=True))["owner"] == "5d0f"
    assert "host" not in dict(facts(replace(found, host_name=None)))


def test_many_refusals_are_partly_counted() -> None:
    many = replace(QUIET, refused=tuple(f"peer {number}" for number in range(1000)))

    assert told(many, "refused")[-2:] == ["peer 7", "992 more: see flannelctl status --json"]


def test_a_past_error_of_the_store_is_shown_with_its_age() -> None:
    store = StoreStatus(url="etcd://a", is_connected=True, since_s=60.0, last_error="no route")

    def line(store: StoreStatus) -> str:
        return dict(facts(Status(version="1", store=store)))["store"]

    over = replace(store, last_error_age_s=61.0)
    assert line(over) == "etcd://a, connected for 1 min, last error 1 min 1 s ago: no route"
    assert (
        line(store) == "etcd://a, connected for 1 min, last error: no route"
    )  # the status of an older daemon
    assert line(replace(store, last_error=None)) == "etcd://a, connected for 1 min"


def test_the_latest_answer_of_the_store_is_shown_with_its_age() -> None:
    store = StoreStatus(url="etcd://a", is_connected=True, answer_s=0.0021, answer_age_s=12.4)

    line = dict(facts(Status(version="1", store=store)))["store"]

    assert line == "etcd://a, connected, last answer 12 s ago, a request took 2 ms"


FIREWALL = FirewallStatus(
    engine="iptables", objects=("iptables chain FLANNEL-FWD",), is_in_place=True, drops=()
)


@pytest.mark.parametrize(
    ("firewall", "text", "is_green"),
    [
        (FIREWALL, "1 chain or table in place, no rule drops packets of the overlay", True),
        (replace(FIREWALL, objects=()), "no rules planned, no rule drops packets of the overlay", True),
        (replace(FIREWALL, drops=None), "1 chain or table in place, rules of other programs unknown", True),
        (replace(FIREWALL, drops=("INPUT drops it",)), "1 chain or table in place", False),
        (
            replace(FIREWALL, is_in_place=False, missing=("chain: missing; refused: x", "y")),
            "not in place: chain: missing; refused: x and 1 more, no rule drops packets of the overlay",
            False,
        ),
        (
            replace(FIREWALL, is_in_place=False),
            "rules not in place yet, no rule drops packets of the overlay",
            False,
        ),
        (
            replace(FIREWALL, is_in_place=None, drops=None),
            "1 chain or table found, not checked because flanneld does not respond, rules of other programs "
            "unknown",
            False,
        ),
    ],
)
def test_the_firewall_is_green_if_its_rules_are_in_place_and_nothing_drops_packets(
    firewall: FirewallStatus, text: str, is_green: bool
) -> None:
    found = Status(version="1", is_ready=True, firewall=firewall)

    assert dict(facts(found))["firewall"] == f"iptables, {text}"
    assert health(found)["firewall"] is is_green


def test_a_rule_that_drops_packets_makes_the_first_line_say_no() -> None:
    firewall = replace(FIREWALL, drops=("iptables INPUT drops tunnel packets of peers",))
    found = Status(version="1", is_ready=True, firewall=firewall)

    lines = list(facts(found))

    assert lines[0] == ("flanneld", "1, ready, but this host drops packets: run flannelctl doctor")
    assert ("dropped by", "iptables INPUT drops tunnel packets of peers") in lines
    assert (health(found)["flanneld"], health(found)["dropped by"]) == (False, False)
    silent = replace(found, reach=ReachStatus(probed=2, silent=(IPv4Network("10.100.9.0/24"),)))
    assert next(facts(silent)) == (
        "flanneld",
        "1, ready, but 1 of 2 probed peers do not answer: run flannelctl doctor",
    )


def test_of_many_warnings_and_refused_peers_the_rest_is_counted() -> None:
    """A writer of the store can cause a warning for each lease. Thousands of warnings are read once."""
    names = [CountedText(f"lease {number} is refused") for number in range(2000)]
    peers = tuple(
        RefusedPeer(
            subnet=IPv4Network((number << 8, 24)), public_ip=IPv4Address("192.0.2.1"), reason=names[number]
        )
        for number in range(1000, 2000)
    )
    found = Status(version="1", warnings=tuple(names[:1000]), refused_peers=peers)

    lines = list(facts(found))

    assert [text for name, text in lines if name == "warning"][-2:] == [
        "lease 7 is refused",
        "992 more: see flannelctl status --json",
    ]
    assert [text for name, text in lines if name == "refused peer"][-1] == "992 more: see flannelctl peers"
    assert CountedText.compared < 5000


def test_refused_leases_are_listed_and_many_are_counted() -> None:
    one = RefusedLease(
        subnet=IPv4Network("10.100.9.0/24"),
        public_ip=IPv4Address("10.9.0.66"),
        fault="invalid",
        cause="its signature does not match its key",
        hint="Restrict the writers.",
        age_s=5.0,
    )
    again = replace(one, times=3, is_in_store=False)
    signing = LeaseSigningStatus(mode="require", allowed=3, refused=(one, again, *[one] * 8))

    lines = list(facts(Status(version="1", lease_signing=signing)))

    assert ("signatures", "require, 3 allowed keys") in lines
    refused = [text for name, text in lines if name == "refused lease"]
    cause = "its signature does not match its key"
    assert refused[0] == f"10.100.9.0/24 at 10.9.0.66, once, 5 s ago: {cause}"
    assert refused[1] == f"10.100.9.0/24 at 10.9.0.66, 3 times, 5 s ago, not in the store any more: {cause}"
    assert refused[8:] == ["2 more: see flannelctl status --json"]
    trouble = replace(
        signing, counter=7, trouble=Notice("the file contains no key", "Write one."), is_own_key_allowed=False
    )
    shown = list(facts(Status(version="1", lease_signing=trouble)))
    assert ("signatures", "require, 3 allowed keys, list 7, without the key of this host") in shown
    assert ("warning", "keeps the last valid allow-list: the file contains no key. Write one.") in shown
    first_key = Status(version="1", lease_signing=LeaseSigningStatus(mode="warn"))
    assert dict(facts(first_key))["signatures"] == "warn, the first key of each owner"


class CountedText(str):
    """A text that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedText.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_mode_flow_is_shown_with_its_duration_and_the_reasons_against_mode_flow() -> None:
    path = FastPathStatus(mode="flow", uncached=("a rule of ip filter FORWARD decides by limit",))
    shown = dict(facts(Status(version="1", fast_path=path)))

    assert shown["fast path"] == "flow"
    assert "skips the firewall for at most 1 s" in shown["bypass"]
    assert shown["not cached"] == path.uncached[0]


def test_networks_and_published_ports_of_docker_are_listed() -> None:
    network = DockerNetworkStatus(
        subnet=IPv4Network("10.100.3.64/27"), bridge="flbr-4444444444", used=3, usable=30
    )
    port = DockerPortStatus(
        protocol="tcp", host_address=None, host_port=8080, address=IPv4Address("10.100.3.66"), port=80
    )
    found = Status(version="1", docker=DockerStatus(networks=(network,) * 10, ports=(port,)))

    lines = [(name, text) for name, text in facts(found) if name.startswith("docker")]

    assert lines[0] == ("docker network", "10.100.3.64/27 on flbr-4444444444, 3 of 30 addresses in use")
    assert lines[8:] == [
        ("docker network", "2 more: see flannelctl status --json"),
        ("docker port", "0.0.0.0:8080/tcp to 10.100.3.66:80"),
    ]
    assert ("docker", "no network yet") in facts(replace(found, docker=DockerStatus()))


def places(tmp_path: Path) -> list[str]:
    return [f"--{name}={tmp_path}" for name in ("run-dir", "state-dir", "subnet-file")]


def test_wait_returns_when_flanneld_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_verb, "_WATCH_S", 0.02)
    asked: list[bool] = []

    async def status() -> Status:
        asked.append(len(asked) > 2)
        return Status(version="1", is_ready=asked[-1])

    with serving(tmp_path / "flanneld.sock", SimpleNamespace(status=status)):
        assert run(["status", "--wait", "20", *places(tmp_path)]) == 0

    assert capfd.readouterr().out.startswith("flanneld  1, ready")
    assert asked == [False, False, False, True, True]


def test_wait_ends_without_flanneld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(status_verb, "_WATCH_S", 0.02)

    assert run(["status", "--wait", "0.05", *places(tmp_path)]) == 3

    assert "does not respond" in capfd.readouterr().out


def test_watch_prints_a_document_in_each_line_also_while_flanneld_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def status() -> Status:
        return Status(version="1", is_ready=True)

    served = serving(tmp_path / "flanneld.sock", SimpleNamespace(status=status))
    steps = iter([lambda: served.__exit__(None, None, None), interrupt])
    monkeypatch.setattr(status_verb.time, "sleep", lambda _: next(steps)())
    served.__enter__()

    assert run(["status", "--watch", "--json", *places(tmp_path)]) == 130

    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["is_live"] for line in lines[:2]] == [True, False]


class TestOnATerminal:
    """The texts are the same as in a pipe; the names have colours."""

    @pytest.fixture
    def hosts(self, tmp_path: Path) -> Iterator[ShownHosts]:
        hosts = ShownHosts(1)
        # A refused peer is not probed.
        hosts.refused[hosts.peers[0].subnet] = "it is not on the link of this host"
        with serving(tmp_path / "flanneld.sock", hosts):
            yield hosts

    def shown(self, tmp_path: Path, **environment: str) -> tuple[str, str]:
        """Return the screen with 60 columns, and all that flannelctl wrote."""
        from testlab.terminal import Terminal

        command = [sys.executable, "-m", "pyflannel.programs.flannelctl", "status", *places(tmp_path)]
        with Terminal(command, columns=60, lines=40, environment=environment) as terminal:
            terminal.wait(lambda text: "repairs" in text)
            return terminal.text, terminal.received

    def test_parts_without_a_fault_are_green_and_parts_with_a_fault_are_red(
        self, tmp_path: Path, hosts: ShownHosts
    ) -> None:
        text, written = self.shown(tmp_path)

        assert re.findall(r"\x1b\[32m\x1b\[1m(\w+)", written)[:4] == ["flanneld", "network", "lease", "store"]
        assert re.findall(r"\x1b\[31m\x1b\[1m([a-z ]+\w)", written) == ["peers", "refused peer"]
        assert "not on the link of this host" in " ".join(text.split())

    def test_the_variable_no_color_disables_colors(self, tmp_path: Path, hosts: ShownHosts) -> None:
        _, written = self.shown(tmp_path, NO_COLOR="1")

        assert "\x1b[3" not in written


def interrupt() -> None:
    raise KeyboardInterrupt
