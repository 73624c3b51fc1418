"""The decision whether this host uses the fast path. The decision depends on the operator's setting and
the features of the kernel.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Literal

from pyflannel.errors import sentences
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Feature, Role
from pyflannel.model.item import Item
from pyflannel.model.lease import PARTIAL_CHECKSUM
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.state import Add, Operation, Refusal, Replace
from pyflannel.model.status import FastPathStatus, Notice
from pyflannel.ports import Clock, KernelPath, PlainKernelPath

log = logging.getLogger(__name__)

RETRY_S = 1.0
RETRY_MAX_S = 60.0
"""Longest delay in seconds before the fast path is tried again after the kernel refused a program. The delay
doubles after each refusal.
"""

_WITHOUT_GRO_LINK = "Use a kernel with veth (CONFIG_VETH), or start flanneld with --fast-path-gro=off."

Choice = Literal["auto", "safe", "flow", "off"]

_MODES: Mapping[str, tuple[str, ...]] = {"udp": ("safe", "flow"), "vxlan": ("flow",)}
"""Modes in which a backend has programs, by the type of the backend."""

_WITHOUT = {"udp": "user space carries the packets", "vxlan": "no flow bypasses the firewall"}
"""The effect of missing programs, by the type of the backend."""


class FastPath:
    """Decides whether programs are planned: the host's flag overrides the network config, and the abilities
    of the kernel override both.

    A feature that is known to be missing is not used. A feature that cannot be probed is used, and the kernel
    may refuse it.

    `changed` is called when the decision changes.
    """

    def __init__(
        self,
        choice: Choice,
        clock: Clock,
        changed: Callable[[], None],
        kernel: KernelPath | None = None,
        device: str = FIRST_DEVICE,
    ) -> None:
        self._choice = choice
        self._clock = clock
        self._changed = changed
        self._kernel = kernel or PlainKernelPath()
        self._device = device
        self._features: tuple[Feature, ...] | None = None
        self._notices: tuple[Notice, ...] = ()
        self._uncached: tuple[str, ...] = ()
        self._obstacle: str | None = None
        self._hint: str | None = None
        self._retry_s = RETRY_S
        self._refused = asyncio.Event()
        self._is_proved = True  # true until a feature is missing or refused

    def examine(self, config: NetworkConfig | None) -> None:
        """Probe the features of the kernel, before programs are planned for the first time or again."""
        if not self.is_on(config) or self._features is not None:
            return
        self._features = self._kernel.features()
        absent = [one for one in self._features if one.is_needed and one.answer == "absent"]
        if absent:
            hints = dict.fromkeys(one.hint for one in absent)
            self._refuse(config, "; ".join(one.text for one in absent), " ".join(hints))

    def is_on(self, config: NetworkConfig | None) -> bool:
        """Return whether programs are planned for a network with this config."""
        return config is not None and self._is_wanted(config) and not self._refused.is_set()

    def caches_flows(self, config: NetworkConfig | None) -> bool:
        """Return whether the programs may cache the decisions of the firewall about flows."""
        return config is not None and self._mode(config) == "flow"

    def reads(self, config: NetworkConfig | None) -> tuple[str, ...]:
        """Return the packet formats to publish in this host's lease; none while a program or a peer is
        refused. With vxlan, the kernel reads all formats.
        """
        is_udp = config is not None and config.backend_type == "udp"
        return (PARTIAL_CHECKSUM,) if is_udp and self.is_on(config) and self._is_proved else ()

    def status(self, config: NetworkConfig | None) -> FastPathStatus | None:
        """Return the path of packets and the reason; None for a backend that needs no programs in this mode.

        During a retry, the method returns the previous result.
        """
        if config is None or (config.backend_type != "udp" and not self._is_wanted(config)):
            return None
        if self._choice == "off":
            return FastPathStatus(mode="off", reason="--fast-path=off", remarks=self._notices)
        if not self._is_wanted(config):
            return FastPathStatus(mode="off", reason="FastPath of the network config", remarks=self._notices)
        lacking = tuple(feature for feature in self._features or () if feature.answer != "present")
        if self._is_proved:
            caches = self.caches_flows(config)
            return FastPathStatus(
                mode="flow" if caches else "safe",
                lacking=lacking,
                remarks=self._notices,
                uncached=self._uncached if caches else (),
            )
        return FastPathStatus(
            mode="user-space" if config.backend_type == "udp" else "uncached",
            reason=self._obstacle,
            hint=self._hint,
            lacking=lacking,
            remarks=self._notices,
        )

    async def run(self) -> None:
        """Try the programs again after each refusal, until cancelled."""
        while True:
            await self._refused.wait()
            await self._clock.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            self._refused.clear()
            self._features = None
            self._changed()

    def judge(
        self, refused: Sequence[Refusal], settled: Container[type[Item]], config: NetworkConfig | None
    ) -> Sequence[Refusal]:
        """Update the decision by the current refusals; return the refusals that do not affect the fast path.

        The kernel carries the packets again when every program and every peer is in place. An absence of
        refusals is not enough, because an operation may not have been tried yet.

        Args:
            refused: the current refusals.
            settled: kinds of which every object is in place.
            config: the config in force.
        """
        self._log_notices()
        if not self.is_on(config) or any(
            _wanted_link(one.operation, kind) for one in refused for kind in ("tun", "vxlan")
        ):
            return refused  # programs of a missing device are always refused
        unserved = next((one for one in refused if _carries_packets(one.operation)), None)
        if unserved is not None:
            self._refuse(config, *self._reason(unserved, refused))
            self._changed()
            return tuple(one for one in refused if not _is_of_the_fast_path(one.operation))
        is_in_place = BpfProgram in settled and BpfPeer in settled
        if self._obstacle is not None and not self._is_proved and is_in_place:
            log.info("The kernel carries the packets again, because this problem ended: %s", self._obstacle)
            self._obstacle, self._retry_s, self._is_proved = None, RETRY_S, True
            self._changed()
        return refused

    def _refuse(self, config: NetworkConfig | None, cause: str, hint: str) -> None:
        if cause != self._obstacle and config is not None:
            log.warning("No fast path, %s: %s", _WITHOUT[config.backend_type], sentences(cause, hint))
        self._obstacle, self._hint, self._is_proved = cause, hint, False
        self._refused.set()

    def _reason(self, unserved: Refusal, refused: Iterable[Refusal]) -> tuple[str, str]:
        """Return the cause of a refusal and the remedy; a refused GRO veth counts only if the veth is
        planned.
        """
        for one in refused:
            if (gro_link := _wanted_link(one.operation, "veth")) is not None:
                return f"{gro_link.name} cannot be created: {one.cause}", _WITHOUT_GRO_LINK
        return unserved.cause, self._hint_of_hidden_feature() or unserved.hint

    def _hint_of_hidden_feature(self) -> str | None:
        """Return the remedy for the first needed feature that could not be probed."""
        hidden = (one.hint for one in self._features or () if one.is_needed and one.answer == "unknown")
        return next(hidden, None)

    def _log_notices(self) -> None:
        found = self._kernel.notices(self._device)
        for notice in found:
            if notice not in self._notices:
                log.log(logging.ERROR if notice.hint else logging.WARNING, "%s", notice)
        if self._notices and not found:
            log.info("Resolved the fast path problem: %s", self._notices[0].text)
        self._notices = found
        uncached = self._kernel.uncached()
        if uncached != self._uncached:
            if uncached:
                log.warning(
                    "Packets pass through the firewall although the mode is flow: %s", "; ".join(uncached)
                )
            else:
                log.info("Packets of known flows bypass the firewall")
        self._uncached = uncached

    def _is_wanted(self, config: NetworkConfig) -> bool:
        modes = _MODES.get(config.backend_type, ())
        return config.enable_ipv4 and self._mode(config) in modes

    def _mode(self, config: NetworkConfig) -> str:
        return config.fast_path if self._choice == "auto" else self._choice


def _wanted_link(operation: Operation, kind: str) -> Link | None:
    """Return the link of this kind that the operation adds."""
    match operation:
        case Add(Link() as link) if link.kind == kind:
            return link
        case _:
            return None


def _is_of_the_fast_path(operation: Operation) -> bool:
    item = operation.new if isinstance(operation, Replace) else operation.item
    is_gro_link = isinstance(item, Link) and item.kind == "veth"
    return is_gro_link or isinstance(item, BpfProgram | BpfPeer | BpfContainer)


def _carries_packets(operation: Operation) -> bool:
    """Return whether the operation is on an object without which the kernel does not carry the packets.

    Objects of a container or a bridge do not count, because the container or the bridge may be gone.
    """
    match operation:
        case Add(BpfProgram(role=role)) | Replace(_, BpfProgram(role=role)):
            return role not in (Role.LAST_HOP, Role.SHORTCUT, Role.NEXT_HOP)
        case Add(BpfPeer()) | Replace(_, BpfPeer()):
            return True
        case _:
            return False
