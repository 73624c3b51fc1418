"""Tables of ours in nftables."""

from collections.abc import Mapping
from dataclasses import dataclass

from pyflannel.model.filter_name import filter_name
from pyflannel.model.filter_rule import Rules
from pyflannel.model.iptables_chain import Family
from pyflannel.model.item_map import Key

STEMS: Mapping[Family, str] = {4: "flannel-ipv4", 6: "flannel-ipv6"}
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
class NftTable:
    """A table of one family, all of it: whatever others put into it is not wanted.

    Attributes:
        device: of the daemon that the table belongs to.
        others: what it holds besides, as `set NAME`.
    """

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
        return filter_name(STEMS[self.family], self.device)
