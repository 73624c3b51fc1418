"""A Node of a Kubernetes cluster, as far as flannel needs it, and the Node of this host."""

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_PREFIX = "flannel.alpha.coreos.com/"
"""Start of the names of flannel's annotations, unless `--kube-annotation-prefix` names another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCondition:
    """The condition NetworkUnavailable of a Node.

    Attributes:
        is_unavailable: its status: True, False, or None for Unknown.
        reason: for programs, in camel case.
        message: for people.
    """

    is_unavailable: bool | None
    reason: str
    message: str


IS_UP = NodeCondition(is_unavailable=False, reason="FlannelIsUp", message="Flannel is running on this node")
"""The condition of a Node whose pods reach those of the others. Source: flannel 0.28.9."""


IS_REMOVED = NodeCondition(
    is_unavailable=True, reason="FlannelRemoved", message="Flannel was removed from this node"
)
"""The condition of a Node from which a cleanup has removed flannel. No pod is scheduled there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node.

    Attributes:
        uid: identifier of this object. A Node that is deleted and created again has another one.
        pod_cidrs: the prefixes that the cluster assigned to the pods of the Node, as text.
        annotations: those whose name begins with flannel's prefix.
        condition: its condition NetworkUnavailable; None if it has none.
    """

    name: str
    uid: str = ""
    pod_cidrs: tuple[str, ...] = ()
    annotations: Mapping[str, str]
    condition: NodeCondition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvent:
    """An Event of a Node, which `kubectl describe node` shows.

    Attributes:
        is_warning: its type: Warning or Normal.
        reason: for programs, in camel case.
        message: for people.
    """

    is_warning: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNode:
    """The Node of this host.

    Attributes:
        prefix: start of the names of flannel's annotations, with its last character: `/` or `-`.
        sets_condition: set the condition NetworkUnavailable (`--set-node-network-unavailable`).
    """

    name: str
    prefix: str = DEFAULT_PREFIX
    sets_condition: bool = True
