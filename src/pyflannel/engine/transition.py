"""The change from one backend to the next. This module defines when the change begins, and when the previous
backend is removed.

During the change, this host receives packets by both backends (decision 0051).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from pyflannel.engine.condition import Inputs
from pyflannel.engine.store_followers import read_config
from pyflannel.errors import ConfigError, TargetError
from pyflannel.model.lease import MOST_PREVIOUS, Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.backends import Backend
from pyflannel.plan.generations import Generation
from pyflannel.ports import Clock, WireguardContacts
from pyflannel.wire.lease_record import KeptChange

log = logging.getLogger(__name__)

LINGER_S = 5.0
"""Seconds for which the previous backend is kept after the last peer has changed.

A peer that has not read the newest lease of this host still sends by the previous backend.
"""

HANDSHAKE_S = 12.0
"""Longest time in seconds for which packets to a peer wait for its first handshake. This time covers two
repetitions of the handshake.

A limit is necessary, because otherwise an attacker that drops handshakes could prevent the encryption
forever.
"""

_LOOK_S = 0.1
"""Minimum interval in seconds between two checks for handshakes."""

_PER_PEER_S = 0.0015
"""Additional seconds between two checks for handshakes, for each peer. A check takes a hundredth of this
time."""


def with_config(inputs: Inputs, config: NetworkConfig, backend: Backend, text: str = "") -> Inputs:
    """Return the inputs with another config. The previous backend is kept if its data path differs.

    Args:
        inputs: inputs with the current config.
        config: the next config.
        backend: backend of the next config.
        text: text of the current config.
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
        "Changing the backend to %s, and also receiving by %s until no host needs it",
        inputs.backend.way,
        " and ".join(one.backend.way for one in inputs.previous),
    )


def resumed(inputs: Inputs, kept: KeptChange, *, requires_encryption: bool) -> Inputs:
    """Return the inputs with the backends of the last run, which peers may still use.

    The config may have changed since then. A backend that needs a key is not resumed. If the newest backend
    encrypts, no packet is sent unencrypted with the config of the last run.

    Args:
        inputs: inputs with the newest config.
        kept: the configs of the last run.
        requires_encryption: True to drop each backend that does not encrypt.
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
                and (kept.is_prepared or not is_last)  # otherwise, peers do not know this backend
                and not (is_last and newest.is_encrypted)
            ):
                found.append(Generation(config, backend, text))
    previous = tuple(found[:MOST_PREVIOUS])
    return replace(inputs, previous=previous, is_prepared=is_prepared or not previous)


class Retirement:
    """Calls `retire` when the previous backends were not needed for `LINGER_S` seconds."""

    def __init__(self, clock: Clock, retire: Callable[[], None]) -> None:
        self._clock = clock
        self._retire = retire
        self._unneeded_since: float | None = None
        self._is_unneeded = asyncio.Event()

    def note(self, inputs: Inputs, own: Lease | None, *, is_needed: bool) -> None:
        """Record whether previous backends are needed. Previous backends are needed until the lease of this
        host contains the next backend.

        Args:
            inputs: inputs of the plan.
            own: this host's lease in the store; None if another host has its subnet, so that no peer sends to
                this host.
            is_needed: True if a peer is reached by a previous backend, or if the newest backend cannot work.
        """
        has_published = own is None or len(own.attributes.also) == len(inputs.previous)
        if not inputs.previous or not inputs.is_prepared or is_needed or not has_published:
            self._unneeded_since = None
        elif self._unneeded_since is None:
            self._unneeded_since = self._clock.now()
            self._is_unneeded.set()

    async def run(self) -> None:
        """Remove the previous backends when their time is over, until cancelled."""
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


class Handshakes:
    """The first handshakes with the peers, while the backend changes to wireguard.

    If two hosts begin a handshake at the same moment, each host drops its own handshake. WireGuard begins the
    next handshake after 5 s (REKEY_TIMEOUT). Until then, packets use the previous backend.

    Attributes:
        greeted: public keys of the peers that have answered, or have had HANDSHAKE_S seconds to answer.
    """

    def __init__(self, contacts: WireguardContacts, clock: Clock, changed: Callable[[], None]) -> None:
        self.greeted: frozenset[str] = frozenset()
        self._contacts = contacts
        self._clock = clock
        self._changed = changed
        self._begun_s: dict[str, float] = {}
        self._is_wanted = asyncio.Event()

    def note(self, inputs: Inputs) -> None:
        """Record whether the backend changes to wireguard."""
        if inputs.previous and inputs.backend is not None and inputs.backend.is_encrypted:
            self._is_wanted.set()
        else:
            self._is_wanted.clear()
            self._begun_s.clear()
            self.greeted = frozenset()

    async def run(self) -> None:
        """Check for handshakes during each change, until cancelled."""
        while True:
            await self._is_wanted.wait()
            await self._look()
            await self._clock.sleep(max(_LOOK_S, len(self._begun_s) * _PER_PEER_S))

    async def _look(self) -> None:
        try:
            contacts = list(await self._contacts())
        except TargetError as error:
            log.debug("Could not read the handshakes: %s", error)
            return
        if not self._is_wanted.is_set():
            return
        now = self._clock.now()
        for one in contacts:
            self._begun_s.setdefault(one.public_key, now)
        # A peer with both families has one device for each family, and so one contact for each device.
        silent = {
            one.public_key
            for one in contacts
            if one.handshake_age_s is None and now - self._begun_s[one.public_key] < HANDSHAKE_S
        }
        greeted = self.greeted | (self._begun_s.keys() - silent)
        if greeted != self.greeted:
            self.greeted = greeted
            self._changed()
