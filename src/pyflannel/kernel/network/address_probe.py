"""Asks on a link whether another host has an address of this host."""

import asyncio
import contextlib
import socket
from ipaddress import IPv4Address

from pyflannel.wire.arp import ETHERTYPE, format_probe, parse_sender

_DEADLINE_S = 0.3
_LARGEST = 2048
_ETHERNET = 1  # linux/if_arp.h


async def other_holder(link: str, address: IPv4Address) -> str | None:
    """Return the MAC address of another host on a link that answers for an address; None if no host answers
    within 0.3 s, or this process cannot ask.
    """
    with contextlib.suppress(OSError):
        opened = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
        with contextlib.closing(opened):
            opened.bind((link, ETHERTYPE))
            *_, kind, own = opened.getsockname()
            if kind != _ETHERNET:
                return None
            opened.send(format_probe(own, address))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DEADLINE_S):
                    return await _sender_for(opened, address, own)
    return None


async def _sender_for(opened: socket.socket, address: IPv4Address, own: bytes) -> str:
    """Return the MAC address of the first other sender that claims to have the address."""
    loop = asyncio.get_running_loop()
    while True:
        sender = parse_sender(await loop.sock_recv(opened, _LARGEST))
        if sender is not None and sender.address == address and sender.mac != own:
            return sender.mac.hex(":")
