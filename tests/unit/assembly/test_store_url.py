"""Which store a URL means, and what is said of those that mean none."""

from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.store import open_store
from pyflannel.errors import UsageError
from pyflannel.stores.embedded.store import EmbeddedStore
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


def test_a_sqlite_url_names_a_file_that_opening_does_not_touch(tmp_path: Path) -> None:
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
        "etcd://user:secret@h1",
        "sqlite:leases.db",
        "sqlite://leases.db",
        "sqlite:///",
        "mysql://h1/leases",
        "/var/lib/flannel/leases.db",
    ],
)
def test_what_is_no_store_is_named_with_what_to_write(url: str) -> None:
    with pytest.raises(UsageError) as error:
        open_store(url)

    assert repr(url) in str(error.value)
    assert "etcd://HOST" in error.value.hint


@pytest.mark.parametrize(
    "url", ["etcds://h1/p", "http://h1:8888", "https://h1", "kube:", "kube:~/.kube/config"]
)
def test_what_comes_later_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match="not there yet") as error:
        open_store(url)

    assert "\n" not in str(error.value)
