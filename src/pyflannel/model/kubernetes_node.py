"""The parts of a Node of a Kubernetes cluster that flannel needs, and the Node of this host."""

from collections.abc import Mapping

from msgspec import Struct

DEFAULT_PREFIX = "flannel.alpha.coreos.com/"
"""Prefix of the names of flannel's annotations, unless `--kube-annotation-prefix` sets another prefix."""


class NodeCondition(Struct, frozen=True, kw_only=True):
    """The condition NetworkUnavailable of a Node.

    Attributes:
        is_unavailable: status of the condition: True, False, or None for Unknown.
        reason: reason for programs, in camel case.
        message: text for people.
    """

    is_unavailable: bool | None
    reason: str
    message: str


IS_UP = NodeCondition(is_unavailable=False, reason="FlannelIsUp", message="Flannel is running on this node")
"""The condition of a Node whose pods can reach the pods of other Nodes. Source: flannel 0.28.9."""


IS_REMOVED = NodeCondition(
    is_unavailable=True, reason="FlannelRemoved", message="Flannel was removed from this node"
)
"""The condition of a Node from which a cleanup has removed flannel. No pod is scheduled on this Node."""


class Node(Struct, frozen=True, kw_only=True):
    """A Node of a Kubernetes cluster, with the values that flannel needs.

    Attributes:
        uid: identifier of this object. A Node that is deleted and created again has another identifier.
        pod_cidrs: the prefixes that the cluster assigned to the pods of the Node, as text.
        annotations: annotations whose name begins with flannel's prefix.
        condition: condition NetworkUnavailable of the Node; None if the Node has no such condition.
    """

    name: str
    uid: str = ""
    pod_cidrs: tuple[str, ...] = ()
    annotations: Mapping[str, str]
    condition: NodeCondition | None = None


class NodeEvent(Struct, frozen=True, kw_only=True):
    """An Event of a Node, which `kubectl describe node` shows.

    Attributes:
        is_warning: type of the Event: Warning or Normal.
        reason: reason for programs, in camel case.
        message: text for people.
    """

    is_warning: bool
    reason: str
    message: str


class OwnNode(Struct, frozen=True, kw_only=True):
    """The Node of this host.

    Attributes:
        prefix: prefix of the names of flannel's annotations, including its last character, `/` or `-`.
        sets_condition: True to set the condition NetworkUnavailable (`--set-node-network-unavailable`).
    """

    name: str
    prefix: str = DEFAULT_PREFIX
    sets_condition: bool = True
