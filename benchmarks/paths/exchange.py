"""One end of a TCP connection with repeated exchanges of 64 bytes. Run as a program.

`exchange.py PORT` answers one client. `exchange.py PORT ADDRESS SECONDS` is the client, and prints the number
of exchanges per second.
"""

import socket
import sys
import time

SIZE_BYTES = 64


def answer(port: int) -> None:
    """Return all bytes of one client to this client."""
    with socket.create_server(("0.0.0.0", port)) as listener:
        client = listener.accept()[0]
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := client.recv(SIZE_BYTES):
            client.sendall(data)


def ask(port: int, address: str, seconds: float) -> float:
    """Return the number of exchanges per second."""
    with socket.create_connection((address, port)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answered, start = 0, time.monotonic()
        while time.monotonic() < start + seconds:
            server.sendall(bytes(SIZE_BYTES))
            server.recv(SIZE_BYTES)
            answered += 1
        return answered / (time.monotonic() - start)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        answer(int(sys.argv[1]))
    else:
        print(ask(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
