"""What the host's interfaces are, and which way its packets go."""

from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from typing import Protocol

from pyflannel.model.interface import Interfaces


class InterfaceSource(Protocol):
    """The interfaces of one network namespace, read afresh, and word of their changes."""

    async def observe(self) -> Interfaces:
        """Return the interfaces, their addresses and the default routes as they are now.

        Raises:
            TargetError: they could not be read.
        """

    async def route_to(self, address: IPv4Address) -> tuple[str, IPv4Address] | None:
        """Return the link and the source of the host's own packets to `address`; None when there is no route.

        Nothing is sent.

        Raises:
            TargetError: it could not be asked.
        """

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes that may alter the answers above."""
