"""From a store's URL to the store."""

from pathlib import Path

from pyflannel.assembly.store_url import EmbeddedAddress, EtcdAddress, parse_store_url
from pyflannel.errors import UsageError
from pyflannel.kernel.clock import BoottimeClock
from pyflannel.kernel.inotify import InotifyFileWatch
from pyflannel.model.secret import Secret
from pyflannel.ports.store import Store
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore
from pyflannel.stores.etcd.login import User
from pyflannel.stores.etcd.store import EtcdStore
from pyflannel.stores.etcd.tls import TlsFiles
from pyflannel.stores.prefixed import PrefixedStore

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_store(url: str, password: Secret | None = None) -> Store:
    """Return the store that `url` names; it connects when it is first asked.

    `password`: of the user that the URL names, unless the URL names the file where it stands.

    Raises:
        UsageError: the URL has no form of those in store_url, or there is no password.
    """
    address = parse_store_url(url)
    match address.store:
        case EtcdAddress() as etcd:
            store: Store = _etcd_store(etcd, password)
        case EmbeddedAddress(path):
            store = _embedded_store(path)
    return PrefixedStore(store, address.network, closes=True) if address.network else store


def _etcd_store(address: EtcdAddress, password: Secret | None) -> EtcdStore:
    tls = None
    if address.has_tls:
        tls = TlsFiles(
            ca=address.path("cafile"), certificate=address.path("certfile"), key=address.path("keyfile")
        )
    return EtcdStore(address.endpoints, address.prefix, tls=tls, user=_user(address, password))


def _user(address: EtcdAddress, password: Secret | None) -> User | None:
    name = address.settings.get("username")
    if name is None:
        return None
    secret = address.path("password-file") or password
    if secret is None:
        raise UsageError(
            f"the etcd user {name!r} has no password",
            hint="Set FLANNELD_ETCD_PASSWORD, or write password-file=PATH into the store's URL.",
        )
    return User(name=name, password=secret)


def _embedded_store(path: Path) -> EmbeddedStore:
    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip())
    return EmbeddedStore(path, database, InotifyFileWatch())
