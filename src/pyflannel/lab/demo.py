"""The demo: the cookbook's four Docker hosts on one flannel network, and measurements on it."""

import json
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from statistics import fmean
from typing import Protocol

from msgspec import Struct

from pyflannel.errors import LabError
from pyflannel.lab.containers import PORT, Container, fetch, serving, write_image
from pyflannel.lab.kernel_path import Throughput, create_kernel_path, measure_kernel_path, measure_throughput
from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host
from pyflannel.lab.traffic import PingResult, ping_all, wait_reached
from pyflannel.lab.waiting import together

CONFIG = {"Network": "10.100.0.0/16"}
DEVICE = "flannel0"
_DOCKER_OPTIONS = Path("/etc/default/docker")
_STREAM_S = 2
_REACHED_S = 60.0


class DemoOptions(Struct, frozen=True, kw_only=True):
    """The options of the demo.

    Attributes:
        name: name of the lab.
        has_etcd: keep the leases in an etcd on the router, instead of the embedded store.
        has_docker: run a Docker engine on each host, instead of using network namespaces as containers.
        has_plugin: connect the containers by flanneld's Docker plugin, instead of by options of dockerd.
        is_kept: keep the lab at the end.
    """

    name: str
    has_etcd: bool = False
    has_docker: bool = True
    has_plugin: bool = False
    is_kept: bool = False


class HostRow(Struct, frozen=True, kw_only=True):
    """The measurements of one host.

    Attributes:
        mtu: MTU of the device in bytes.
        reached: number of containers of other hosts that answered every ping of this host's container.
        others: number of containers of other hosts.
        rtt_ms: average round-trip time to the containers that answered; None if no container answered.
    """

    host: str
    address: IPv4Address
    lease: IPv4Network
    device: str
    mtu: int
    reached: int
    others: int
    rtt_ms: float | None


class DemoReport(Struct, frozen=True, kw_only=True):
    """The results of the demo.

    Attributes:
        page: the page that the container on the last host fetched from the container on the first host.
        overlay: throughput of one TCP stream from the first host's container to the last host's container.
        kernel: throughput between two hosts without flannel, over manually configured vxlan of the kernel.
    """

    rows: tuple[HostRow, ...]
    page: str
    page_url: str
    overlay: Throughput
    kernel: Throughput

    @property
    def is_good(self) -> bool:
        """True if every container reached every other container."""
        return all(row.reached == row.others for row in self.rows)

    @property
    def ratio(self) -> float:
        """The throughput of the overlay, divided by that of the kernel's vxlan."""
        return self.overlay.gbit_s / self.kernel.gbit_s


class Narrator(Protocol):
    """Reports the progress to the user."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Report the beginning of a step, and its duration at the end of the block."""


def run_demo(options: DemoOptions, narrator: Narrator) -> DemoReport:
    """Run the demo and return its results. After the demo, the lab is removed, unless the options keep it.

    Raises:
        LabError: a part of the demo failed; the lab is then removed.
    """
    lab = Lab(options.name)
    with ExitStack() as opened:
        with narrator.step("creating two segments, a router and four hosts"):
            opened.enter_context(lab)
        containers = bring_up(lab, options, narrator)
        report = _measure(lab, containers, narrator)
        if options.is_kept:
            lab.keep()
        else:
            with narrator.step("removing the lab"):
                opened.close()
    return report


def bring_up(lab: Lab, options: DemoOptions, narrator: Narrator) -> dict[str, Container]:
    """Join the hosts to one flannel network, start a web server in a container on each, and return the
    containers.
    """
    with narrator.step("starting etcd on the router" if options.has_etcd else "creating the embedded store"):
        store = _open_store(lab, options)
    with narrator.step("starting flanneld on each host"):
        # With --ip-masq, Docker leaves the source addresses of packets to other hosts unchanged.
        flags = [*store, "--ip-masq", *(["--docker-plugin"] if options.has_plugin else [])]
        lab.each(lambda host: host.start_flanneld(*flags))
    if options.has_plugin:
        kind, start = "Docker engine, a network of the plugin", start_on_plugin
    elif options.has_docker:
        kind, start = "Docker engine", start_docker
    else:
        kind, start = "bridge", start_plain
    if options.has_docker:
        write_image(lab.directory / "busybox.tar")
    with narrator.step(f"starting a {kind} and a container with a web server on each host"):
        hosts = list(lab.hosts.values())
        containers = together([partial(start, lab, host, f"web{i}") for i, host in enumerate(hosts, 1)])
    return {host.name: container for host, container in zip(hosts, containers, strict=True)}


