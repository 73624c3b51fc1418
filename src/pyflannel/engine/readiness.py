"""Readiness of a host, and the notifications to the service manager: READY, STATUS, WATCHDOG."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.lease_log import contested_text, exhausted_text, holder_text
from pyflannel.engine.reconciler import Reconciler
from pyflannel.plan.diff import found
from pyflannel.ports import Clock


def reason_to_wait(condition: HostCondition, reconciler: Reconciler, *, was_ready: bool) -> str | None:
    """Return the reason why a host with an underlay is not ready, in one line; None if it is ready.

    Args:
        condition: condition of the host.
        reconciler: reconciler of the host.
        was_ready: True if the host was ready before. A change of the plan alone does not make a ready host
            unready.
    """
    store, lease, config = condition.store, condition.lease, condition.config
    if condition.obstacle:
        return condition.obstacle
    if condition.inputs.config is None:
        if config.store_trouble is not None:
            return f"the store: {config.store_trouble}"
        return config.trouble.text if config.trouble is not None else "the network config"
    if condition.held is None:
        return f"the store: {store.error}" if store.is_away else _reason_without_lease(condition)
    if (reason := _reason_of_plan(reconciler, was_ready=was_ready)) is not None:
        return reason
    if store.is_away or store.is_stale:
        return f"the store: {store.error or config.store_trouble}"
    if lease.unassigned is not None:
        return lease.unassigned.cause
    if lease.phase == "taken" and lease.taken is not None:
        return f"this host's subnet, which {holder_text(lease.taken)} holds"
    return "this host's lease" if lease.phase == "lost" else None


def path_trouble(condition: HostCondition, reconciler: Reconciler) -> str | None:
    """Return the reason why this host cannot carry packets of the network, in one line; None if it can.

    Objects for single peers are not considered, because the other peers are still reachable.
    """
    if condition.obstacle:
        return condition.obstacle
    for refused in reconciler.refused():
        if refused.operation.subject.IS_HOST_PART:
            return f"{found(refused.operation)}: {refused.cause}"
    for operation in reconciler.delayed():
        if operation.subject.IS_HOST_PART:
            return f"another program keeps changing this object: {found(operation)}"
    return None


def _reason_without_lease(condition: HostCondition) -> str:
    lease = condition.lease
    if lease.contested is not None:
        return f"a lease: asking {contested_text(lease.contested)}"
    if lease.unassigned is not None:
        return f"a lease: {lease.unassigned.cause}"
    return f"a lease: {exhausted_text(lease.exhausted)}" if lease.exhausted is not None else "a lease"


def _reason_of_plan(reconciler: Reconciler, *, was_ready: bool) -> str | None:
    if reconciler.error is not None:
        return reconciler.error
    if (refused := next(reconciler.refused(), None)) is not None:
        return f"the plan to take effect: {found(refused.operation)}: {refused.cause}"
    if (delayed := next(reconciler.delayed(), None)) is not None:
        return f"the next repair, as another program keeps changing this object: {found(delayed)}"
    return None if was_ready or reconciler.is_clean else "the first pass"


READY = "READY=1"


class Readiness:
    """Sends READY=1 when every expected network is ready, and the status of each network with its name."""

    def __init__(self, notify: Callable[[str], object], expected: Collection[str]) -> None:
        self._notify = notify
        self._awaited = set(expected)

    def notifier(self, name: str) -> Callable[[str], object]:
        """Return the function that network `name` uses to notify the service manager."""

        def notify(text: str) -> None:
            if text == READY:
                self._awaited.discard(name)
                if not self._awaited:
                    self._notify(READY)
            else:
                self._notify(text.replace("STATUS=", f"STATUS={name}: ", 1))

        return notify


ALIVE = "WATCHDOG=1"


class Liveness:
    """Sends WATCHDOG=1 when the reconcilers of all networks have run since the last WATCHDOG=1.

    If one reconciler hangs, WATCHDOG=1 is not sent, and systemd restarts the daemon.

    Attributes:
        pause_s: longest pause of a reconciler: half of the watchdog's interval, as sd_watchdog_enabled(3)
            recommends; infinite without a watchdog.
    """

    def __init__(self, notify: Callable[[str], object], clock: Clock, watchdog_s: float | None) -> None:
        self.pause_s = math.inf if watchdog_s is None else watchdog_s / 2
        self._notify = notify
        self._clock = clock
        self._networks: set[object] = set()
        self._silent: set[object] = set()

    @contextmanager
    def watched(self) -> Iterator[Callable[[], None]]:
        """Include a network during the block. The reconciler of the network calls the yielded function in
        each turn.
        """
        network = object()

        def give_sign() -> None:
            self._silent.discard(network)
            self._notify_alive()

        self._networks.add(network)
        self._silent.add(network)
        try:
            yield give_sign
        finally:
            self._networks.discard(network)
            self._silent.discard(network)

    async def run(self) -> None:
        """Send WATCHDOG=1 while the daemon has no network; return immediately without a watchdog."""
        while self.pause_s < math.inf:
            self._notify_alive()  # the call sends nothing while a reconciler hangs
            await self._clock.sleep(self.pause_s)

    def _notify_alive(self) -> None:
        if self.pause_s < math.inf and not self._silent:
            self._notify(ALIVE)
            self._silent = set(self._networks)
