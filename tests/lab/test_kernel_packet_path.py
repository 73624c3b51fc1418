"""Reads of the path of packets: XDP programs and tracked connections."""

import json
import sys

from testlab.xdp_program import ATTACH, PASS

READ = """
import asyncio, json
from pyflannel.kernel.host.packet_path import tracked_connections, xdp_links
print(json.dumps([sorted(asyncio.run(xdp_links())), tracked_connections()]))
"""


def test_links_with_an_xdp_program_are_found(namespace) -> None:
    namespace.ip("link add one type veth peer two")
    assert _read(namespace)[0] == []

    namespace.command(sys.executable, "-c", ATTACH, "one", PASS)

    assert _read(namespace)[0] == ["one"]


def test_the_connections_that_the_kernel_tracks_are_counted(namespace) -> None:
    namespace.ip("link set lo up")
    namespace.command("nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }")
    namespace.command("nft", "add rule ip t c ct state new accept")
    namespace.command("ping", "-c", "1", "127.0.0.1")

    count, most = _read(namespace)[1]

    assert count == 1
    assert most > count


def _read(namespace) -> list:
    return json.loads(namespace.command(sys.executable, "-c", READ))
