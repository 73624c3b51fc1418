"""Rules of the packet filter, and the chains and tables of iptables and nftables that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pyflannel.model.item import Item, Key, Marks, Rank

# Names of chains and tables. A host's only daemon uses the names of the original.
#
# Each further daemon has another device, and appends the number of its device to the names.

FIRST_DEVICE = "flannel0"
"""The daemon with this device uses the names of the original."""

_STEM = "flannel"


def filter_name(stem: str, device: str) -> str:
    """Return the daemon's name for something: `FLANNEL-FWD` with flannel0, `FLANNEL-FWD-1` with flannel1."""
    return stem if device == FIRST_DEVICE else f"{stem}-{device.removeprefix(_STEM)}"


def device_of(name: str, stem: str) -> str | None:
    """Return the device whose daemon calls something so; None when the name does not begin with `stem`."""
    if name == stem:
        return FIRST_DEVICE
    rest = name.removeprefix(f"{stem}-")
    return f"{_STEM}{rest}" if rest and rest != name else None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The addresses of a network or, negated, all the others."""

    network: IPv4Network | IPv6Network
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Packets whose mark has `value` in the bits of `mask`."""

    value: int
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet passes; no later rule of the same hook and table is asked."""


@dataclass(frozen=True, slots=True)
class Return:
    """The packet leaves our rules as it came."""


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The packet gets the address of the interface that it leaves by, and a port of that host.

    Attributes:
        is_fully_random: the port is drawn, so that two packets in the same moment do not draw one port.
    """

    is_fully_random: bool = True


Verdict = Accept | Return | Masquerade


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """What becomes of packets that match everything said here."""

    source: Prefix | None = None
    destination: Prefix | None = None
    mark: Mark | None = None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """A rule that we never plan, as the program that reads it prints it."""

    text: str


Rules = tuple[FilterRule | ForeignRule, ...]
"""In the order in which the kernel asks them; the first that matches decides."""


Family = Literal[4, 6]
IptablesTable = Literal["nat", "filter"]

PROGRAMS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}

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
class IptablesChain(Item):
    """A chain, its rules, and the jump from the built-in chain of its table.

    The jump comes last, so that the rules of others decide before; but ahead of one that decides for every
    packet, and thus ahead of the policy.

    Attributes:
        device: of the daemon that the chain belongs to.
        jump: planned is always the one that is in place.
        is_for_dropping: planned only for a built-in chain that drops; elsewhere it is as good as there when
            it is not, and in the way when it is.
    """

    KIND = "iptables_chain"
    PLURAL = "iptables chains"
    RANK = Rank.IPTABLES_CHAIN

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

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"{PROGRAMS[self.family]} chain {self.name} in {self.table}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name is that of the daemon's device."""
        return self.device == marks.device


NFT_STEMS: Mapping[Family, str] = {4: "flannel-ipv4", 6: "flannel-ipv6"}
"""How the names of our tables begin; the original's names."""

FORWARD = "forward"
POSTROUTING = "postrtg"
"""Names of the chains in our tables; the original's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftChain:
    """A base chain: rules at a hook.

    Attributes:
        kind: `filter` or `nat`.
        hook: `forward`, `postrouting`.
        priority: lower ones are asked first.
    """

    name: str
    kind: str
    hook: str
    priority: int
    rules: Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class NftTable(Item):
    """A table of one family, all of it: whatever others put into it is not wanted.

    Attributes:
        device: of the daemon that the table belongs to.
        others: what it holds besides, as `set NAME`.
    """

    KIND = "nft_table"
    PLURAL = "nftables tables"
    RANK = Rank.NFT_TABLE

    family: Family
    device: str
    chains: tuple[NftChain, ...]
    others: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What makes two values one table."""
        return "nft-table", (self.family, self.device)

    @property
    def name(self) -> str:
        """What nftables calls it."""
        return filter_name(NFT_STEMS[self.family], self.device)

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"nftables table {self.name}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name is that of the daemon's device."""
        return self.device == marks.device


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardChain:
    """A base chain of nftables at the forward hook whose policy is drop; or FORWARD of legacy iptables.

    Attributes:
        family: `ip` or `inet`: those that see IPv4.
        program: of legacy iptables, that shows it; "" where nft does.
        passes: what it accepts by source or destination, whatever else a packet is.
    """

    family: str
    table: str
    name: str
    passes: frozenset[IPv4Network]
    program: str = ""

    def lets_pass(self, network: IPv4Network) -> bool:
        """Return whether every packet from or to the network gets through."""
        return any(network.subnet_of(passed) for passed in self.passes)


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
