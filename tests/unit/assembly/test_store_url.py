"""Store URLs: the stores that they name, and the messages about invalid ones."""

from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.stores import (
    EtcdAddress,
    KubernetesAddress,
    StoreAddress,
    open_store,
    parse_store_url,
)
from pyflannel.errors import UsageError
from pyflannel.stores.embedded.store import EmbeddedStore
from pyflannel.stores.etcd.cluster import User
from pyflannel.stores.etcd.endpoint import Endpoint, TlsFiles
from pyflannel.stores.etcd.store import EtcdStore


def describe(url: str) -> tuple[list[str], bytes]:
    store: Any = open_store(url)
    assert isinstance(store, EtcdStore)
    inner: Any = store
    return [str(endpoint) for endpoint in inner._cluster._endpoints], inner._keys.full("config")


@pytest.mark.parametrize(
    ("url", "endpoints", "key"),
    [
        ("etcd://h1:2379,h2:4001/prefix", ["h1:2379", "h2:4001"], b"/prefix/config"),
        ("etcd://h1/a/b/", ["h1:2379"], b"/a/b/config"),
        ("etcd://127.0.0.1:2379", ["127.0.0.1:2379"], b"/coreos.com/network/config"),
        (
            "etcd://[fd00::1]:2380,[fd00::2]/",
            ["[fd00::1]:2380", "[fd00::2]:2379"],
            b"/coreos.com/network/config",
        ),
    ],
)
def test_an_etcd_url_names_endpoints_and_prefix(url: str, endpoints: list[str], key: bytes) -> None:
    assert describe(url) == (endpoints, key)


def test_opening_a_sqlite_url_does_not_create_the_file(tmp_path: Path) -> None:
    assert isinstance(open_store(f"sqlite://{tmp_path}/leases.db"), EmbeddedStore)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "etcd",
        "etcd:",
        "etcd://",
        "etcd:///prefix",
        "etcd://h1:2379,/prefix",
        "etcd://h1:port/prefix",
        "etcd://h1:99999",
        "sqlite:leases.db",
        "sqlite://leases.db",
        "sqlite:///",
        "mysql://h1/leases",
        "/var/lib/flannel/leases.db",
    ],
)
def test_an_invalid_url_is_quoted_with_a_remedy(url: str) -> None:
    with pytest.raises(UsageError) as error:
        open_store(url)

    assert repr(url) in str(error.value)
    assert "etcd://HOST" in error.value.hint


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("etcd://user:secret@h1/p", "store 'etcd://***@h1/p': an endpoint is not HOST or HOST:PORT"),
        ("etcd://h1/p?username=u&password=secret", "a store URL must not contain a password"),
        ("etcds://h1/p?user=u&x=secret", "'etcds://h1/p?user=…&x=…': user is not a setting"),
        ("etcd://h1/p?xsecret", "store 'etcd://h1/p?…': the query is not NAME=VALUE"),
        ("etcd://h1/p?cafile=/c", "cafile needs TLS"),
        ("etcds://h1/p?certfile=/c", "certfile and keyfile must be used together"),
        ("etcds://h1/p?password-file=/f", "password-file needs username"),
        ("etcds://h1/p?username=u", "the etcd user 'u' has no password"),
    ],
)
def test_a_wrong_setting_is_named_and_no_password_is_quoted(url: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        open_store(url)

    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_an_etcds_url_names_files_and_user() -> None:
    store: Any = open_store(
        "etcds://h1/p?cafile=/a%20b&certfile=/c&keyfile=/k&username=u&password-file=/f#blue"
    )

    cluster = store._store._cluster
    assert cluster._tls == TlsFiles(ca=Path("/a b"), certificate=Path("/c"), key=Path("/k"))
    assert cluster._login.user == User(name="u", password=Path("/f"))


@pytest.mark.parametrize(
    "settings", [{}, {"cafile": "/a&b=c/%#?"}, {"username": "ü +", "password-file": "/f"}]
)
def test_the_url_of_an_address_parses_to_the_same_address(settings: dict[str, str]) -> None:
    address = EtcdAddress(
        endpoints=(Endpoint("h1", 1), Endpoint("fd00::1", 2)), prefix="/p", has_tls=True, settings=settings
    )

    assert parse_store_url(address.url) == StoreAddress(address)


@pytest.mark.parametrize("url", ["http://h1:8888", "https://h1"])
def test_a_store_not_yet_supported_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match="not supported yet") as error:
        open_store(url)

    assert "\n" not in str(error.value)


def test_the_store_of_a_cluster_has_a_url_that_only_its_flanneld_can_open() -> None:
    assert parse_store_url("kube:") == StoreAddress(KubernetesAddress())
    assert parse_store_url("kube:").prefix is None
    with pytest.raises(UsageError, match="only that process can read it"):
        open_store("kube:")
    with pytest.raises(UsageError, match="is not a store URL"):
        open_store("kube:~/.kube/config")
