"""Faults between hosts and of programs. Each fault ends with its block."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import Host


@contextmanager
def unplugged(lab: Lab, host: Host) -> Iterator[None]:
    """Unplug the host's cable: its eth0 has no carrier."""
    lab.router.run(["ip", "link", "set", host.name, "down"])
    try:
        yield
    finally:
        lab.router.run(["ip", "link", "set", host.name, "up"])


@contextmanager
def partitioned(lab: Lab, one: Host, other: Host) -> Iterator[None]:
    """Drop every IPv4 packet between two hosts, in both directions. Both hosts still reach all other
    hosts.
    """
    rules = "\n".join(
        f"ip saddr {source.address} ip daddr {destination.address} drop"
        for source, destination in ((one, other), (other, one))
    )
    with _filtered(lab.router, f"partition-{one.name}-{other.name}", rules):
        yield


@contextmanager
def lossy(lab: Lab, host: Host, *, percent: int) -> Iterator[None]:
    """Drop this share of the IPv4 packets that the host sends, at random."""
    rule = f"ip saddr {host.address} numgen random mod 100 < {percent} drop"
    with _filtered(lab.router, f"loss-{host.name}", rule):
        yield


@contextmanager
def paused(program: Program) -> Iterator[None]:
    """Stop a program, for example to imitate an overloaded host."""
    program.pause()
    try:
        yield
    finally:
        program.go_on()


@contextmanager
def _filtered(router: Sandbox, table: str, rules: str) -> Iterator[None]:
    """Filter in the router's bridges, which both switched and routed packets pass."""
    chain = f"chain ports {{\ntype filter hook prerouting priority -300\n{rules}\n}}"
    router.run(["nft", "-f", "-"], text=f"table bridge {table} {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        router.run(["nft", f"delete table bridge {table}"])
