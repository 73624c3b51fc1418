"""Opens the store that a URL names.

Only the module of the store in use is imported: the libraries of etcd take 8 MB of memory, SQLite 1 MB.
"""

from pathlib import Path

from pyflannel.assembly.store_url import EmbeddedAddress, EtcdAddress, parse_store_url
from pyflannel.errors import UsageError
from pyflannel.model.secret import Secret
from pyflannel.ports import Store
from pyflannel.stores.prefixed import PrefixedStore

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_store(url: str, password: Secret | None = None) -> Store:
    """Return the store that `url` names. It connects at its first request.

    `password`: password of the user in the URL, unless the URL names a password file.

    Raises:
        UsageError: the URL is invalid, or the password is missing.
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
            hint="Set FLANNELD_ETCD_PASSWORD, or add password-file=PATH to the store URL.",
        )
    return secret
