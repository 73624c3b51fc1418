"""What the engine of one host needs: its ports, and what the operator asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyflannel.engine.fast_path import Choice
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.planner import PlanOptions
from pyflannel.engine.reconciler import AUDIT_S
from pyflannel.model.lease import LEASE_TTL_S, Identity
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import BridgeSource, Clock, InterfaceSource, KernelPath, Memory, Store, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ports and functions of one host in one network.

    Attributes:
        notify: tells the service manager (sd_notify).
        alive: hears of each turn of the reconciler's loop.
        draw: a random number below its argument.
        store_log: shared by all users of the store.
        reidentify: makes and keeps a new identity.
        memory: keeps the last known leases.
        kernel_path: returns the fast-path features of the kernel; None, where only a try shows them.
    """

    store: Store
    store_log: StoreLog
    targets: Sequence[Target]
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
        plan: what the plan is made of beside the network.
        subnet_env: text of subnet.env from the previous run, or None.
        audit_s: longest pause between two looks at the host and at its interfaces.
    """

    identity: Identity
    underlay: UnderlayOptions
    plan: PlanOptions
    subnet_env: str | None = None
    lease_ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600
    renumbers: bool = False
    audit_s: float = AUDIT_S
    fast_path: Choice = "auto"
