"""Readiness: packets can flow, the lease is ours, the host is as planned; or the reason to wait."""

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.lease_log import contested_text, exhausted_text, holder_text
from pyflannel.engine.reconciler import Reconciler
from pyflannel.plan.describe import found


def reason_to_wait(condition: HostCondition, reconciler: Reconciler, *, was_ready: bool) -> str | None:
    """Return what keeps a host with an underlay from being ready, in one line; None when it is ready.

    Args:
        condition: of the host.
        reconciler: that keeps it equal to its plan.
        was_ready: the host was ready before. Then a change of the plan alone does not make it unready.
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
    if lease.phase == "taken" and lease.taken is not None:
        return f"our subnet, which {holder_text(lease.taken)} holds"
    return "our lease" if lease.phase == "lost" else None


def _reason_without_lease(condition: HostCondition) -> str:
    lease = condition.lease
    if lease.contested is not None:
        return f"a lease: asking {contested_text(lease.contested)}"
    return f"a lease: {exhausted_text(lease.exhausted)}" if lease.exhausted is not None else "a lease"


def _reason_of_plan(reconciler: Reconciler, *, was_ready: bool) -> str | None:
    if reconciler.error is not None:
        return reconciler.error
    if (refused := next(reconciler.refused(), None)) is not None:
        return f"the plan to take effect: {found(refused.operation)}: {refused.cause}"
    if (delayed := next(reconciler.delayed(), None)) is not None:
        return f"the next repair, as another program keeps changing this object: {found(delayed)}"
    return None if was_ready or reconciler.is_clean else "the first pass"
