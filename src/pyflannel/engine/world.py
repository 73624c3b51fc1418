"""What the engine of one host needs: its ports, and what the operator asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pyflannel.engine.fast_path import Choice
from pyflannel.engine.reconciler import AUDIT_S
from pyflannel.model.host import GroChoice
from pyflannel.model.host_file import HostFile
from pyflannel.model.lease import LEASE_TTL_S, Identity
from pyflannel.model.link import MARK
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import BridgeSource, Clock, InterfaceSource, KernelPath, Memory, Store, Target


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


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What the operator asks of this host.

    Attributes:
        subnet_file: path of subnet.env.
        other_files: that are to stand as long as the host runs.
        subnet_env: its text from the life before, or None.
        audit_s: longest pause between two passes, and between two looks at the interfaces.
        has_blackhole: packets to our subnet that nothing else on the host takes are dropped.
        kernel: release of the running kernel, as exact as it is known.
    """

    identity: Identity
    underlay: UnderlayOptions
    subnet_file: str
    other_files: tuple[HostFile, ...] = ()
    subnet_env: str | None = None
    lease_ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600
    renumbers: bool = False
    packet_filter: FilterOptions = field(default_factory=FilterOptions)
    device: str = "flannel0"
    mark: str = MARK
    audit_s: float = AUDIT_S
    fast_path: Choice = "auto"
    fast_path_gro: GroChoice = "auto"
    has_blackhole: bool = False
    kernel: str = ""
