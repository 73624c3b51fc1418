"""Composition of one network of this host: the adapters, the engine, and the API."""

import os
import pwd
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.host_network import HostNetwork
from pyflannel.assembly.options import FlanneldOptions
from pyflannel.assembly.stores import parse_store_url
from pyflannel.assembly.tunnel_counters import TunnelCounters
from pyflannel.engine.allowed_keys import AllowedKeys, AllowList, SignedKeys
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.peer_probes import PeerProbes
from pyflannel.engine.supervisor import Supervisor
from pyflannel.engine.world import HostOptions, PlanOptions, World
from pyflannel.errors import TargetError, UsageError, WireError, remedy
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.files import FileMemory, FileTarget, replace_file
from pyflannel.kernel.host.lease_key import KeyListFile, lease_key, public_lease_key
from pyflannel.kernel.host.locks import DeviceClaim
from pyflannel.kernel.host.machine import (
    BoottimeClock,
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
from pyflannel.model.host import HostFile
from pyflannel.model.kubernetes_node import OwnNode
from pyflannel.model.lease import Identity
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.plan.ownership import device_names, identity_on_device
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import Store, Target
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.wireguard_go import WireguardGo
from pyflannel.stores.counted import CountedStore
from pyflannel.wire.kubernetes_node import NODES
from pyflannel.wire.lease_record import CONFIG
from pyflannel.wire.lease_signature import parse_allowed_keys

if TYPE_CHECKING:
    from pyflannel.engine.docker_networks import DockerNetworks


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
        counters = TunnelCounters(claim.name, fast_path, forwarder, rules)
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
            received=counters.received_bytes,
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
            counters=counters,
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
        TargetError: the kernel refuses to send or to receive echo packets, or this process has no free file
            descriptor.
    """
    try:
        from pyflannel.kernel.network.echo import send_echoes  # imported only if there are peers

        return await send_echoes(echoes)
    except* (OSError, ImportError) as group:  # ImportError: no directory of modules could be opened
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
