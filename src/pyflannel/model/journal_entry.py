"""What happened to one object of this host, as a person or a script reads it."""

from dataclasses import dataclass
from typing import Literal

Event = Literal["repaired", "planned", "refused", "fought over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One thing that a pass found, and did; the same names are the JSON of `flannelctl events --json`.

    Attributes:
        at: seconds since the epoch.
        event: `repaired`, somebody had damaged it; `planned`, the plan had changed; `refused`, it could not
            be done; `fought over`, somebody keeps undoing it.
        found: what was found, `link flannel0: mtu 1300, wanted 1472`; and of a refusal why.
    """

    at: float
    event: Event
    found: str
