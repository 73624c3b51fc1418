"""Rules of the packet filter, and their chains and tables in iptables and nftables."""

from collections.abc import Mapping
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from msgspec import Struct

from pyflannel.model.docker import PublishedPort
from pyflannel.model.item import Item, Key, Marks, Rank
from pyflannel.model.network_config import Family, IpAddress

# The names of chains and tables. A host's only daemon uses the names of the original.
#
# Each additional daemon has another device, and appends the number of its device to the names.

FIRST_DEVICE = "flannel0"
"""The daemon that claims this device uses the names of the original."""

_STEM = "flannel"


def filter_name(stem: str, device: str) -> str:
    """Return the daemon's name of an object: `FLANNEL-FWD` with flannel0, `FLANNEL-FWD-1` with flannel1."""
    return stem if device == FIRST_DEVICE else f"{stem}-{device.removeprefix(_STEM)}"


def device_of(name: str, stem: str) -> str | None:
    """Return the device of the daemon that owns the object with this name; None if the name does not begin
    with `stem`.
    """
    if name == stem:
        return FIRST_DEVICE
    rest = name.removeprefix(f"{stem}-")
    return f"{_STEM}{rest}" if rest and rest != name else None


class Prefix(Struct, frozen=True):
    """The addresses of a network or, if negated, all other addresses."""

    network: IPv4Network | IPv6Network
    is_negated: bool = False


class Mark(Struct, frozen=True):
    """Packets whose mark has `value` in the bits of `mask`."""

    value: int
    mask: int = 0xFFFFFFFF


class Accept(Struct, frozen=True):
    """The packet is accepted; no later rule of the same hook and table is evaluated."""


class Return(Struct, frozen=True):
    """The packet leaves the chain unchanged."""


class Masquerade(Struct, frozen=True):
    """The packet gets the address of its outgoing interface, and a port of this host.

    Attributes:
        is_fully_random: True if the port is chosen at random, so that two simultaneous packets do not get the
            same port.
    """

    is_fully_random: bool = True


Verdict = Accept | Return | Masquerade


class FilterRule(Struct, frozen=True, kw_only=True):
    """The verdict for packets that match all conditions of the rule."""

    source: Prefix | None = None
    destination: Prefix | None = None
    mark: Mark | None = None
    verdict: Verdict


class ForeignRule(Struct, frozen=True):
    """A rule that is never planned, in the text of the program that prints it."""

    text: str


class PortRule(Struct, frozen=True):
    """Packets to a published port of this host get the address and port of a container; only in nftables."""

    published: PublishedPort


class TranslatedRule(Struct, frozen=True):
    """Packets between these prefixes whose destination a PortRule changed are masqueraded; only in nftables.

    The container would otherwise send its answer without passing the host, and the client would not recognize
    the answer.
    """

    source: IPv4Network
    destination: IPv4Network


class LoopbackRule(Struct, frozen=True):
    """Packets with the source or destination in 127.0.0.0/8 that arrive by another link than loopback are
    dropped.

    The kernel itself drops packets with these addresses, except on a link with route_localnet, which
    published ports at 127.0.0.1 need. The rule exists only in nftables.
    """

    is_source: bool


class IsolationRule(Struct, frozen=True):
    """Packets to another flannel network of this host are dropped; only in nftables.

    Attributes:
        origin: the range of their source addresses, or the name of the link by which the packets arrive.
        destination: the range of the other network.
    """

    origin: IPv4Network | IPv6Network | str
    destination: IPv4Network | IPv6Network


class TunnelRule(Struct, frozen=True):
    """Tunnel packets, UDP datagrams to this address and port of the host, are accepted; only in iptables."""

    address: IpAddress
    port: int


IptablesRules = tuple[FilterRule | TunnelRule | ForeignRule, ...]
Rules = tuple[FilterRule | PortRule | TranslatedRule | LoopbackRule | IsolationRule | ForeignRule, ...]
"""The rules are in the order of evaluation, and the first matching rule decides."""


IptablesTable = Literal["nat", "filter"]
IptablesHook = Literal["POSTROUTING", "FORWARD", "INPUT"]
"""The built-in chains that jump to pyflannel's chains."""

TABLES: Mapping[IptablesHook, IptablesTable] = {
    "POSTROUTING": "nat",
    "FORWARD": "filter",
    "INPUT": "filter",
}
"""The tables of the built-in chains."""

PROGRAMS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}

