"""What guards the tunnel, as the engine sees it."""

from collections.abc import Sequence
from typing import Protocol

from pyflannel.model.stranger import Stranger


class Guard(Protocol):
    """Drops tunnel packets that come from where they must not."""

    async def strangers(self) -> Sequence[Stranger]:
        """Return who sent what was dropped, one for each address and reason, in no order.

        Of very many only the latest. Nobody, where it cannot be asked.
        """
