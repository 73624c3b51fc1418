"""From a store's URL to the store.

A daemon imports the store that it uses: the libraries of etcd take 8 MB of memory, SQLite 1 MB.
"""

from pathlib import Path

from pyflannel.assembly.store_url import EmbeddedAddress, EtcdAddress, parse_store_url
from pyflannel.errors import UsageError
from pyflannel.model.secret import Secret
from pyflannel.ports import Store
from pyflannel.stores.prefixed import PrefixedStore

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_store(url: str, password: Secret | None = None) -> Store:
    """Return the store that `url` names; it connects when it is first asked.

    `password`: of the user that the URL names, unless the URL names the file where it stands.

    Raises:
        UsageError: the URL has no form of those in store_url, or there is no password.
    """
    address = parse_store_url(url)
    store: Store
    match address.store:
        case EtcdAddress() as etcd:
            store = _etcd_store(etcd, password)
        case EmbeddedAddress(path):
            store = _embedded_store(path)
    return PrefixedStore(store, address.network, closes=True) if address.network else store


def _embedded_store(path: Path) -> Store:
    from pyflannel.kernel.host.inotify import InotifyFileWatch
    from pyflannel.kernel.host.machine import BoottimeClock
    from pyflannel.stores.embedded.database import Database
    from pyflannel.stores.embedded.store import EmbeddedStore

    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip())
    return EmbeddedStore(path, database, InotifyFileWatch())


def _etcd_store(address: EtcdAddress, password: Secret | None) -> Store:
    from pyflannel.stores.etcd.endpoint import TlsFiles
    from pyflannel.stores.etcd.member import User
    from pyflannel.stores.etcd.store import EtcdStore

    tls = user = None
    if address.has_tls:
        tls = TlsFiles(
            ca=address.path("cafile"), certificate=address.path("certfile"), key=address.path("keyfile")
        )
    if (name := address.settings.get("username")) is not None:
        user = User(name=name, password=_secret(address, name, password))
    return EtcdStore(address.endpoints, address.prefix, tls=tls, user=user)


def _secret(address: EtcdAddress, name: str, password: Secret | None) -> Path | Secret:
    secret = address.path("password-file") or password
    if secret is None:
        raise UsageError(
            f"the etcd user {name!r} has no password",
            hint="Set FLANNELD_ETCD_PASSWORD, or write password-file=PATH into the store's URL.",
        )
    return secret
