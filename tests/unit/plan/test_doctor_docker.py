"""The findings of doctor about rules of Docker."""

import pytest
from msgspec.structs import replace

from pyflannel.model.packet_filter import SavedRules
from pyflannel.plan.doctor.docker import docker_drops
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import DockerEngine, EndedContainer
from testlab.healthy_host import HEALTHY

RAW_DROP = "-d 10.100.15.2/32 ! -i docker0 -j DROP"

PORT_DROP = "-d 10.100.15.2/32 ! -i docker0 -p tcp -m tcp --dport 80 -j DROP"

FORWARD_DROP = "! -i docker0 -o docker0 -j DROP"

NFT_DROPS = """\
table ip docker-bridges {
	chain raw-PREROUTING {
		type filter hook prerouting priority raw; policy accept;
		ip daddr 10.100.15.2 iifname != "docker0" counter packets 0 bytes 0 drop comment "DROP DIRECT ACCESS"
		ip daddr 10.100.15.3 iifname != { "docker0", "eth5" } counter drop comment "DROP DIRECT ACCESS"
	}

	chain filter-forward-in__docker0 {
		iifname "docker0" counter packets 0 bytes 0 accept comment "ICC"
		counter packets 0 bytes 0 drop comment "UNPUBLISHED PORT DROP"
	}

	chain filter-forward-in__br-1 {
		counter packets 0 bytes 0 accept comment "UNPROTECTED"
	}
}
"""


def saved(table: str, chain: str, *rules: str) -> SavedRules:
    return SavedRules(program="iptables", family=4, chains={table: {chain: rules}})


@pytest.mark.parametrize(
    ("rules", "table", "count"),
    [
        (saved("raw", "PREROUTING", RAW_DROP, PORT_DROP), "", 2),
        (saved("filter", "DOCKER", FORWARD_DROP), "", 1),
        (saved("filter", "DOCKER"), NFT_DROPS, 3),
    ],
)
def test_rules_of_docker_that_drop_packets_of_other_hosts_are_found(
    rules: SavedRules, table: str, count: int
) -> None:
    seen = replace(HEALTHY, docker_drops=docker_drops([rules], table))

    (finding,) = findings(seen)

    assert (finding.code, len(finding.evidence)) == ("docker-drops", count)


@pytest.mark.parametrize(
    "rules",
    [
        saved("raw", "PREROUTING", RAW_DROP.replace("docker0", "br-other")),
        saved("filter", "DOCKER", "-d 10.100.15.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT"),
        saved("filter", "FORWARD", "-i docker0 -o docker0 -j DROP"),
    ],
)
def test_other_rules_of_docker_are_no_finding(rules: SavedRules) -> None:
    """The rule belongs, for example, to a bridge outside the subnet of the host."""
    assert findings(replace(HEALTHY, docker_drops=docker_drops([rules], ""))) == ()


@pytest.mark.parametrize(
    ("engine", "evidence", "fix"),
    [
        (DockerEngine(pid=7, is_stopped=True), "dockerd, pid 7, has the state T (stopped)", "kill -CONT 7"),
        (DockerEngine(pid=7, hangs_s=1.5), "dockerd, pid 7, answered no ping within 1.5 s", "kill -USR1 7  "),
    ],
)
def test_an_engine_that_is_stopped_or_hangs_is_named(engine: DockerEngine, evidence: str, fix: str) -> None:
    (one,) = findings(replace(HEALTHY, docker=engine))

    assert (one.code, one.severity, one.evidence) == ("docker-away", "warning", (evidence,))
    assert one.fix.startswith(fix)
    assert findings(replace(HEALTHY, docker=engine, is_first=False)) == ()


def test_an_engine_that_answers_is_no_finding() -> None:
    assert findings(replace(HEALTHY, docker=DockerEngine(pid=7))) == ()


def test_a_bridge_of_docker_that_remained_without_an_engine_is_named() -> None:
    """Ports of docker0 belong to containers of a running engine, or of another program."""
    seen = replace(HEALTHY, docker=None)

    (ended,) = findings(seen)

    assert (ended.code, ended.severity, ended.fix[:23]) == (
        "docker-away",
        "warning",
        "systemctl start docker ",
    )
    assert ended.evidence[0] == "ip address show docker0: 10.100.15.1/24"
    assert findings(replace(seen, docker=DockerEngine(pid=7))) == ()
    assert findings(replace(seen, ports={"docker0": {"veth1": 1450}})) == ()
    assert findings(replace(seen, ports={"br0": {}})) == ()


def test_containers_that_ended_with_an_error_are_named() -> None:
    """The command docker stop also kills programs, but the kernel kills only for lack of memory."""
    ended = (
        EndedContainer(name="web2", exit_code=137, ago_s=35.4),
        EndedContainer(name="web3", exit_code=1, ago_s=60.0),
    )

    one = findings(replace(HEALTHY, docker=DockerEngine(pid=7, ended=ended)))[0]

    assert (one.code, one.severity) == ("container-ended", "info")
    assert one.evidence == ("web2: exit code 137 (SIGKILL), 35 s ago", "web3: exit code 1, 60 s ago")
    assert one.fix.startswith("docker start web2  # ")
    killed = replace(ended[0], lacked_memory=True)
    (other,) = findings(replace(HEALTHY, docker=DockerEngine(pid=7, ended=(killed,))))
    assert other.severity == "warning"
    assert other.evidence == ("web2: exit code 137 (killed for lack of memory), 35 s ago",)
