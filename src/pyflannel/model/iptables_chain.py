"""Chains of ours in iptables, with the jump that leads there."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pyflannel.model.filter_name import filter_name
from pyflannel.model.filter_rule import Rules
from pyflannel.model.item_map import Key

Family = Literal[4, 6]
IptablesTable = Literal["nat", "filter"]

STEMS: Mapping[IptablesTable, str] = {"nat": "FLANNEL-POSTRTG", "filter": "FLANNEL-FWD"}
"""How the names of our chains begin; the original's names."""

HOOKS: Mapping[IptablesTable, str] = {"nat": "POSTROUTING", "filter": "FORWARD"}
"""The built-in chains that jump to them."""


class Jump(Enum):
    """How packets get from the built-in chain to ours."""

    IN_PLACE = "in place"
    MISSING = "missing"
    SEVERAL = "there several times, or from elsewhere"
    LATE = "behind a rule that decides for every packet"


@dataclass(frozen=True, slots=True, kw_only=True)
class IptablesChain:
    """A chain, its rules, and the jump from the built-in chain of its table.

    The jump comes last, so that the rules of others decide before; but ahead of one that decides for every
    packet, and thus ahead of the policy.

    Attributes:
        device: of the daemon that the chain belongs to.
        jump: planned is always the one that is in place.
        is_for_dropping: planned only for a built-in chain that drops; elsewhere it is as good as there when
            it is not, and in the way when it is.
    """

    family: Family
    table: IptablesTable
    device: str
    rules: Rules
    jump: Jump = Jump.IN_PLACE
    is_for_dropping: bool = False

    @property
    def key(self) -> Key:
        """What makes two values one chain."""
        return "iptables-chain", (self.family, self.table, self.device)

    @property
    def name(self) -> str:
        """What iptables calls it."""
        return filter_name(STEMS[self.table], self.device)

    @property
    def hook(self) -> str:
        """The built-in chain that jumps here."""
        return HOOKS[self.table]
