"""Faults of Docker: rules that drop packets of other hosts to its containers, and an engine that hangs."""

import re
from collections.abc import Iterable, Iterator
from signal import Signals

from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import SavedRules
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import DOCKER0, EndedContainer, Observed, some

_DROPS_ALL = " -j DROP"
"""The end of an iptables rule that drops the packets."""

_RAW_DROP = re.compile(r"-d \S+ ! -i (?P<bridge>\S+) ")
_FORWARD_DROP = re.compile(r"! -i (?P<bridge>\S+) -o (?P=bridge) -j")
_NFT_CHAIN = re.compile(r"chain filter-forward-in__(?P<bridge>\S+) \{")
_NFT_RAW_DROP = 'drop comment "DROP DIRECT ACCESS"'
_NFT_LINKS = re.compile(r'iifname != (?P<links>"[^"]+"|\{[^{}]*\}) ')
"""The accepted links are the bridge and the interfaces that its option trusted_host_interfaces names."""

_NFT_FORWARD_DROP = 'drop comment "UNPUBLISHED PORT DROP"'


def docker_drops(saved: Iterable[SavedRules], table: str, family: Family = 4) -> dict[str, tuple[str, ...]]:
    """Return the rules by which Docker drops packets to addresses of its containers, by bridge.

    Docker 28 and newer write them in iptables or, if so configured, in nftables.

    Args:
        saved: the rules of iptables.
        table: Docker's table of nftables for the family, as printed by `nft list table ip docker-bridges`; ""
            if the table does not exist.
        family: the family of the packets.

    Source: moby 29, daemon/libnetwork/drivers/bridge/internal.
    """
    found: dict[str, list[str]] = {}
    for rules in saved:
        for place, chain, pattern in (("raw", "PREROUTING", _RAW_DROP), ("filter", "DOCKER", _FORWARD_DROP)):
            for rule in rules.chains.get(place, {}).get(chain, ()) if rules.family == family else ():
                if rule.endswith(_DROPS_ALL) and (drop := pattern.search(rule)) is not None:
                    text = f"{rules.program} -t {place} -A {chain} {rule}"
                    found.setdefault(drop["bridge"], []).append(text)
    bridge = ""
    for line in map(str.strip, table.split("\n")):
        if (header := _NFT_CHAIN.match(line)) is not None:
            bridge = header["bridge"]
        elif line == "}":
            bridge = ""
        elif _NFT_RAW_DROP in line and (drop := _NFT_LINKS.search(line)) is not None:
            for name in dict.fromkeys(re.findall(r'"([^"]+)"', drop["links"])):
                found.setdefault(name, []).append(line)
        elif bridge and _NFT_FORWARD_DROP in line:
            found.setdefault(bridge, []).append(line)
    return {name: tuple(lines) for name, lines in found.items()}


def _docker_drops(seen: Observed) -> Iterator[Finding]:
    for bridge in sorted(seen.docker_drops.keys() & seen.ports.keys()):
        yield Finding(
            code="docker-drops",
            severity="error",
            cause=f"Docker drops packets of other hosts to containers at {bridge}",
            evidence=some(list(seen.docker_drops[bridge])),
            fix="docker network create -d flannel --ipam-driver flannel NAME  # needs --docker-plugin."
            " Or use a bridge network with"
            f" -o com.docker.network.bridge.gateway_mode_ipv{seen.family}=nat-unprotected",
        )


def _engine(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the Docker engine is stopped or hangs. Running containers keep their network."""
    engine = seen.docker
    if engine is None or not seen.is_first or not (engine.is_stopped or engine.hangs_s is not None):
        return
    yield Finding(
        code="docker-away",
        severity="warning",
        cause="the Docker engine is stopped, so containers resolve no names, and none starts or ends"
        if engine.is_stopped
        else "the Docker engine hangs, so containers may resolve no names, and none starts or ends",
        evidence=(
            f"dockerd, pid {engine.pid}, has the state T (stopped)"
            if engine.is_stopped
            else f"dockerd, pid {engine.pid}, answered no ping within {engine.hangs_s} s",
        ),
        fix=f"kill -CONT {engine.pid}"
        if engine.is_stopped
        else f"kill -USR1 {engine.pid}  # dockerd then logs where it waits; after that, restart Docker",
    )


def _ended(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the Docker engine ended.

    The engine removes the ports of its containers, and docker0 remains with its address.
    """
    docker0, own = seen.interfaces.named(DOCKER0), seen.membership.subnet
    if seen.docker is not None or not seen.is_first:
        return
    if docker0 is None or own is None or seen.ports.get(DOCKER0) != {}:
        return
    held = [str(one.address) for one in docker0.addresses if one.address.ip in own]
    if held:
        yield Finding(
            code="docker-away",
            severity="warning",
            cause="no Docker engine runs, and docker0 has no containers",
            evidence=(f"ip address show {DOCKER0}: {held[0]}", "no process of this host is dockerd"),
            fix="systemctl start docker  # or start dockerd with the options of mk-docker-opts -c; then run"
            " docker start NAME for each container without a restart policy",
        )


def _ended_containers(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers ended with an error. `docker stop` also kills programs that ignore
    SIGTERM, so the end may be intended.
    """
    ended = seen.docker.ended if seen.docker is not None and seen.is_first else ()
    if ended:
        yield Finding(
            code="container-ended",
            severity="warning" if any(one.lacked_memory for one in ended) else "info",
            cause="containers of Docker on this host ended with an error during the last hour",
            evidence=some([_shown_end(one) for one in ended]),
            fix=f"docker start {ended[0].name}  # if it must run; docker logs {ended[0].name} shows its last"
            " messages",
        )


def _shown_end(one: EndedContainer) -> str:
    names = {_SIGNALLED + signal.value: signal.name for signal in Signals}
    reason = "killed for lack of memory" if one.lacked_memory else names.get(one.exit_code, "")
    return f"{one.name}: exit code {one.exit_code}{f' ({reason})' if reason else ''}, {one.ago_s:.0f} s ago"


_SIGNALLED = 128
"""The exit code of a container that a signal ended, minus the number of the signal."""

CHECKS = (_docker_drops, _engine, _ended, _ended_containers)
