"""Kubernetes as the store: its flags and variables, and the adapters that they select.

The modules of the Kubernetes store are imported only if Kubernetes is selected.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from pyflannel.errors import UsageError, WireError
from pyflannel.model.kubernetes_node import DEFAULT_PREFIX, IS_REMOVED, OwnNode
from pyflannel.model.store_record import Put
from pyflannel.ports import Clock
from pyflannel.wire.go_flags import Flag, Given, Settings
from pyflannel.wire.kubernetes_node import NODES, annotation_prefix, format_removal, rfc3339

if TYPE_CHECKING:
    from pyflannel.engine.node_events import NodeEvents, PolicyWarning
    from pyflannel.stores.kubernetes.access import Access
    from pyflannel.stores.kubernetes.store import KubernetesStore

KUBERNETES_FLAGS = (
    Flag(
        name="kube-subnet-mgr",
        kind="boolean",
        meaning="keep leases in the Nodes of a Kubernetes cluster, which assigns the subnets",
    ),
    Flag(
        name="kube-api-url",
        meaning="URL of the Kubernetes API; default: the URL in the kubeconfig, or the URL of the cluster "
        "of the pod",
    ),
    Flag(
        name="kubeconfig-file",
        meaning="kubeconfig file with the credentials; default: the service account of the pod",
    ),
    Flag(
        name="kube-annotation-prefix",
        default="flannel.alpha.coreos.com",
        meaning="prefix of the annotations of a Node",
    ),
    Flag(
        name="net-config-path",
        default="/etc/kube-flannel/net-conf.json",
        meaning="file of the network config in Kubernetes",
    ),
    Flag(
        name="set-node-network-unavailable",
        kind="boolean",
        default="true",
        meaning="set the condition NetworkUnavailable of the Node",
    ),
    Flag(
        name="warn-network-policies",
        kind="boolean",
        meaning="warn if NetworkPolicies exist and no known program enforces them",
    ),
)

URL = "kube:"
"""URL of the store in the status."""


class KubernetesOptions(Struct, frozen=True, kw_only=True):
    """The cluster, and the Node of this host in it.

    Attributes:
        prefix: prefix of the names of annotations.
        config: file of the network config.
        node: name of the Node; None to find the Node by `pod`.
        pod: namespace and name of the pod of flanneld.
        warns: warn about NetworkPolicies that no program enforces.
    """

    access: "Access"
    prefix: str = DEFAULT_PREFIX
    config: Path
    sets_condition: bool = True
    node: str | None = None
    pod: tuple[str, str] | None = None
    warns: bool = False

    def store(self, clock: Clock) -> "KubernetesStore":
        """Return the store. The store connects to the cluster at its first request."""
        from pyflannel.stores.kubernetes.client import Client
        from pyflannel.stores.kubernetes.store import KubernetesStore

        client = Client(self.access, clock)
        return KubernetesStore(client, clock, config=self.config, prefix=self.prefix)

    async def node_of_pod(self, namespace: str, pod: str, clock: Clock) -> str:
        """Return the name of the Node on which a pod runs.

        Raises:
            StoreError: the cluster does not answer, or the pod has no Node.
        """
        from pyflannel.stores.kubernetes.client import Client
        from pyflannel.stores.kubernetes.store import node_of_pod

        return await node_of_pod(Client(self.access, clock), namespace, pod)

    def events(self, node: str, clock: Clock) -> "NodeEvents":
        """Return the Events of a Node. Requests for Events use a separate connection."""
        from pyflannel.engine.node_events import NodeEvents

        return NodeEvents(partial(self.store(clock).announce, node), clock)

    def policy_warning(self, node: str, clock: Clock) -> "PolicyWarning":
        """Return the warning about NetworkPolicies that no program enforces."""
        from pyflannel.engine.node_events import PolicyWarning
        from pyflannel.kernel.filters.ruleset import policy_enforcer

        store = self.store(clock)
        return PolicyWarning(
            store.has_network_policies, policy_enforcer, partial(store.announce, node), clock
        )

    async def release(self, node: str, clock: Clock) -> None:
        """Remove the annotations of flanneld from a Node, and report that the Node has no network.

        Raises:
            StoreError: the cluster does not answer, or refuses the change.
        """
        condition = IS_REMOVED if self.sets_condition else None
        patch = format_removal(self.prefix, condition, rfc3339(clock.utc()))
        await self.store(clock).write(Put(key=NODES + node, value=patch, ttl_s=None, expected=None))

    def own_node(self, name: str) -> OwnNode:
        """Return the Node of this host."""
        return OwnNode(name=name, prefix=self.prefix, sets_condition=self.sets_condition)


def chosen_kubernetes(settings: Settings, environment: Mapping[str, str]) -> KubernetesOptions | None:
    """Return the cluster that the flags and variables select; None without `--kube-subnet-mgr`.

    Raises:
        UsageError: a flag or a variable is invalid; message and hint fit one line.
    """
    if not settings.last("kube-subnet-mgr").value:
        return None
    for name in ("networks", "watch-networks"):
        if (given := settings.last(name)).value:
            raise UsageError(
                f"{given.origin} cannot be used with --kube-subnet-mgr", hint="A cluster has one network."
            )
    if (signing := settings.last("lease-signing")).value != "off":
        raise UsageError(
            f"{signing.origin} cannot be used with --kube-subnet-mgr",
            hint="The policy in deploy/kubernetes lets each host write only to its own Node.",
        )
    node = environment.get("NODE_NAME") or None
    pod = environment.get("POD_NAMESPACE", ""), environment.get("POD_NAME", "")
    if node is None and not all(pod):
        raise UsageError(
            "env variables POD_NAME and POD_NAMESPACE must be set",
            hint="Set both, or set NODE_NAME to the name of this host's Node.",
        )
    from pyflannel.stores.kubernetes.access import Access

    kubeconfig = str(settings.last("kubeconfig-file").value)
    config = settings.last("net-config-path")
    return KubernetesOptions(
        access=Access(
            url=str(settings.last("kube-api-url").value),
            kubeconfig=Path(kubeconfig) if kubeconfig else None,
            environment=environment,
        ),
        prefix=_prefix(settings.last("kube-annotation-prefix")),
        config=Path(str(config.value or config.flag.default)),
        sets_condition=bool(settings.last("set-node-network-unavailable").value),
        node=node,
        pod=pod if node is None else None,
        warns=bool(settings.last("warn-network-policies").value),
    )


def _prefix(given: Given) -> str:
    try:
        return annotation_prefix(str(given.value or given.flag.default))
    except WireError as error:
        raise UsageError(f"{given.origin}={given.value!r}: {error}", hint=error.hint) from error
