"""State: a set of kernel objects, files and processes, desired or actual."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pyflannel.model.address import Address
from pyflannel.model.bpf_container import BpfContainer
from pyflannel.model.bpf_peer import BpfPeer
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.iptables_chain import IptablesChain
from pyflannel.model.link import Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.nft_table import NftTable
from pyflannel.model.route import Route

Item = (
    Link
    | Address
    | Neighbour
    | FdbEntry
    | Route
    | Forwarder
    | ForwarderPeer
    | BpfProgram
    | BpfPeer
    | BpfContainer
    | IptablesChain
    | NftTable
    | HostFile
)
"""Everything that a plan can ask for."""


@dataclass(frozen=True, slots=True)
class State:
    """Items by their key; at most one item has a key."""

    by_key: Mapping[Hashable, Item] = field(default_factory=dict)

    EMPTY: ClassVar["State"]

    @classmethod
    def of(cls, *items: Item) -> "State":
        """Return the state of these items; where two have one key, the first stays."""
        return cls.collect(items)

    @classmethod
    def collect(cls, items: Iterable[Item]) -> "State":
        """Return the state of these items; where two have one key, the first stays, as in a look-up."""
        by_key: dict[Hashable, Item] = {}
        for item in items:
            by_key.setdefault(item.key, item)
        return cls(by_key)

    def __or__(self, other: "State") -> "State":
        """Return the union; where both have a key, ours stays."""
        return State({**other.by_key, **self.by_key})

    def __iter__(self) -> Iterator[Item]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)

    def __contains__(self, item: Item) -> bool:
        return self.by_key.get(item.key) == item


State.EMPTY = State()
