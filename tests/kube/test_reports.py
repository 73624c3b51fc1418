"""Reports of flanneld in its Node: Events, and the condition NetworkUnavailable."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import Lab
from pyflannel.lab.waiting import wait_until
from testlab.cluster import STRATEGIC, Cluster, Member, pod_on

MANIFESTS = Path(__file__).parents[2] / "deploy/kubernetes"
SOON_S = 40.0
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
PUBLISH = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/flannel-publish"


@pytest.fixture
def token(members: list[Member], cluster: Cluster) -> str:
    """The token of a pod of flanneld on node1."""
    return cluster.token(pod=pod_on("node1", cluster))


@pytest.fixture
def member(members: list[Member], cluster: Cluster, token: str) -> Member:
    """A host whose flanneld uses this token."""
    cluster.kubeconfig("flannel", token=token)
    return members[0]


@contextmanager
def rejecting(cluster: Cluster, token: str) -> Iterator[str]:
    """A policy of an operator that rejects every change of a Node by flanneld, during the block."""
    name, text = "frozen", "Nodes are frozen by the operator"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]}
    validation = {"expression": "!request.userInfo.username.endsWith(':flannel')", "message": text}
    spec = {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]}
    cluster.must("POST", POLICIES, {"metadata": {"name": name}, "spec": spec})
    binding = {"policyName": name, "validationActions": ["Deny"]}
    cluster.must("POST", BINDINGS, {"metadata": {"name": name}, "spec": binding})
    try:
        until_rejected(cluster, token, text)
        yield text
    finally:
        cluster.must("DELETE", f"{BINDINGS}/{name}")
        cluster.must("DELETE", f"{POLICIES}/{name}")


def until_rejected(cluster: Cluster, token: str, text: str) -> None:
    """Wait until the server rejects changes of the Node by flanneld with this text."""
    patch = {"metadata": {"annotations": {"flannel.alpha.coreos.com/x": "y"}}}
    path = "/api/v1/nodes/node1/status?dryRun=All"
    wait_until(
        lambda: text in str(cluster.call("PATCH", path, patch, STRATEGIC, token)[1]),
        what=f"a change is rejected: {text}",
        deadline_s=SOON_S,
    )


def until_event(cluster: Cluster, kind: str, text: str) -> None:
    def is_there() -> bool:
        return any(found == kind and text in message for found, message in cluster.events("node1"))

    try:
        wait_until(is_there, what=f"the Event {text}", deadline_s=SOON_S)
    except LabError as error:
        error.add_note(str(cluster.events("node1")))
        raise


def test_a_malformed_config_and_its_correction_cause_events_of_the_node(
    member: Member, cluster: Cluster
) -> None:
    member.configure("{")
    member.launch()
    until_event(cluster, "Warning", "flanneld is waiting for a valid network config: ")
    member.configure({"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}})
    until_event(cluster, "Normal", "Flannel is running on this node")


def test_a_broken_data_path_sets_a_condition_of_the_node_until_it_is_repaired(
    member: Member, cluster: Cluster
) -> None:
    def status() -> tuple[str, str] | None:
        found = cluster.condition("node1")
        return None if found is None else (found["status"], found["reason"])

    member.start()
    wait_until(lambda: status() == ("False", "FlannelIsUp"), what="the condition", deadline_s=SOON_S)
    # Another program has a device with the same VNI and port, so the kernel refuses the device of flanneld.
    other = "link add other type vxlan id 1 dev eth0 dstport 8472\\nlink set other up"
    # Repeated if flanneld creates its device again between the deletion and the creation.
    script = f"until printf 'link delete flannel.1\\n{other}\\n' | ip -batch -; do sleep 0.1; done"
    break_path = ["sh", "-ec", script]
    member.host.run(break_path)
    wait_until(lambda: status() == ("True", "FlannelPathBroken"), what="the failure", deadline_s=SOON_S)
    until_event(cluster, "Warning", "flannel.1")
    member.host.run(["ip", "link", "delete", "other"])
    wait_until(lambda: status() == ("False", "FlannelIsUp"), what="the repair", deadline_s=SOON_S)

    member.stop()
    member.host.run(break_path)
    member.launch()  # as after a boot, the Node has the condition of the previous run
    wait_until(lambda: status() == ("True", "FlannelPathBroken"), what="the failure", deadline_s=SOON_S)
    member.host.run(["ip", "link", "delete", "other"])
    wait_until(lambda: status() == ("False", "FlannelIsUp"), what="the repair", deadline_s=SOON_S)


def test_a_rejected_or_forbidden_patch_causes_an_event_and_publishes_nothing(
    member: Member, cluster: Cluster, token: str
) -> None:
    with rejecting(cluster, token) as text:
        member.launch()
        member.until_waits_for("rejects the request")
        assert text in member.waits_for()
        until_event(cluster, "Warning", text)
        assert cluster.annotations("node1") == {}
    member.until_ready()
    member.stop()

    binding = cluster.must("GET", PUBLISH)
    cluster.must("DELETE", PUBLISH)
    cluster.annotate("node1", public_ip=None)
    member.launch()
    member.until_waits_for("forbids the request: nodes")
    until_event(cluster, "Warning", "forbids the request: nodes")
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]
    cluster.must("POST", PUBLISH.rpartition("/")[0], binding)
    member.until_ready()


WEBHOOK = """
import http.server, json, ssl, sys

