"""Throughput between two stations, by iperf3."""

import json
from dataclasses import dataclass

from pyflannel.errors import LabError
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.traffic import Station
from pyflannel.lab.waiting import wait_until

PORT = 5201
_LISTEN_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What TCP carried.

    Attributes:
        gbit_s: payload that arrived, 10^9 bits in a second.
        octets: payload that arrived in all.
    """

    gbit_s: float
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagrams:
    """What became of datagrams that were sent as fast as they go.

    Attributes:
        received_kpps: thousands that arrived in a second.
        lost_percent: of those that were sent.
    """

    received_kpps: float
    lost_percent: float


def measure_throughput(
    source: Station, destination: Station, *, seconds: int = 2, streams: int = 1
) -> Throughput:
    """Send TCP streams side by side from source to destination.

    Raises:
        LabError: iperf3 failed; the hint is what it said.
    """
    received = _run(source, destination, seconds, "--parallel", str(streams))["sum_received"]
    return Throughput(gbit_s=received["bits_per_second"] / 1e9, octets=int(received["bytes"]))


def measure_datagrams(source: Station, destination: Station, *, octets: int, seconds: int) -> Datagrams:
    """Send datagrams of so many octets of payload as fast as they go.

    Raises:
        LabError: iperf3 failed; the hint is what it said.
    """
    flags = ["--udp", "--bandwidth", "0", "--length", str(octets)]
    total = _run(source, destination, seconds, *flags)["sum"]
    arrived = total["packets"] - total["lost_packets"]
    return Datagrams(received_kpps=arrived / total["seconds"] / 1e3, lost_percent=total["lost_percent"])


def _run(source: Station, destination: Station, seconds: int, *flags: str) -> dict[str, dict[str, float]]:
    """Run iperf3 for so many seconds and return the end of its report."""
    server = destination.start_in_network(
        ["iperf3", "--server", "--one-off", "--forceflush", "--port", str(PORT)]
    )
    try:
        wait_listening(server, destination, PORT)
        client = ["iperf3", "--client", str(destination.address), "--port", str(PORT), "--json"]
        times = ["--time", str(seconds)]
        said = source.run_in_network(
            [*client, *times, *flags], check=False, timeout_s=seconds + RUN_TIMEOUT_S
        ).stdout
    finally:
        server.kill()
    report = json.loads(said)
    if "error" in report:
        raise LabError(
            f"iperf3 from {source.name} to {destination.name}: {report['error']}", hint=server.last_words()
        )
    end: dict[str, dict[str, float]] = report["end"]
    return end


def wait_listening(server: Program, station: Station, port: int) -> None:
    """Return when a program listens at a TCP port of its station.

    Raises:
        LabError: it ended, or does not in time.
    """

    def listens() -> bool:
        if server.exit_code is not None:
            raise LabError(f"{server.name} does not listen", hint=server.last_words())
        return bool(station.run_in_network(["ss", "-ltnH", f"sport = :{port}"]).stdout)

    wait_until(listens, what=f"{server.name} listens", deadline_s=_LISTEN_DEADLINE_S)
