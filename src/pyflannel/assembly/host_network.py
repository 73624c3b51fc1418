"""Composition of one network of this host: the adapters, the engine, and the methods that answer API
requests.
"""

import asyncio
import os
import pwd
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.assembly.directories import Places
from pyflannel.assembly.options import FlanneldOptions
from pyflannel.assembly.stores import parse_store_url
from pyflannel.engine.allowed_keys import AllowedKeys, AllowList, SignedKeys
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.peer_probes import PeerProbes
from pyflannel.engine.plan_log import GuardLog
from pyflannel.engine.status_report import status_of, strangers_of, wireguard_of
from pyflannel.engine.supervisor import Supervisor
from pyflannel.engine.world import HostOptions, PlanOptions, World
from pyflannel.errors import StoreError, TargetError, UsageError, WireError, remedy
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.files import FileMemory, FileTarget, replace_file
from pyflannel.kernel.host.lease_key import KeyListFile, lease_key, public_lease_key
from pyflannel.kernel.host.locks import DeviceClaim
from pyflannel.kernel.host.machine import (
    BoottimeClock,
    device_bytes,
    host_name,
    kernel_release,
    new_identity,
    read_identity,
)
from pyflannel.kernel.network.container_links import KernelContainerLinks
from pyflannel.kernel.network.interfaces import KernelBridges, KernelInterfaces
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.snapshot import route_protocols
from pyflannel.kernel.wireguard.keys import WireguardKeys
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.forwarder import Stranger
from pyflannel.model.host import HostFile
from pyflannel.model.kubernetes_node import OwnNode
from pyflannel.model.lease import Identity, Lease
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.model.reach_matrix import Matrix
from pyflannel.model.status import (
    STRANGERS_SHOWN,
    BackendStatus,
    FastPathStatus,
    ForwarderStatus,
    JournalEntry,
    Notice,
    PlanPreview,
    Status,
    StoreStatus,
    StoreTimes,
    carried_by_programs,
)
from pyflannel.model.store_record import Put
from pyflannel.model.wireguard import WireguardContact
from pyflannel.plan.ownership import device_names, identity_on_device
from pyflannel.plan.peers import place_of
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import Clock, Store, Target
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_client import forwarder_status
from pyflannel.processes.wireguard_go import WireguardGo
from pyflannel.stores.counted import CountedStore
from pyflannel.wire.kubernetes_node import NODES
from pyflannel.wire.lease_record import CONFIG
from pyflannel.wire.lease_signature import parse_allowed_keys

if TYPE_CHECKING:
    from pyflannel.engine.docker_networks import DockerNetworks
    from pyflannel.engine.docker_plugin import DockerPlugin

_ANSWER_S = 1.0
"""Deadline in seconds for an answer of the forwarder, because the forwarder may hang."""

_STORE_REQUESTS, _STORE_S = 3, 1.8
"""Number of requests that measure how fast the store answers, and their common deadline in seconds, so that
doctor answers within 5 s."""


_DOCTOR = "import os, sys; os.nice(10)\nfrom pyflannel.programs.flannelctl import main\nsys.exit(main())"
"""The Python program that runs doctor with low priority. Doctor runs as another process, so that it does not
delay flanneld, and its memory is freed when the process exits."""


