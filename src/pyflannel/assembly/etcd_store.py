"""From the address of an etcd cluster to the store."""

from pyflannel.assembly.store_url import EtcdAddress
from pyflannel.errors import UsageError
from pyflannel.model.secret import Secret
from pyflannel.stores.etcd.login import User
from pyflannel.stores.etcd.store import EtcdStore
from pyflannel.stores.etcd.tls import TlsFiles


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
