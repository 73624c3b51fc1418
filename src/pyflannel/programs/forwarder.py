"""The forwarder's process: the user-space data path of the udp backend.

The daemon starts it, and it outlives the daemon. It needs CAP_NET_ADMIN for the device; with CAP_SYS_NICE it
goes before the programs that load the host.
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
"""What ps and /proc/PID/comm show; 15 octets at most."""

_NICENESS = -10

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop.

    Returns:
        The exit code: 0; or, with one line on standard error, the errno of what refused the start, or 1.
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
    """Log a signal that has no meaning here: left alone it would end the data path of the host."""
    print(f"ignored {signal.Signals(number).name}", file=sys.stderr, flush=True)


def _name_process() -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(_COMMAND_NAME)


def _take_precedence() -> None:
    """Go before what loads the host, as the kernel's network code does: packets must not wait for containers.

    Where each session has one share of the processors, a process' niceness counts inside of it alone, and the
    session's is its own (sched(7), autogroup); the daemon gives us a session to ourselves.
    """
    with suppress(OSError):  # without the right we are one among others
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        if os.getsid(0) == os.getpid():
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:
                file.write(str(_NICENESS))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="forwarder", description="Moves packets of the udp backend.")
    parser.add_argument("--run-dir", required=True, help="where the control socket is made")
    parser.add_argument("--link", required=True, help="name of the TUN device, which exists")
    parser.add_argument("--tunnel-address", required=True, type=_address, help="source of ICMP errors")
    parser.add_argument("--subnet", required=True, type=_subnet, help="what peers may send to, as A.B.C.D/N")
    parser.add_argument("--listen-address", required=True, type=_address, help="address of the underlay")
    parser.add_argument("--port", required=True, type=int, help="UDP port")
    parser.add_argument("--mtu", required=True, type=int, help="octets of the largest inner packet")
    parser.add_argument("--version", default="", help="version that it reports")
    parser.add_argument("--take-over", action="store_true", help="go on with all that the running one has")
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
