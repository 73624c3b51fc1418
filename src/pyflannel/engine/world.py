"""The ports of the engine of one host, and the operator's options."""

from collections.abc import Callable, Sequence

from msgspec import Struct, field

from pyflannel.engine.fast_path import Choice
from pyflannel.engine.host_followers import LOOK_S
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.reconciler import AUDIT_S
from pyflannel.model.host import GroChoice, HostFile
from pyflannel.model.kubernetes_node import OwnNode
from pyflannel.model.lease import LEASE_TTL_S, Identity, Lease
from pyflannel.model.link import MARK
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.wireguard import WireguardContact
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import (
    BridgeSource,
    Clock,
    CountReceived,
    InterfaceSource,
    KernelPath,
    Memory,
    SendEchoes,
    Store,
    Target,
    WireguardContacts,
    WireguardSource,
)


async def _no_contacts() -> Sequence[WireguardContact]:
    return ()


async def _no_count(_own: Lease, _peer: Lease) -> int | None:
    return None


class PlanOptions(Struct, frozen=True, kw_only=True):
    """The inputs of a plan that do not change while the host runs.

    Attributes:
        subnet_file: path of subnet.env.
        other_files: further planned files.
        packet_filter: options of the filter rules.
        device: device name that the daemon claims.
        mark: alias of the links of the daemon.
        kernel: release of the running kernel; "" if unknown.
        has_blackhole: True to drop packets to this host's subnet that no local bridge accepts.
        gro: True to coalesce received TCP segments of the fast path.
        serves_docker: True if the host has the network plugin for Docker.
    """

    subnet_file: str
    other_files: tuple[HostFile, ...] = ()
    packet_filter: FilterOptions = field(default_factory=FilterOptions)
    device: str = FIRST_DEVICE
    mark: str = MARK
    kernel: str = ""
    has_blackhole: bool = False
    gro: GroChoice = "auto"
    serves_docker: bool = False


class World(Struct, frozen=True, kw_only=True):
    """The ports and functions of one host in one network.

    Attributes:
        notify: function that notifies the service manager (sd_notify).
        alive: function that is called in each turn of the reconciler's loop.
        draw: function that returns a random number below its argument.
        store_log: log of the store's outages, shared by all users of the store.
        reidentify: function that creates and saves a new identity.
        memory: object that saves the last known leases.
        kernel_path: function that returns the fast-path features of the kernel; None if only an attempt can
            show them.
        wireguard: the WireGuard key of this host; None if the host can have no key.
        contacts: function that returns the contact with each WireGuard peer.
        send_echoes: function that sends echo requests and returns their results; None if probes are off.
        received: function that returns the bytes from a peer that the kernel counted.
        signing: object that signs and checks leases; None if signatures are off.
        own_node: the Node of this host, if the store is a Kubernetes cluster; None for any other store.
    """

    store: Store
    store_log: StoreLog
    targets: Sequence[Target]
    interfaces: InterfaceSource
    bridges: BridgeSource
    clock: Clock
    memory: Memory
    notify: Callable[[str], object]
    draw: Callable[[int], int]
    reidentify: Callable[[], Identity]
    alive: Callable[[], object] = lambda: None
    kernel_path: KernelPath | None = None
    wireguard: WireguardSource | None = None
    contacts: WireguardContacts = _no_contacts
    send_echoes: SendEchoes | None = None
    received: CountReceived = _no_count
    signing: LeaseSigning | None = None
    own_node: OwnNode | None = None


class HostOptions(Struct, frozen=True, kw_only=True):
    """The operator's options for this host.

    Attributes:
        host_name: the host name in the published lease; None to publish no name.
        plan: options of the plan.
        subnet_env: text of subnet.env from the previous run, or None.
        audit_s: longest time between two scans of the host.
        look_s: longest time between two checks of its interfaces.
        requires_encryption: True to refuse every backend that sends unencrypted packets, regardless of the
            network config.
    """

    identity: Identity
    host_name: str | None = None
    underlay: UnderlayOptions
    plan: PlanOptions
    subnet_env: str | None = None
    lease_ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600
    renumbers: bool = False
    audit_s: float = AUDIT_S
    look_s: float = LOOK_S
    fast_path: Choice = "auto"
    requires_encryption: bool = False
