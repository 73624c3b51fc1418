"""From a store's URL to the store."""

from pathlib import Path
from urllib.parse import urlsplit

from pyflannel.errors import UsageError
from pyflannel.kernel.clock import BoottimeClock
from pyflannel.kernel.inotify import InotifyFileWatch
from pyflannel.ports.store import Store
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore
from pyflannel.stores.etcd.cluster import Endpoint
from pyflannel.stores.etcd.store import EtcdStore
from pyflannel.stores.prefixed import PrefixedStore

DEFAULT_PREFIX = "/coreos.com/network"
"""Where flannel keeps its network unless told otherwise."""

ETCD_PORT = 2379

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_FORMS = "Write etcd://HOST:2379,HOST:2379/coreos.com/network or sqlite:///var/lib/flannel/leases.db."

_LATER = {
    "etcds": "TLS towards etcd",
    "http": "a lease server as store",
    "https": "a lease server as store",
    "kube": "Kubernetes as store",
}


def open_store(url: str) -> Store:
    """Return the store that `url` names; it connects when it is first asked.

    Forms: `etcd://HOST[:PORT][,HOST[:PORT]...][/PREFIX]` and `sqlite:///PATH`; `#NAME` behind either is one
    of several networks in it.

    Raises:
        UsageError: anything else.
    """
    url, _, network = url.partition("#")
    store = _whole_store(url)
    return PrefixedStore(store, network, closes=True) if network else store


def _whole_store(url: str) -> Store:
    scheme, separator, rest = url.partition(":")
    if scheme in _LATER and separator:
        raise UsageError(f"store {url!r}: {_LATER[scheme]} is not there yet", hint=_FORMS)
    if scheme == "etcd" and rest.startswith("//"):
        return _etcd_store(url, rest.removeprefix("//"))
    if scheme == "sqlite" and rest.startswith("///"):
        return _embedded_store(url, Path(rest.removeprefix("//")))
    raise UsageError(f"store {url!r} is of no known form", hint=_FORMS)


def _etcd_store(url: str, rest: str) -> EtcdStore:
    hosts, _, prefix = rest.partition("/")
    endpoints = [_endpoint(url, text) for text in hosts.split(",")]
    return EtcdStore(endpoints, f"/{prefix}" if prefix.strip("/") else DEFAULT_PREFIX)


def _endpoint(url: str, text: str) -> Endpoint:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or ETCD_PORT
    except ValueError as error:
        raise UsageError(f"store {url!r}: endpoint {text!r}: {error}", hint=_FORMS) from error
    if not host or parts.username is not None:
        raise UsageError(f"store {url!r}: {text!r} is not HOST or HOST:PORT", hint=_FORMS)
    return Endpoint(host, port)


def _embedded_store(url: str, path: Path) -> EmbeddedStore:
    if not path.name:
        raise UsageError(f"store {url!r} names no file", hint=_FORMS)
    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip())
    return EmbeddedStore(path, database, InotifyFileWatch())
