"""The store of a Kubernetes cluster on a strict API server in this process."""

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from doubles.fake_api_server import FakeApiServer
from pyflannel.errors import CompactedError, StoreError
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.kubernetes_node import DEFAULT_PREFIX, NodeEvent
from pyflannel.model.store_record import DeleteSeen, Put, PutSeen
from pyflannel.ports import Clock
from pyflannel.stores.kubernetes.access import Access
from pyflannel.stores.kubernetes.client import Client, RefusedError
from pyflannel.stores.kubernetes.store import KubernetesStore, node_of_pod

CONFIG = '{"Network":"10.244.0.0/16"}'


class NoWait(BoottimeClock):
    """The real clock, whose pauses are recorded and skipped."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


def store_at(
    url: str, directory: Path, clock: Clock | None = None, prefix: str = DEFAULT_PREFIX, **user: str
) -> KubernetesStore:
    """A store whose kubeconfig has this user, by default the accepted token."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": user or {"token": "good"}}],
            }
        )
    )
    config = directory / "net-conf.json"
    if not config.exists():
        config.write_text(CONFIG)
    client = Client(Access(url="", kubeconfig=kubeconfig, environment={}), clock or NoWait())
    return KubernetesStore(client, clock or NoWait(), config=config, prefix=prefix)


def run(check: Callable[[FakeApiServer], Awaitable[None]]) -> None:
    async def serve() -> None:
        async with FakeApiServer().serving() as server, asyncio.timeout(20):
            await check(server)

    asyncio.run(serve())


