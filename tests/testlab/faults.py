"""What goes wrong between hosts and to programs. Each fault heals when its block ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import Host


@contextmanager
def unplugged(lab: Lab, host: Host) -> Iterator[None]:
    """Pull the host's cable: its eth0 has no carrier."""
    lab.router.run(["ip", "link", "set", host.name, "down"])
    try:
        yield
    finally:
        lab.router.run(["ip", "link", "set", host.name, "up"])


@contextmanager
def partitioned(lab: Lab, one: Host, other: Host) -> Iterator[None]:
    """Drop every IPv4 packet between two hosts, in both directions; both still reach everybody else."""
    rules = "\n".join(
        f"ip saddr {source.address} ip daddr {destination.address} drop"
        for source, destination in ((one, other), (other, one))
    )
    with _filtered(lab.router, f"partition-{one.name}-{other.name}", rules):
        yield


@contextmanager
def lossy(lab: Lab, host: Host, *, percent: int) -> Iterator[None]:
    """Lose this share of the IPv4 packets that the host sends, at random."""
    rule = f"ip saddr {host.address} numgen random mod 100 < {percent} drop"
    with _filtered(lab.router, f"loss-{host.name}", rule):
        yield


@contextmanager
def paused(program: Program) -> Iterator[None]:
    """Let a program stand still, as on a host that is overloaded."""
    program.pause()
    try:
        yield
    finally:
        program.go_on()


@contextmanager
def _filtered(router: Sandbox, table: str, rules: str) -> Iterator[None]:
    """Filter in the router's bridges, where what is switched and what is routed both pass."""
    chain = f"chain ports {{\ntype filter hook prerouting priority -300\n{rules}\n}}"
    router.run(["nft", "-f", "-"], text=f"table bridge {table} {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        router.run(["nft", f"delete table bridge {table}"])