class Refusal(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        review["response"] = {
            "uid": review.pop("request")["uid"], "allowed": False, "status": {"message": "not on Fridays"}
        }
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.HTTPServer(("127.0.0.1", 9443), Refusal)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
"""A webhook that refuses every change."""

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def test_a_webhook_that_rejects_a_patch_or_is_unreachable_is_named(
    lab: Lab, member: Member, cluster: Cluster, token: str
) -> None:
    files = [str(cluster.directory / name) for name in ("api.crt", "api.key")]
    webhook = lab.router.start([sys.executable, "-c", WEBHOOK, *files], name="webhook")
    authority = base64.b64encode((cluster.directory / "ca.crt").read_bytes()).decode()
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]}
    hook = {
        "name": "frozen.example.org",
        "clientConfig": {"url": "https://127.0.0.1:9443/", "caBundle": authority},
        "rules": [rule],
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 5,
    }
    cluster.must("POST", WEBHOOKS, {"metadata": {"name": "frozen"}, "webhooks": [hook]})
    try:
        until_rejected(cluster, token, "not on Fridays")
        member.launch()
        member.until_waits_for('webhook "frozen.example.org" denied the request: not on Fridays')
        until_event(cluster, "Warning", "not on Fridays")
        webhook.kill()
        member.until_waits_for('failed calling webhook "frozen.example.org"')
        until_event(cluster, "Warning", "failed calling webhook")
        assert 'failed calling webhook "frozen.example.org"' in member.host.flannelctl("status", check=False)
        assert "Repair this webhook" in member.log()
        assert cluster.annotations("node1") == {}
    finally:
        cluster.must("DELETE", f"{WEBHOOKS}/frozen")
    member.until_ready()
    assert cluster.annotations("node1")["kube-subnet-manager"] == "true"


def test_a_renamed_node_causes_an_event_for_the_former_name(member: Member, cluster: Cluster) -> None:
    member.start()
    cluster.delete_node("node1")
    cluster.add_node("renamed", "10.244.1.0/24")
    until_event(cluster, "Warning", "there is no Node node1")
    member.until_waits_for("there is no Node node1")
    assert "NODE_NAME" in member.log()
    assert cluster.annotations("renamed") == {}


def test_a_cleanup_in_the_environment_of_flanneld_clears_its_node(member: Member, cluster: Cluster) -> None:
    cluster.annotate("node1", public_ip_overwrite="10.10.10.201")
    member.start()
    wait_until(lambda: cluster.condition("node1") is not None, what="the condition", deadline_s=SOON_S)
    member.stop()
    variables = ["FLANNELD_KUBE_SUBNET_MGR=true", "NODE_NAME=node1"]
    variables.append(f"FLANNELD_KUBECONFIG_FILE={cluster.directory}/flannel.conf")
    cleanup = ["env", *variables, "flannelctl", "cleanup"]

    preview = member.host.run([*cleanup, "--dry-run"]).stdout
    assert "would remove annotations of Node node1, whose network is unavailable" in preview
    assert cluster.annotations("node1")["kube-subnet-manager"] == "true"
    member.host.run([*cleanup, "--yes"])

    assert cluster.annotations("node1") == {"public-ip-overwrite": "10.10.10.201"}
    condition = cluster.condition("node1")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("True", "FlannelRemoved")
    member.start()
    wait_until(
        lambda: (cluster.condition("node1") or {}).get("status") == "False",
        what="condition",
        deadline_s=SOON_S,
    )


def test_network_policies_that_no_program_enforces_cause_an_event(member: Member, cluster: Cluster) -> None:
    cluster.apply(MANIFESTS / "network-policies.yaml")
    policies = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
    cluster.must("POST", policies, {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}})
    member.start("--warn-network-policies")
    until_event(cluster, "Warning", "NetworkPolicies exist, and no known program enforces them")
    assert "no known program enforces them on this host" in member.log()
    member.stop()

    member.host.run(["nft", "add table inet kube-network-policies"])
    asked, events = policy_requests(member, cluster), len(cluster.events("node1"))
    member.start("--warn-network-policies")
    wait_until(
        lambda: policy_requests(member, cluster) > asked, what="a scan of the policies", deadline_s=SOON_S
    )
    member.stop()
    assert len(cluster.events("node1")) == events
    member.host.run(["nft", "delete table inet kube-network-policies"])
    cluster.must("DELETE", f"{policies}/deny")


def policy_requests(member: Member, cluster: Cluster) -> int:
    return cluster.requests(member.host.address).count("list /apis/networking.k8s.io/v1/networkpolicies")