def test_a_watch_continues_the_listing_and_is_opened_again_without_another_listing(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        await server.put("n1", "10.244.1.0/24")
        listing = await store.list("nodes/")
        assert [record.key for record in listing.records] == ["nodes/n1"]
        async with store.watch("nodes/", listing.revision) as watcher:
            assert (await watcher.next()).changes == ()
            await server.put("n2", "10.244.2.0/24")
            (seen,) = (await watcher.next()).changes
            assert isinstance(seen, PutSeen)
            assert seen.record.key == "nodes/n2"
            await server.end_watches()
            while server.verbs().count("watch") < 2:
                reading = asyncio.ensure_future(watcher.next())
                await asyncio.wait({reading}, timeout=0.2)
            await server.delete("n2")
            assert (await reading).changes == (DeleteSeen("nodes/n2", server.revision),)
        assert server.verbs() == ["list", "watch", "watch"]

    run(check)


def test_a_revision_that_the_server_forgot_causes_another_listing(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        listing = await store.list("nodes/")
        await server.put("n1", "10.244.1.0/24")
        server.compact()
        async with store.watch("nodes/", listing.revision) as watcher:
            await watcher.next()
            with pytest.raises(CompactedError):
                await watcher.next()

    run(check)


def test_a_listing_is_never_older_than_the_known_changes(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        await store.list("nodes/")
        server.revision = 50  # the cluster was restored from a backup
        with pytest.raises(RefusedError, match="Too large resource version"):
            await store.list("nodes/")
        await store.list("nodes/")

    run(check)


def test_a_throttled_request_waits_as_long_as_the_server_demands(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        clock = NoWait()
        store = store_at(server.url, tmp_path, clock)
        server.throttled = 2
        await store.list("nodes/")
        assert clock.pauses == [1.0, 1.0]
        server.throttled = 100
        with pytest.raises(RefusedError, match="answered 429"):
            await store.list("nodes/")

    run(check)


def test_a_renewed_token_file_is_used_by_the_next_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired\n")

    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path, tokenFile="token")
        with pytest.raises(RefusedError) as error:
            await store.list("nodes/")
        assert str(error.value) == (
            f"the API server {server.url} does not accept the token in {token} (401 Unauthorized)"
        )
        token.write_text("good\n")
        await store.list("nodes/")

    run(check)


def test_a_forbidden_request_names_the_missing_right(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        server.forbidden = {"list"}
        with pytest.raises(RefusedError, match='cannot list resource "nodes"') as error:
            await store.list("nodes/")
        assert "rbac.yaml" in error.value.hint

    run(check)


@pytest.mark.parametrize(
    ("status", "message", "shown", "hint"),
    [
        (
            422,
            "ValidatingAdmissionPolicy 'p' denied request: no",
            "the admission control of",
            "Let this policy",
        ),
        (400, 'admission webhook "w" denied the request: no', "the admission control of", "or webhook"),
        (500, 'failed calling webhook "w": refused', "a webhook .* does not answer", "Repair this webhook"),
        (500, "etcdserver: request timed out", "answered 500", "log of the API server"),
    ],
)
def test_a_refusal_names_the_part_of_the_cluster_that_caused_it(
    tmp_path: Path, status: int, message: str, shown: str, hint: str
) -> None:
    async def check(server: FakeApiServer) -> None:
        server.failure = status, message
        with pytest.raises(RefusedError, match=f"{shown}.*{re.escape(message)}") as error:
            await store_at(server.url, tmp_path).list("nodes/")
        assert hint in error.value.hint

    run(check)


def test_a_node_is_patched_and_an_absent_one_is_an_error(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        await server.put("n1", "10.244.1.0/24", public_ip_overwrite="192.0.2.1")
        patch = b'{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-type":"vxlan"}}}'
        await store.write(Put(key="nodes/n1", value=patch, ttl_s=None, expected=None))
        assert server.annotations("n1") == {"public-ip-overwrite": "192.0.2.1", "backend-type": "vxlan"}
        assert await store.get("nodes/n2") is None
        with pytest.raises(RefusedError, match='nodes "n2" not found'):
            await store.write(Put(key="nodes/n2", value=patch, ttl_s=None, expected=None))

    run(check)


def test_the_config_is_a_file_whose_changes_are_seen(tmp_path: Path) -> None:
    async def check() -> None:
        store = store_at("http://127.0.0.1:1", tmp_path)
        listing = await store.list("config")
        assert [record.value.decode() for record in listing.records] == [CONFIG]
        async with store.watch("config", listing.revision) as watcher:
            await watcher.next()
            (tmp_path / "net-conf.json").write_text("{}")
            (seen,) = (await watcher.next()).changes
            assert isinstance(seen, PutSeen)
            assert seen.record.value == b"{}"
        (tmp_path / "net-conf.json").unlink()
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            await store.list("config")
        with pytest.raises(StoreError, match="config cannot be written in Kubernetes"):
            await store.write(Put(key="config", value=b"", ttl_s=None, expected=None))

    asyncio.run(check())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be used: not YAML: "),
        ("[]", "not a mapping"),
        ("{}", "no current-context"),
        ('{"current-context":"c"}', "contexts contains no context 'c'"),
    ],
)
def test_an_unusable_kubeconfig_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(StoreError, match=f"the kubeconfig {path} .*{message}"):
        Access(url="", kubeconfig=path, environment={}).connection()


def test_an_unreachable_server_is_named_and_its_address_is_known(tmp_path: Path) -> None:
    store = store_at("http://127.0.0.1:1", tmp_path)
    assert list(map(str, store.addresses())) == ["127.0.0.1"]
    assert store_at("https://kubernetes.default", tmp_path).addresses() == ()
    store_at("http://127.0.0.1:1", tmp_path)
    with pytest.raises(
        StoreError, match=r"the API server http://127.0.0.1:1 cannot be reached: ECONNREFUSED"
    ):
        asyncio.run(store.list("nodes/"))


def test_the_node_of_a_pod_is_asked_for(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store_at(server.url, tmp_path)
        client = Client(Access(url="", kubeconfig=tmp_path / "kubeconfig", environment={}), NoWait())
        assert await node_of_pod(client, "kube-flannel", "kube-flannel-ds-x") == "n1"
        assert server.requests == [("get", "/api/v1/namespaces/kube-flannel/pods/kube-flannel-ds-x")]
        server.forbidden = {"get"}
        with pytest.raises(StoreError, match="forbids the request") as error:
            await node_of_pod(client, "kube-flannel", "kube-flannel-ds-x")
        assert error.value.hint.startswith(
            "Set NODE_NAME to the name of the Node, or let flanneld get its pod"
        )

    run(check)


def test_a_pod_uses_the_files_of_its_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    access = Access(
        url="",
        kubeconfig=None,
        environment={"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"},
        account=tmp_path,
    )
    connection = access.connection()
    assert connection.server.url == "https://10.96.0.1:443"
    assert connection.headers() == [("Authorization", "Bearer abc")]
    with pytest.raises(StoreError, match=f"the certificate authority {tmp_path}/ca.crt cannot be read"):
        connection.tls()
    (tmp_path / "ca.crt").write_text("x")
    with pytest.raises(StoreError, match="contains no usable certificate"):
        connection.tls()


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("certificate has expired", "Compare the clock"),
        ("certificate is not yet valid", "Compare the clock"),
        ("self-signed certificate in certificate chain", "certificate authority of the cluster"),
    ],
)
def test_a_certificate_of_another_time_or_authority_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, hint: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed")
        error.verify_message = reason
        raise error

    monkeypatch.setattr(asyncio, "open_connection", refuse)
    with pytest.raises(
        StoreError, match=f"certificate of the API server .* is not valid: {reason}"
    ) as raised:
        asyncio.run(store_at("https://10.99.0.1:6443", tmp_path).list("nodes/"))
    assert hint in raised.value.hint


def test_an_event_is_created_in_the_namespace_of_nodes(tmp_path: Path) -> None:
    async def check(server: FakeApiServer) -> None:
        store = store_at(server.url, tmp_path)
        await store.announce("n1", NodeEvent(is_warning=True, reason="FlannelNotReady", message="ä" * 600))
        (event,) = server.events
        assert (event["type"], event["reason"]) == ("Warning", "FlannelNotReady")
        assert event["involvedObject"] == {"kind": "Node", "name": "n1", "uid": "n1"}
        assert event["message"] == "ä" * 512

    run(check)
