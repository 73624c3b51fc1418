"""From a store's URL to the store."""

from pathlib import Path

from pyflannel.assembly.store_url import EmbeddedAddress, EtcdAddress, parse_store_url
from pyflannel.errors import UsageError
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.secret import Secret
from pyflannel.ports import Store
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore
from pyflannel.stores.etcd.endpoint import TlsFiles
from pyflannel.stores.etcd.member import User
from pyflannel.stores.etcd.store import EtcdStore
from pyflannel.stores.prefixed import PrefixedStore

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def embedded_store(path: Path) -> EmbeddedStore:
    """Return the store."""
    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip())
    return EmbeddedStore(path, database, InotifyFileWatch())


def etcd_store(address: EtcdAddress, password: Secret | None) -> EtcdStore:
    """Return the store; `password` is the user's, unless the address names the file where it stands.

    Raises:
        UsageError: there is a user, and no password.
    """
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


def open_store(url: str, password: Secret | None = None) -> Store:
    """Return the store that `url` names; it connects when it is first asked.

    `password`: of the user that the URL names, unless the URL names the file where it stands.

    Raises:
        UsageError: the URL has no form of those in store_url, or there is no password.
    """
    address = parse_store_url(url)
    store: Store
    # A daemon loads the one that it needs: etcd's libraries take 8 MB of memory, SQLite 1 MB.
    match address.store:
        case EtcdAddress() as etcd:
            from pyflannel.assembly.stores import etcd_store

            store = etcd_store(etcd, password)
        case EmbeddedAddress(path):
            from pyflannel.assembly.stores import embedded_store

            store = embedded_store(path)
    return PrefixedStore(store, address.network, closes=True) if address.network else store