STEMS: Mapping[IptablesHook, str] = {
    "POSTROUTING": "FLANNEL-POSTRTG",
    "FORWARD": "FLANNEL-FWD",
    "INPUT": "FLANNEL-INPUT",
}
"""Stems of the names of pyflannel's chains. The original has the first two of these chains."""


class Jump(Enum):
    """The jump from the built-in chain to pyflannel's chain."""

    IN_PLACE = "in place"
    MISSING = "missing"
    SEVERAL = "repeated, or in another chain"
    LATE = "after a rule that decides for every packet"


class IptablesChain(Item, frozen=True, kw_only=True):
    """A chain, its rules, and the jump from a built-in chain.

    The jump is last, so that the rules of other programs decide first; but it is before a rule that decides
    about every packet, and therefore before the policy. In INPUT, the jump is first, because a chain of
    another program may drop every packet.

    Attributes:
        hook: the built-in chain that jumps to this chain.
        device: device of the daemon that owns the chain.
        jump: position of the jump; always IN_PLACE in a plan.
        is_for_dropping: True if the chain is only needed when the built-in chain drops packets. While the
            built-in chain drops no packets, an absent chain counts as present, and an existing chain is
            removed.
    """

    KIND = "iptables_chain"
    PLURAL = "iptables chains"
    RANK = Rank.IPTABLES_CHAIN

    family: Family
    hook: IptablesHook
    device: str
    rules: IptablesRules
    jump: Jump = Jump.IN_PLACE
    is_for_dropping: bool = False

    @property
    def key(self) -> Key:
        """The identity of the chain."""
        return "iptables-chain", (self.family, self.hook, self.device)

    @property
    def name(self) -> str:
        """The name of the chain in iptables."""
        return filter_name(STEMS[self.hook], self.device)

    @property
    def table(self) -> IptablesTable:
        """The table of the chain."""
        return TABLES[self.hook]

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"{PROGRAMS[self.family]} chain {self.name} in {self.table}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name contains the daemon's device."""
        return self.device == marks.device


NFT_STEMS: Mapping[Family, str] = {4: "flannel-ipv4", 6: "flannel-ipv6"}
"""Stems of the names of pyflannel's tables, which are the names of the original."""

FORWARD = "forward"
POSTROUTING = "postrtg"
"""Names of the chains in pyflannel's tables, which are the names of the original."""


class NftChain(Struct, frozen=True, kw_only=True):
    """A base chain: rules at a hook.

    Attributes:
        kind: `filter` or `nat`.
        hook: hook of the chain: `forward`, `prerouting`, `output`, `postrouting`.
        priority: chains with a lower priority are evaluated first.
    """

    name: str
    kind: str
    hook: str
    priority: int
    rules: Rules


class NftTable(Item, frozen=True, kw_only=True):
    """A complete table of one family. Objects of other programs in the table are removed.

    Attributes:
        device: device of the daemon that owns the table.
        others: other objects in the table, for example `set NAME`.
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
        """The identity of the table."""
        return "nft-table", (self.family, self.device)

    @property
    def name(self) -> str:
        """The name of the table in nftables."""
        return filter_name(NFT_STEMS[self.family], self.device)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"nftables table {self.name}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name contains the daemon's device."""
        return self.device == marks.device


class SavedRules(Struct, frozen=True, kw_only=True):
    """All rules of one family that one iptables program prints.

    Attributes:
        program: `iptables` or `ip6tables`; `iptables-legacy` or `iptables-nft` for the kind of iptables that
            `iptables` on this host does not use.
        is_other: True if the program is of this other kind, with which pyflannel writes no rules.
        chains: rules without `-A CHAIN`, by table and chain.
    """

    program: str
    family: Family
    is_other: bool = False
    chains: Mapping[str, Mapping[str, tuple[str, ...]]]


class LeftRules(Struct, frozen=True, kw_only=True):
    """Rules of one table that belong together, and the commands that remove them.

    Attributes:
        shown: texts of the rules, one line each.
        removal: the arguments of `PROGRAM -t TABLE`, or the lines of PROGRAM-restore, in the order in which
            they are used.
        is_sure: True if only the original writes such rules; False if another program may own the rules.
    """

    program: str
    table: str
    shown: tuple[str, ...]
    removal: tuple[str, ...]
    is_sure: bool

    @property
    def commands(self) -> tuple[str, ...]:
        """The shell commands that remove these rules."""
        return tuple(f"{self.program} -t {self.table} {words}" for words in self.removal)
