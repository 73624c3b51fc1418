"""From a store's URL to the store."""

from pyflannel.assembly.store_url import EmbeddedAddress, EtcdAddress, parse_store_url
from pyflannel.model.secret import Secret
from pyflannel.ports.store import Store
from pyflannel.stores.prefixed import PrefixedStore


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
            from pyflannel.assembly.etcd_store import etcd_store

            store = etcd_store(etcd, password)
        case EmbeddedAddress(path):
            from pyflannel.assembly.embedded_store import embedded_store

            store = embedded_store(path)
    return PrefixedStore(store, address.network, closes=True) if address.network else store
