"""The bridges of the host, and who is behind them."""

from collections.abc import AsyncIterator
from typing import Protocol

from pyflannel.model.bridge import Bridge


class BridgeSource(Protocol):
    """The bridges of one network namespace, read afresh, and word of their changes."""

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names.

        Raises:
            TargetError: they could not be read.
        """

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes that may alter the answer."""
