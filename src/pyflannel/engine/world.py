"""What the engine needs from outside."""

from collections.abc import Callable
from dataclasses import dataclass

from pyflannel.model.lease import Identity
from pyflannel.ports.bridges import BridgeSource
from pyflannel.ports.clock import Clock
from pyflannel.ports.interfaces import InterfaceSource
from pyflannel.ports.kernel_path import KernelPath
from pyflannel.ports.memory import Memory
from pyflannel.ports.store import Store
from pyflannel.ports.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ports and functions of one host in one network.

    Attributes:
        notify: tells the service manager (sd_notify).
        alive: hears of each turn of the reconciler's loop.
        draw: a random number below its argument.
        reidentify: makes and keeps a new identity.
        memory: keeps the last known leases.
        kernel_path: says what the kernel can for the fast path; None, where only trying tells.
    """

    store: Store
    target: Target
    interfaces: InterfaceSource
    bridges: BridgeSource
    clock: Clock
    memory: Memory
    notify: Callable[[str], object]
    draw: Callable[[int], int]
    reidentify: Callable[[], Identity]
    alive: Callable[[], object] = lambda: None
    kernel_path: KernelPath | None = None
