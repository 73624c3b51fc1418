"""The change from one backend to the next: when it begins, and when the previous backend is given up.

During the change, this host receives packets by both (decision 0051).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from pyflannel.engine.condition import Inputs
from pyflannel.engine.store_followers import read_config
from pyflannel.errors import ConfigError
from pyflannel.model.lease import MOST_PREVIOUS, Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.backends import Backend
from pyflannel.plan.generations import Generation
from pyflannel.ports import Clock
from pyflannel.wire.lease_record import KeptChange

log = logging.getLogger(__name__)

LINGER_S = 5.0
"""Seconds for which the previous backend stays after the last peer has changed.

A peer that has not read the newest lease of this host still sends by it.
"""


def with_config(inputs: Inputs, config: NetworkConfig, backend: Backend, text: str = "") -> Inputs:
    """Return the inputs with another config. The previous backend stays, if it is another data path.

    Args:
        inputs: inputs with the present config.
        config: the next config.
        backend: its backend.
        text: text of the present config.
    """
    changed = replace(inputs, config=config, backend=backend)
    before = inputs.backend
    if before is None or inputs.config is None or inputs.lease is None or before.way == backend.way:
        return changed
    if "nothing" in (before.routed, backend.routed):
        return replace(changed, previous=(), is_prepared=True)
    # Peers do not know a backend that was not prepared.
    known = (Generation(inputs.config, before, text),) if inputs.is_prepared else ()
    kept = tuple(one for one in (*known, *inputs.previous) if one.backend.way != backend.way)[:MOST_PREVIOUS]
    return replace(changed, previous=kept, is_prepared=not kept)


def log_change(inputs: Inputs) -> None:
    """Log the beginning of a change of the backend."""
    assert inputs.backend is not None
    log.info(
        "Changing the backend to %s, and receiving by %s too until no host needs it",
        inputs.backend.way,
        " and ".join(one.backend.way for one in inputs.previous),
    )


def resumed(inputs: Inputs, kept: KeptChange, *, requires_encryption: bool) -> Inputs:
    """Return the inputs with the backends of the last run, which peers may still use.

    The config may have changed since then. A backend that needs a key is not resumed. If the newest backend
    encrypts, no packet is sent unencrypted by the config of the last run.

    Args:
        inputs: inputs with the newest config.
        kept: the configs of the last run.
        requires_encryption: give up each backend that does not encrypt.
    """
    newest, network = inputs.backend, inputs.config
    assert newest is not None
    assert network is not None
    found: list[Generation] = []
    is_prepared = False
    for text in (kept.config, *kept.previous):
        with suppress(ConfigError):
            config, backend = read_config(text, is_assigned=network.is_assigned)
            is_last = text == kept.config
            if backend.way == newest.way:
                is_prepared = is_last and kept.is_prepared
            elif (
                "nothing" not in (backend.routed, newest.routed)
                and not (backend.is_encrypted or requires_encryption)
                and (kept.is_prepared or not is_last)  # otherwise, peers do not know it
                and not (is_last and newest.is_encrypted)
            ):
                found.append(Generation(config, backend, text))
    previous = tuple(found[:MOST_PREVIOUS])
    return replace(inputs, previous=previous, is_prepared=is_prepared or not previous)


class Retirement:
    """Calls `retire` when `LINGER_S` have passed in which the previous backends were not needed."""

    def __init__(self, clock: Clock, retire: Callable[[], None]) -> None:
        self._clock = clock
        self._retire = retire
        self._unneeded_since: float | None = None
        self._is_unneeded = asyncio.Event()

    def note(self, inputs: Inputs, own: Lease | None, *, is_needed: bool) -> None:
        """Note whether previous backends are needed. They are, until the lease of this host names the next.

        Args:
            inputs: inputs of the plan.
            own: this host's lease in the store; None if another host has its subnet, so that no peer sends.
            is_needed: a peer is reached by one of them, or the newest cannot work.
        """
        has_published = own is None or len(own.attributes.also) == len(inputs.previous)
        if not inputs.previous or not inputs.is_prepared or is_needed or not has_published:
            self._unneeded_since = None
        elif self._unneeded_since is None:
            self._unneeded_since = self._clock.now()
            self._is_unneeded.set()

    async def run(self) -> None:
        """Retire the previous backends at their time, until cancelled."""
        while True:
            await self._is_unneeded.wait()
            self._is_unneeded.clear()
            while self._unneeded_since is not None:
                left_s = self._unneeded_since + LINGER_S - self._clock.now()
                if left_s <= 0:
                    self._unneeded_since = None
                    self._retire()
                else:
                    await self._clock.sleep(left_s)