class TunnelGuard:
    """Collects the senders of dropped packets of one tunnel from eBPF programs, forwarder and filter
    rules.
    """

    def __init__(
        self, device: str, fast_path: BpfTarget, forwarder: ForwarderTarget, rules: TunnelGuardTarget
    ) -> None:
        self._device = device
        self._fast_path = fast_path
        self._forwarder = forwarder
        self._rules = rules

    async def strangers(self) -> list[Stranger]:
        """Return the senders whose packets were dropped; empty if no source responds."""
        found: list[Stranger] = []
        with suppress(TargetError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                found += await self._forwarder.strangers()
        with suppress(OSError):
            found += self._fast_path.strangers(self._device)
        with suppress(TargetError):
            found += await self._rules.strangers(self._device)
        return _joined(found)


def _joined(strangers: Iterable[Stranger]) -> list[Stranger]:
    """Merge entries with the same address and reason; the merged entry has the time of the latest packet."""
    joined: dict[tuple[IpAddress, str], Stranger] = {}
    for one in strangers:
        key = one.address, one.reason
        if (other := joined.get(key)) is not None:
            latest = min(one, other, key=lambda each: each.age_s)
            one = replace(latest, packets=one.packets + other.packets)
        joined[key] = one
    return list(joined.values())


class HostNetwork:
    """This host in one network. `run` keeps the host in the network; the other methods answer API
    requests.
    """

    def __init__(
        self,
        *,
        places: Places,
        store: CountedStore,
        store_url: str,
        clock: Clock,
        supervisor: Supervisor,
        device: str,
        fast_path: BpfTarget,
        guard: TunnelGuard,
        wireguard: WireguardTarget,
        signing: LeaseSigning | None,
        docker: "DockerPlugin | None",
        docker_networks: "DockerNetworks | None",
        open_targets: Callable[[], AbstractAsyncContextManager[Sequence[Target]]],
        probes: PeerProbes | None,
        measured_key: str = CONFIG,
    ) -> None:
        """`measured_key`: key that is read to measure how fast the store answers."""
        self.places = places
        self._docker = docker
        self._docker_networks = docker_networks
        self._store = store
        self._store_url = store_url
        self._clock = clock
        self._supervisor = supervisor
        self._device = device
        self._fast_path = fast_path
        self._guard = guard
        self._wireguard = wireguard
        self._signing = signing
        self._open_targets = open_targets
        self._probes = probes
        self._measured_key = measured_key
        self._guard_log = GuardLog(guard, clock, lambda strangers: strangers_of(supervisor, strangers))

    async def run(self) -> None:
        """Run until cancelled. The data path continues to work."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervisor.run(), name="supervisor")
            tasks.create_task(self._guard_log.run(), name="log of the guard")
            if self._signing is not None:
                tasks.create_task(self._signing.run(), name="allow-list")
            if self._docker is not None and self._docker_networks is not None:
                tasks.create_task(self._docker.run(self._docker_networks.isolate), name="Docker plugin")
            if self._probes is not None:
                tasks.create_task(self._probes.run(), name="probes of peers")

    def reload(self) -> bool:
        """Read the allow-list again, and return True; return False if there is no allow-list."""
        return self._signing is not None and self._signing.reload()

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready in this network; None if it is ready."""
        return self._supervisor.waiting_for

    async def status(self) -> Status:
        """Return the current status, with the status of the forwarder."""
        forwarder = await forwarder_status(self.places.run_dir)
        strangers = await self._guard.strangers()
        status = status_of(self._supervisor, version=VERSION, store_url=self._store_url, clock=self._clock)
        fast_path = self._with_counters(status)
        return replace(
            status,
            backend=_with_traffic(status.backend, forwarder, fast_path),
            forwarder=forwarder,
            fast_path=fast_path,
            store=self._with_requests(status.store),
            wireguard=wireguard_of(self._supervisor, await self._contacts()),
            strangers=strangers_of(self._supervisor, strangers)[:STRANGERS_SHOWN],
            docker=None if self._docker is None else self._docker.status(),
            lease_signing=None if self._signing is None else self._signing.status(),
        )

    def _with_requests(self, store: StoreStatus | None) -> StoreStatus | None:
        """Return the status of the store with the counts of its requests, and with its latest answer."""
        if store is None:
            return None
        counted = self._store
        answered_at = counted.answered_at
        return replace(
            store,
            answer_s=counted.answer_s,
            answer_age_s=None if answered_at is None else self._clock.now() - answered_at,
            requests=counted.requests,
            lost_watches=dict(counted.lost_watches),
        )

    def _with_counters(self, status: Status) -> FastPathStatus | None:
        """Return the status of the fast path with the counters of the programs, if they are readable."""
        if status.fast_path is None:
            return None
        try:
            counts = self._fast_path.counts(self._device)
        except OSError:
            return status.fast_path
        packets = {outcome.value: packets for outcome, (packets, _) in counts.items()}
        sizes = {outcome.value: size for outcome, (_, size) in counts.items()}
        return replace(status.fast_path, counters=packets, byte_counters=sizes)

    async def _contacts(self) -> list[WireguardContact]:
        """Return the contact (handshake, endpoint, bytes) of each WireGuard peer; empty if `wg` does not
        answer.
        """
        with suppress(TargetError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                return await self._wireguard.contacts()
        return []

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key."""
        return await self._supervisor.rotate_key()

    def leases(self, most: int | None = None) -> list[Lease]:
        """Return all known leases, including the lease of this host, in the order of their subnets; with
        `most`, at most this number of random leases of other hosts.
        """
        held, known = self._supervisor.condition.held, self._supervisor.condition.leases
        own = None if held is None else known.by_subnet.get(held.lease.subnet)
        others = [lease for lease in known if lease is not own]
        if most is not None and most < len(others):
            others = random.sample(others, most)
        return sorted([*others, *([] if own is None else [own])], key=place_of)

    def change_ages(self) -> Mapping[IpNetwork, float]:
        """Return the seconds since the last change of each peer that changed, by its subnet."""
        return self._supervisor.peer_times.ages()

    async def matrix(self, hosts: Sequence[IpNetwork]) -> Matrix:
        """Return which of these hosts reach which other hosts, within 3 s; of all hosts, if no host is named.

        Raises:
            UsageError: a host has no lease, there are too many hosts, or fewer than two.
        """
        return await self._supervisor.matrix.ask(hosts)

    async def peer_bytes(self, hosts: Sequence[IpNetwork]) -> Mapping[IpNetwork, int]:
        """Return the bytes that these hosts received from this host, as counted within the last second;
        without the hosts that do not count or do not answer.
        """
        return await self._supervisor.peer_bytes.ask(hosts)

    def events(self) -> list[JournalEntry]:
        """Return the events of the passes, with the latest event last."""
        return self._supervisor.journal.entries()

    async def preview(self, text: str | None) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config in
        force.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host has no lease yet.
            TargetError: the state of the host cannot be read.
        """
        async with self._open_targets() as targets:
            return await self._supervisor.preview(text, targets)

    def probe(self, echoes: Mapping[IpNetwork, Echo]) -> Mapping[IpNetwork, EchoResult]:
        """Return the latest results of these probes by peer, and repeat the probes for some seconds.

        A peer without a result was not probed yet. Nothing is sent without --http.
        """
        return {} if self._probes is None else self._probes.ask(echoes)

    @property
    def probe_trouble(self) -> Notice | None:
        """The reason why the kernel refuses the probes; None if they are sent."""
        return None if self._probes is None else self._probes.trouble

    async def store_times(self) -> StoreTimes:
        """Send some requests to the store, one after the other, and return how long the requests took. All
        requests together take at most _STORE_S.
        """
        times: list[float] = []
        try:
            async with asyncio.timeout(_STORE_S):
                while len(times) < _STORE_REQUESTS:
                    began = self._clock.now()
                    await self._store.get(self._measured_key)
                    times.append(self._clock.now() - began)
        except TimeoutError:
            return StoreTimes(answered_s=tuple(times), failure=f"no answer within {_STORE_S:g} s")
        except StoreError as error:
            return StoreTimes(answered_s=tuple(times), failure=str(error))
        return StoreTimes(answered_s=tuple(times))

    async def examine(self) -> bytes:
        """Return the document of `flannelctl doctor --json`. Doctor runs as another process.

        Raises:
            TargetError: doctor cannot run, did not exit in time, or failed.
        """
        places = self.places
        ran = await run_program(
            *(sys.executable, "-I", "-c", _DOCTOR, "doctor", "--json"),
            f"--run-dir={places.run_dir}",
            f"--state-dir={places.state_dir}",
            f"--subnet-file={places.subnet_file}",
        )
        if ran.status not in (0, 1):
            raise TargetError(
                f"flannelctl doctor failed: {ran.cause}", hint="Run flannelctl doctor as root on this host."
            )
        return ran.output.encode(errors="replace")

    def config_text(self) -> str | None:
        """Return the network config in use; None if there is none."""
        return self._supervisor.condition.config.text

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: the config was not written, or the result is unknown.
        """
        await self._store.write(Put(key=CONFIG, value=text.encode(), ttl_s=None, expected=None))


def _with_traffic(
    backend: BackendStatus | None, forwarder: ForwarderStatus | None, fast_path: FastPathStatus | None
) -> BackendStatus | None:
    """Return the backend with the bytes that it received and sent.

    The programs of the fast path move packets without passing the device, so the device does not count them.
    """
    if backend is None or backend.link is None:
        return backend
    by_programs = carried_by_programs({} if fast_path is None else fast_path.byte_counters)
    received: int | None
    sent: int | None
    if backend.type != "udp":
        received, sent = device_bytes(backend.link) or (None, None)
        if received is not None and sent is not None:
            received, sent = received + by_programs.received, sent + by_programs.sent
    elif forwarder is None and fast_path is None:
        received = sent = None
    else:
        by_process = {} if forwarder is None else forwarder.counters
        received = by_process.get("received_bytes", 0) + by_programs.received
        sent = by_process.get("sent_bytes", 0) + by_programs.sent
    return replace(backend, received=received, sent=sent)


async def _received(
    guard: TunnelGuardTarget, fast_path: BpfTarget, device: str, own: Lease, peer: Lease
) -> int | None:
    """Return the bytes of the tunnel packets from a peer; None if they are not counted.

    The tunnel guard counts the packets that the programs of the fast path leave to the kernel.

    Raises:
        TargetError: the kernel does not return the counters.
    """
    by_programs = fast_path.received_bytes(device, own, peer)
    by_guard = await guard.received_bytes(device, peer)
    return None if by_programs is None or by_guard is None else by_programs + by_guard


@asynccontextmanager
async def open_network(
    *,
    options: FlanneldOptions,
    places: Places,
    store: Store,
    store_url: str,
    store_log: StoreLog,
    notify: Callable[[str], object],
    alive: Callable[[], object],
    audit_s: float,
    own_node: OwnNode | None = None,
    docker_networks: "DockerNetworks | None" = None,
    name: str = "",
) -> AsyncIterator[HostNetwork]:
    """Open the adapters of one network, which has its own device. The adapters are closed when the `async
    with` block ends.

    Args:
        options: options of the daemon.
        places: directories and files of this network.
        store: store with the leases of this network.
        store_url: URL of the store, for status and log.
        store_log: logs the state of the store connection, for all networks.
        notify: sends a message to the service manager.
        alive: function that is called after each turn of the reconciler's loop.
        audit_s: longest interval between two passes.
        own_node: Node of this host in a Kubernetes cluster. The name of the Node is the identity of the host.
        docker_networks: the Docker plugins of all networks of the daemon; None without the plugin.
        name: the name of the network; "" for a single network.

    Raises:
        BusyError: every device name is in use.
        TargetError: the kernel, the run directory or the state directory is unusable.
    """
    if own_node is not None:
        options = replace(options, node_id=own_node.name)
    async with AsyncExitStack() as opened:
        enter, clock = opened.enter_async_context, BoottimeClock()
        counted = CountedStore(store, clock.now)
        interfaces = await enter(KernelInterfaces())
        claim, standing = await _claim(places, interfaces)
        opened.enter_context(closing(claim))
        linux, fast_path = await enter(LinuxTarget()), await enter(BpfTarget(FastPath(str(places.bpf))))
        forwarder, rules = await enter(ForwarderTarget(places.run_dir)), await enter(TunnelGuardTarget())
        wireguard_go = await enter(WireguardGo(places.run_dir))
        keys = _wireguard_keys(options, places, wireguard_go)
        wireguard = WireguardTarget(keys.private, wireguard_go)
        signing = _signing(options, places, store_url)
        world = World(
            store=counted,
            store_log=store_log,
            targets=(
                linux,
                forwarder,
                wireguard,
                fast_path,
                await enter(IptablesTarget(options.iptables_resync_s)),
                await enter(NftTarget(options.iptables_resync_s)),
                rules,
                await enter(FileTarget()),
            ),
            interfaces=interfaces,
            bridges=await enter(KernelBridges()),
            clock=clock,
            memory=FileMemory(places.last_known),
            notify=notify,
            alive=alive,
            kernel_path=fast_path,
            wireguard=keys,
            contacts=wireguard.contacts,
            send_echoes=_send_echoes,
            received=partial(_received, rules, fast_path, claim.name),
            signing=signing,
            own_node=own_node,
            draw=random.SystemRandom().randrange,
            reidentify=lambda: _with_key(
                new_identity(*_directories(places), options.machine_id_file), places
            ),
        )
        supervisor = Supervisor(world, _host_options(options, places, claim.name, standing, audit_s))
        docker = probes = None
        if options.http is not None:
            probes = PeerProbes(_send_echoes, clock)
        if docker_networks is not None:
            from pyflannel.engine.docker_networks import SupervisedHost
            from pyflannel.engine.docker_plugin import DockerPlugin

            docker = DockerPlugin(
                host=SupervisedHost(supervisor),
                links=await enter(KernelContainerLinks()),
                memory=FileMemory(places.docker, content="the networks of Docker", is_vital=True),
                clock=clock,
                network=name,
            )
            await docker.load()
            docker_networks.add(docker)
            opened.callback(docker_networks.remove, docker)
        yield HostNetwork(
            places=places,
            store=counted,
            store_url=store_url,
            clock=clock,
            supervisor=supervisor,
            device=claim.name,
            fast_path=fast_path,
            guard=TunnelGuard(claim.name, fast_path, forwarder, rules),
            wireguard=wireguard,
            signing=signing,
            docker=docker,
            docker_networks=docker_networks,
            open_targets=lambda: _reading_targets(places, keys, wireguard_go),
            probes=probes,
            # In a cluster, the config is a file, which does not show how fast the API server answers.
            measured_key=CONFIG if own_node is None else NODES + own_node.name,
        )


@asynccontextmanager
async def _reading_targets(
    places: Places, keys: WireguardKeys, wireguard_go: WireguardGo
) -> AsyncIterator[Sequence[Target]]:
    """Open targets that read the host for the preview of another plan. The targets of the reconciler cannot
    be used for this purpose, because they keep data of the current plan.
    """
    async with AsyncExitStack() as opened:
        enter = opened.enter_async_context
        yield (
            await enter(LinuxTarget()),
            await enter(ForwarderTarget(places.run_dir)),
            WireguardTarget(keys.private, wireguard_go),
            await enter(BpfTarget(FastPath(str(places.bpf)))),
            await enter(IptablesTarget()),
            await enter(NftTarget()),
            await enter(TunnelGuardTarget()),
            await enter(FileTarget()),
        )


async def _send_echoes(echoes: Sequence[Echo]) -> list[EchoResult]:
    """Send echo requests and return the result of each.

    Raises:
        TargetError: the kernel refuses to send or to receive echo packets.
    """
    from pyflannel.kernel.network.echo import send_echoes  # imported only if there are peers

    try:
        return await send_echoes(echoes)
    except* OSError as group:
        failed = group.exceptions[0]
    raise TargetError(f"cannot receive ICMP messages: {failed}", hint="Read the log of the kernel: dmesg.")


def _signing(options: FlanneldOptions, places: Places, store_url: str) -> LeaseSigning | None:
    """Return the object that signs and checks leases; None if the operator disabled signatures.

    Raises:
        UsageError: the file of allowed keys or of operators is unusable.
    """
    if options.lease_signing == "off":
        return None
    prefix = parse_store_url(store_url).prefix or ""
    return LeaseSigning(
        requires=options.lease_signing == "require",
        prefix=prefix,
        key_of=lambda owner: lease_key(places.lease_key, owner),
        allowed=_allow_list(options, places, prefix),
        memory=FileMemory(places.lease_counters),
        clock=BoottimeClock(),
    )


def _allow_list(options: FlanneldOptions, places: Places, prefix: str) -> AllowList | None:
    if options.lease_operators is not None:
        operators = _key_file("lease-operators", Path(options.lease_operators))
        return SignedKeys(operators, prefix, FileMemory(places.allow_list), BoottimeClock())
    return None if options.lease_keys is None else _key_file("lease-keys", Path(options.lease_keys))


def _key_file(flag: str, path: Path) -> AllowedKeys:
    file = KeyListFile(path)
    try:
        return AllowedKeys(file, BoottimeClock(), parse_allowed_keys(file.read_now()))
    except (TargetError, WireError) as error:
        raise UsageError(f"--{flag}: {path}: {error}", hint=error.hint) from error


def _wireguard_keys(options: FlanneldOptions, places: Places, wireguard_go: WireguardGo) -> WireguardKeys:
    given = options.wireguard_key_file
    path = places.wireguard_key if given is None else Path(given)
    return WireguardKeys(path, places.original_wireguard_key, wireguard_go.objection)


async def _claim(places: Places, interfaces: KernelInterfaces) -> tuple[DeviceClaim, str | None]:
    """Claim a device name and record the name in the run directory. The name of the previous run is
    preferred.

    Return the claim of a device name, and the identity on the device of the previous run.
    """
    kept, found = places.device(), await interfaces.observe()
    names = device_names(
        places.mark,
        found,
        kept=kept,
        # read only if needed, because a host may have many routes
        protocols=await route_protocols() if kept is None else (),
    )
    claim = DeviceClaim(names)
    if claim.name != kept:
        _keep(_device_file(places, claim.name))  # before any object with that name is created
    return claim, identity_on_device(places.mark, claim.name, found)


def _device_file(places: Places, name: str) -> HostFile:
    return HostFile(path=str(places.device_file), text=f"{name}\n")


def _keep(file: HostFile) -> None:
    try:
        replace_file(file.path, file.text.encode())
    except OSError as error:
        raise TargetError(
            f"{file.path} cannot be written: {error.strerror}",
            hint=remedy(
                error,
                "Make the run directory writable for flanneld, or choose another directory with --run-dir.",
            ),
        ) from error


def _host_options(
    options: FlanneldOptions, places: Places, device: str, standing: str | None, audit_s: float
) -> HostOptions:
    return HostOptions(
        identity=_with_key(
            read_identity(*_directories(places), options.machine_id_file, options.node_id, standing=standing),
            places,
        ),
        host_name=host_name(),
        underlay=UnderlayOptions(
            ifaces=options.iface,
            iface_regexes=options.iface_regex,
            can_reach=options.iface_can_reach,
            public_ip=options.public_ip,
            public_ipv6=options.public_ipv6,
        ),
        plan=PlanOptions(
            subnet_file=str(places.subnet_file),
            other_files=(_device_file(places, device),),
            packet_filter=replace(options.packet_filter, users=_senders()),
            device=device,
            mark=places.mark,
            kernel=kernel_release(),
            has_blackhole=options.has_blackhole,
            gro=options.fast_path_gro,
            serves_docker=options.docker_socket is not None,
        ),
        subnet_env=_old_text(places.subnet_file),
        lease_ttl_s=options.lease_ttl_s,
        renew_margin_s=options.renew_margin_s,
        renumbers=options.on_subnet_lost == "renumber",
        fast_path=options.fast_path,
        audit_s=audit_s,
        requires_encryption=options.requires_encryption,
    )


def _with_key(identity: Identity, places: Places) -> Identity:
    """Return the identity with the public key with which the host signs its lease."""
    return replace(identity, signing_key=public_lease_key(places.lease_key, identity.owner))


def _directories(places: Places) -> tuple[str, str]:
    """Return the state directory and the run directory that contain the identity of the host."""
    return str(places.shared.state_dir), str(places.shared.run_dir)


def _old_text(path: Path) -> str | None:
    """Return the subnet file of the previous run; None if it is unreadable, in which case flanneld
    replaces it later.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


_USER = "flanneld"
"""The user as which the systemd unit runs flanneld."""


def _senders() -> tuple[int, ...]:
    """Return the users besides root whose sockets may carry tunnel packets: the user of this process, and the
    user of the unit.

    A forwarder may still use the socket of a former daemon, which ran as another user.
    """
    users = {os.geteuid()}
    with suppress(KeyError):
        users.add(pwd.getpwnam(_USER).pw_uid)
    return tuple(sorted(users - {0}))
