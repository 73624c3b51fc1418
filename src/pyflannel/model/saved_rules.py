"""Filter rules as iptables prints them, and those of them that somebody left."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyflannel.model.iptables_chain import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRules:
    """All rules of one family that one program of iptables knows of.

    Attributes:
        program: `iptables`, `ip6tables`; `iptables-legacy` or `iptables-nft` for the kind that the plain name
            does not stand for on this host.
        is_other: it is of that other kind, by which nothing of ours is written.
        chains: rules without `-A CHAIN`, by table and chain.
    """

    program: str
    family: Family
    is_other: bool = False
    chains: Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftRules:
    """Rules of one table that belong together, and what takes them away.

    Attributes:
        shown: what they are, a line each, for people.
        removal: the arguments of `PROGRAM -t TABLE`, or the lines of PROGRAM-restore, in their order.
        is_sure: nobody but the original writes such rules; else they may be anybody's.
    """

    program: str
    table: str
    shown: tuple[str, ...]
    removal: tuple[str, ...]
    is_sure: bool

    @property
    def commands(self) -> tuple[str, ...]:
        """What removes them, typed into a shell."""
        return tuple(f"{self.program} -t {self.table} {words}" for words in self.removal)
