"""A daemon under random damage keeps its memory, its descriptors and its threads."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import pytest

from testlab.faults import paused
from testlab.overlay import longest_silence_s
from testlab.stalls import StallWitness
from testlab.usage import usage_of

MINUTE_S, HOUR_S = 60.0, 3600.0
MOST_GROWTH_MIB = 1.0
MOST_PEERS = 30
LONGEST_SILENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment, at rest after damage."""

    resident_mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Sample":
        return cls(
            resident_mib=usage_of(pid).resident_mib,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=len(os.listdir(f"/proc/{pid}/task")),
        )


@pytest.mark.timeout(2 * HOUR_S)
@pytest.mark.fault("random damage for a minute")
def test_random_damage(network, long_run: bool, figures: Callable[[str], None]) -> None:
    """After each damage, the victim becomes ready. The second half of the test uses no more memory,
    descriptors and threads than the first half.
    """
    seed = random.randrange(1 << 32)
    draw = random.Random(seed)
    damages = damages_of(network)
    samples: list[Sample] = []
    dealt = 0
    suspended_s, wall_s = clocks()
    with (
        StallWitness() as witness,
        network.pinged("random damage for a minute", is_limited=not long_run) as pings,
    ):
        end = time.monotonic() + (HOUR_S if long_run else MINUTE_S)
        while time.monotonic() < end:
            draw.choice(damages)()
            dealt += 1
            network.wait_well()
            pings.wait_answered()
            samples.append(Sample.of(network.daemon.pid))
    silence_s = longest_silence_s(pings.answers(), witness.stalled_s)
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    for line in curves(samples):
        figures(f"{network.path}: {line}")
    growth = median(one.resident_mib for one in late) - median(one.resident_mib for one in early)
    figures(
        f"{network.path}: seed {seed}, {dealt} times damaged, {late[-1].resident_mib:.1f} MiB"
        f" ({growth:+.2f} since the second quarter),"
        f" {late[-1].descriptors} descriptors, {late[-1].threads} threads,"
        f" longest silence {silence_s:.2f} s"
    )

    now = clocks()
    figures(
        f"{network.path}: longest time between two answers {pings.longest_gap_s():.2f} s,"
        f" machine stalled for up to {witness.longest_s:.2f} s, suspended for {now[0] - suspended_s:.2f} s,"
        f" clock changed by {now[1] - wall_s:+.2f} s"
    )

    assert growth < MOST_GROWTH_MIB
    assert min(one.descriptors for one in late) <= min(one.descriptors for one in early)
    assert max(one.threads for one in late) <= max(one.threads for one in early)
    assert silence_s < LONGEST_SILENCE_S


def clocks() -> tuple[float, float]:
    """Return the seconds for which the kernel was suspended, and the wall-clock time of its start."""
    running_s = time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - running_s, time.time() - running_s


def curves(samples: Sequence[Sample]) -> list[str]:
    """Return a line for each of memory, descriptors and threads: the medians of five parts of the time."""
    fifths = [samples[len(samples) * part // 5 : len(samples) * (part + 1) // 5] for part in range(5)]
    columns = (("MiB", "resident_mib"), ("descriptors", "descriptors"), ("threads", "threads"))
    return [
        f"{unit}: "
        + ", ".join(f"{median(getattr(one, field) for one in fifth):.2f}" for fifth in fifths)
        + f" (most {max(getattr(one, field) for one in samples):.2f})"
        for unit, field in columns
    ]


def damages_of(network) -> list[Callable[[], object]]:
    """Return the damages that fit the data path."""
    victim, device = network.victim, {"vxlan": "flannel.1", "udp": "flannel0"}[network.kind]

    def run(command: str) -> Callable[[], object]:
        return lambda: victim.run(["sh", "-c", command])

    def peers_come_and_go() -> None:
        if network.peers < MOST_PEERS:
            network.add_peers(3)
        else:
            network.remove_peers()

    def etcd_hangs() -> None:
        with paused(network.overlay.etcd_program):
            time.sleep(1)  # the duration of the fault

    def other_daemon_is_killed() -> None:
        network.overlay.daemons[network.other.name].kill()
        network.join(network.other)

    damages: list[Callable[[], object]] = [
        run(f"ip link delete {device}"),
        run(f"ip link set {device} down"),
        run(f"ip link set {device} mtu 1300"),
        run(f"ip address flush dev {device}"),
        run(f"ip route flush dev {device}"),
        run("nft flush ruleset"),
        run("rm -f /run/flannel/subnet.env"),
        run("seq -f 'address add 172.31.0.%g/32 dev lo' 200 | ip -batch -; ip address flush dev lo"),
        run("flannelctl status >/dev/null; flannelctl peers >/dev/null"),
        network.damage,
        peers_come_and_go,
        etcd_hangs,
        other_daemon_is_killed,
    ]
    if network.kind == "udp":
        damages.append(lambda: os.kill(network.forwarder_pid(), signal.SIGKILL))
    return damages
