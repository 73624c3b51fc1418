"""The forwarder process: the user-space data path of the udp backend.

The daemon starts the forwarder, and the forwarder continues after the daemon exits. The standard input of the
forwarder is a connection to the daemon, which sends settings and open descriptors. The forwarder needs no
rights. With CAP_SYS_NICE, the forwarder gets a higher priority than ordinary programs, before it drops its
capabilities.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from pyflannel.datapath.forwarder import Forwarder, Start, Watchdog
from pyflannel.datapath.restriction import restrict
from pyflannel.errors import WireError

_COMMAND_NAME = "flannel-forward"
"""The name in ps and /proc/PID/comm, with at most 15 bytes."""

_NICENESS = -10

EXIT_FAILED = 1


def main() -> int:
    """Run until SIGTERM.

    Returns:
        The exit code: 0, or 1 after a failed start, with one line on stderr.
    """
    try:
        forwarder = Forwarder(Start(sys.stdin.fileno()))
        watchdog = Watchdog(os.environ)
    except (OSError, WireError) as error:
        print(f"flanneld starts this program, with a socket as standard input: {error}", file=sys.stderr)
        return EXIT_FAILED
    _name_process()
    _take_precedence()
    signal.signal(signal.SIGTERM, _exit)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _ignore)
    forwarder.begin(restrict())
    try:
        forwarder.run(watchdog)
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

    With autogroup scheduling (sched(7)), the niceness of a process has an effect only within its session, and
    the session has its own niceness. The daemon starts the forwarder in its own session.
    """
    with suppress(OSError):  # without CAP_SYS_NICE the default priority is kept
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        if os.getsid(0) == os.getpid():
            with open("/proc/self/autogroup", "w", encoding="ascii") as file:
                file.write(str(_NICENESS))


if __name__ == "__main__":
    sys.exit(main())
