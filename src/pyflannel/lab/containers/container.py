"""Containers: what the overlay carries packets for."""

from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from pyflannel.lab.sandboxes.program import Program
from pyflannel.lab.sandboxes.sandbox import RUN_TIMEOUT_S


class Container(Protocol):
    """A container on a host, whoever made it."""

    @property
    def name(self) -> str:
        """What it is called on its host."""

    @property
    def address(self) -> IPv4Address:
        """Its address on the overlay."""

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container, as its user would."""

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run one of the machine's commands in the network of the container."""

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start one of the machine's programs in the network of the container."""

    def remove(self) -> None:
        """End it and forget it."""