def start_docker(lab: Lab, host: Host, name: str) -> Container:
    """Start the Docker engine of the host on the leased subnet, as in the cookbook, and a container."""
    host.run(["mk-docker-opts.sh", "-c", "-d", _DOCKER_OPTIONS])
    host.engine.start("dockerd $DOCKER_OPTS", environment_file=_DOCKER_OPTIONS)
    host.engine.import_image(lab.directory / "busybox.tar")
    options = ["--publish-all", f"--expose={PORT}"]
    return host.engine.run_container(name, serving(_page(host), name=name), options=options)


def start_on_plugin(lab: Lab, host: Host, name: str) -> Container:
    """Start the Docker engine of the host without options, then create a network of the plugin and a
    container in it.
    """
    host.engine.start("dockerd")
    host.engine.import_image(lab.directory / "busybox.tar")
    host.engine.docker("network", "create", "-d", "flannel", "--ipam-driver", "flannel", "web")
    options = [f"--publish=8080:{PORT}"]
    return host.engine.run_container(name, serving(_page(host), name=name), options=options, network="web")


def start_plain(lab: Lab, host: Host, name: str) -> Container:
    """Start a container that is a network namespace on a bridge with the leased subnet."""
    container = host.container(name, gateway=host.gateway(), mtu=int(host.subnet_env()["FLANNEL_MTU"]))
    container.start_in_network(serving(_page(host), name=name))
    return container


def _page(host: Host) -> str:
    return f"Hello from a container on {host.name}"


def _open_store(lab: Lab, options: DemoOptions) -> list[str]:
    """Create the store, write the network config to it, and return flanneld's flags for this store."""
    if options.has_etcd:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        url, flags = etcd.url, [f"--etcd-endpoints={etcd.endpoint}"]
    else:
        url = lab.sqlite_url
        flags = [f"--store={url}"]
    first = next(iter(lab.hosts.values()))
    first.flannelctl("--store", url, "config", "set", json.dumps(CONFIG))
    return flags


def _measure(lab: Lab, containers: dict[str, Container], narrator: Narrator) -> DemoReport:
    hosts = list(lab.hosts.values())
    first, last = containers[hosts[0].name], containers[hosts[-1].name]
    with narrator.step("pinging every container from every other container"):
        with suppress(LabError, ExceptionGroup):  # the table of results shows unreachable containers
            wait_reached(containers.values(), deadline_s=_REACHED_S)
        pings = ping_all(containers.values())
        rows = [_row(host, containers[host.name], pings) for host in hosts]
    with narrator.step(
        f"fetching the page of {first.name} on {hosts[0].name} from {last.name} on {hosts[-1].name}"
    ):
        page = fetch(last, first.address)
    with narrator.step("connecting two plain hosts by the kernel's vxlan"):
        path = create_kernel_path(lab)
    with narrator.step("sending a TCP stream over the overlay"):
        overlay = measure_throughput(first, last, seconds=_STREAM_S)
    with narrator.step("sending a TCP stream over the kernel's vxlan"):
        kernel = measure_kernel_path(path, seconds=_STREAM_S)
    url = f"http://{first.address}/"
    return DemoReport(rows=tuple(rows), page=page, page_url=url, overlay=overlay, kernel=kernel)


def _row(host: Host, container: Container, pings: dict[tuple[str, str], PingResult]) -> HostRow:
    results = [result for (source, _), result in pings.items() if source == container.name]
    times = [result.rtt_ms for result in results if result.rtt_ms is not None]
    device = next((link for link in host.links() if link["ifname"] == DEVICE), None)
    if device is None:
        raise LabError(f"{host.name} has no {DEVICE}", hint=f"Read {host.directory}/log/flanneld.log.")
    return HostRow(
        host=host.name,
        address=host.address,
        lease=host.lease(),
        device=device["ifname"],
        mtu=device["mtu"],
        reached=sum(result.is_reached for result in results),
        others=len(results),
        rtt_ms=fmean(times) if times else None,
    )
