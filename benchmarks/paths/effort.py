"""Processor time of a process that sends or receives. Run as a program.

`effort.py receive PORT` receives from one TCP client. `effort.py stream PORT ADDRESS` sends GIGABITS to the
receiver, and `effort.py packets PORT ADDRESS` sends PACKETS datagrams. Each command prints its processor time
in seconds. In a lab, the kernel processes a packet in the process that sends it, up to the socket of the
receiver.
"""

import socket
import sys
from pathlib import Path

SMALL_BYTES = 64
PACKETS = 40_000
GIGABITS = 4
READY = "ready"
_CHUNK_BYTES = 1 << 17


def processor_s() -> float:
    """Return the processor time of this process, to the nanosecond."""
    return int(Path("/proc/self/schedstat").read_text().split()[0]) / 1e9


def receive(port: int) -> None:
    """Read the data of one client."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        print(READY, flush=True)
        client = listener.accept()[0]
        room = bytearray(_CHUNK_BYTES)
        while client.recv_into(room):
            pass


def stream(port: int, address: str) -> None:
    """Send a TCP stream; return when it has arrived."""
    with socket.create_connection((address, port)) as server:
        payload = bytes(_CHUNK_BYTES)
        for _ in range(GIGABITS * 10**9 // 8 // _CHUNK_BYTES):
            server.sendall(payload)
        server.shutdown(socket.SHUT_WR)
        server.recv(1)


def packets(port: int, address: str) -> None:
    """Send small datagrams, which no process receives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        payload = bytes(SMALL_BYTES)
        for _ in range(PACKETS):
            sock.sendto(payload, (address, port))


if __name__ == "__main__":
    begun = processor_s()
    match sys.argv[1:]:
        case ["receive", port]:
            receive(int(port))
        case ["stream", port, address]:
            stream(int(port), address)
        case ["packets", port, address]:
            packets(int(port), address)
        case other:
            sys.exit(f"unknown arguments: {other}")
    print(processor_s() - begun)
