"""The forwarder process: the user-space data path of the udp backend.

The daemon starts it, and it continues after the daemon ends. It needs CAP_NET_ADMIN for the device. With
CAP_SYS_NICE it gets a higher priority than ordinary programs.
"""

import argparse
import os
import signal
import sys
from contextlib import suppress
from socket import inet_aton
from types import FrameType

from pyflannel.datapath.forwarder import Forwarder
from pyflannel.datapath.hand_over import Inheritance
from pyflannel.errors import BusyError
from pyflannel.wire.forwarder_control import Settings

_COMMAND_NAME = "flannel-forward"
"""The name in ps and /proc/PID/comm; 15 bytes at most."""

_NICENESS = -10

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM.

    Returns:
        The exit code: 0, or after a failed start, with one line on stderr, the errno of the cause or 1.
    """
    options = _parse(arguments)
    settings = Settings(
        options.link,
        options.tunnel_address,
        options.subnet[0],
        options.subnet[1],
        options.listen_address,
        options.port,
        options.mtu,
    )
    try:
        inheritance = Inheritance(options.run_dir, options.link) if options.take_over else None
        forwarder = Forwarder(options.run_dir, settings, options.version, inheritance)
    except BusyError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        return error.errno or EXIT_FAILED
    _name_process()
    _take_precedence()
    signal.signal(signal.SIGTERM, _exit)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _ignore)
    try:
        forwarder.run()
    finally:
        forwarder.stop()
    return 0


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Log and ignore a signal that would end the data path of the host by default."""
    print(f"ignored {signal.Signals(number).name}", file=sys.stderr, flush=True)


def _name_process() -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(_COMMAND_NAME)


def _take_precedence() -> None:
    """Raise the priority of this process, so that packets do not wait for busy containers.

    With autogroup scheduling (sched(7)), the niceness of a process counts only within its session, and the
    session has its own niceness. The daemon starts the forwarder in a session of its own.
    """
    with suppress(OSError):  # without CAP_SYS_NICE the default priority stays
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        if os.getsid(0) == os.getpid():
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:
                file.write(str(_NICENESS))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="forwarder", description="Forwards the packets of the udp backend. flanneld starts this program."
    )
    parser.add_argument("--run-dir", required=True, help="directory of the control socket")
    parser.add_argument("--link", required=True, help="name of the existing TUN device")
    parser.add_argument(
        "--tunnel-address", required=True, type=_address, help="source address of ICMP errors"
    )
    parser.add_argument("--subnet", required=True, type=_subnet, help="subnet of this host, as A.B.C.D/N")
    parser.add_argument(
        "--listen-address", required=True, type=_address, help="underlay address to listen on"
    )
    parser.add_argument("--port", required=True, type=int, help="UDP port")
    parser.add_argument("--mtu", required=True, type=int, help="size of the largest inner packet in bytes")
    parser.add_argument("--version", default="", help="version to report")
    parser.add_argument(
        "--take-over", action="store_true", help="take over the sockets and peers of the running forwarder"
    )
    return parser.parse_args(arguments)


def _address(text: str) -> int:
    try:
        return int.from_bytes(inet_aton(text), "big")
    except OSError:
        raise argparse.ArgumentTypeError(f"{text} is not an IPv4 address") from None


def _subnet(text: str) -> tuple[int, int]:
    address, _, length = text.partition("/")
    if not length.isdecimal() or int(length) > 32:
        raise argparse.ArgumentTypeError(f"{text} is not an IPv4 subnet")
    return _address(address), int(length)


if __name__ == "__main__":
    sys.exit(main())
