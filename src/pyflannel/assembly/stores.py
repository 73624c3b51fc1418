"""The URL of a lease store, and the adapter of the store that the URL selects.

    etcd://HOST[:PORT],HOST[:PORT]/PREFIX[?username=NAME&password-file=PATH]
    etcds://…                             [?cafile=PATH&certfile=PATH&keyfile=PATH&…]
    sqlite:///PATH

A `#NAME` at the end selects one of several networks in the store. A URL must not contain a password, because
URLs are shown in logs and in the status.

Only the module of the store in use is imported: the libraries of etcd take 8 MB of memory, SQLite 1 MB.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from msgspec import Struct

from pyflannel.errors import UsageError
from pyflannel.model.store_record import Secret
from pyflannel.ports import Store
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.prefixed import PrefixedStore

DEFAULT_PREFIX = "/coreos.com/network"
"""The default prefix of flannel's keys."""

ETCD_PORT = 2379

TLS_NAMES = ("cafile", "certfile", "keyfile")
USER_NAMES = ("username", "password-file")

_LATER_SCHEMES = ("http", "https")
_FORMS = (
    "Write etcd://HOST:2379,HOST:2379/coreos.com/network, etcds://… for TLS, "
    "or sqlite:///var/lib/flannel/leases.db."
)


class EtcdAddress(Struct, frozen=True, kw_only=True):
    """An etcd cluster, and the user and TLS files for it.

    Attributes:
        settings: the specified paths and names, with the keys of `TLS_NAMES` and `USER_NAMES`; none is empty.
    """

    endpoints: tuple[Endpoint, ...]
    prefix: str
    has_tls: bool
    settings: Mapping[str, str]

    def path(self, name: str) -> Path | None:
        """Return the setting of this name as a path, or None."""
        return Path(self.settings[name]) if name in self.settings else None

    @property
    def url(self) -> str:
        """The URL of this store."""
        query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in self.settings.items())
        hosts = ",".join(map(str, self.endpoints))
        return f"{'etcds' if self.has_tls else 'etcd'}://{hosts}{self.prefix}{query and '?'}{query}"


class EmbeddedAddress(Struct, frozen=True):
    """The database file of an embedded store, which serves the hosts of one machine."""

    path: Path


class KubernetesAddress(Struct, frozen=True):
    """The Kubernetes cluster that flanneld's flags select."""


class StoreAddress(Struct, frozen=True):
    """A store, and the name of the network in it if the store holds several."""

    store: EtcdAddress | EmbeddedAddress | KubernetesAddress
    network: str | None = None

    @property
    def prefix(self) -> str | None:
        """The prefix of the keys, with the name of the network; None without a prefix in etcd."""
        if not isinstance(self.store, EtcdAddress):
            return None
        prefix = self.store.prefix.rstrip("/")
        return prefix if self.network is None else f"{prefix}/{self.network}"


def parse_store_url(url: str, origin: str = "store") -> StoreAddress:
    """Return the store that the URL selects; messages name `origin` as the source of the URL.

    Raises:
        UsageError: the URL is invalid. Error messages do not quote parts that may contain a password.
    """
    whole, _, network = url.partition("#")
    scheme, separator, rest = whole.partition(":")
    shown = f"{origin} {masked(url)!r}"
    if scheme in _LATER_SCHEMES and separator:
        raise UsageError(f"{shown}: {scheme}: stores are not supported yet", hint=_FORMS)
    if whole == "kube:" and not network:
        return StoreAddress(KubernetesAddress())
    if scheme in ("etcd", "etcds") and rest.startswith("//"):
        etcd = _etcd(rest.removeprefix("//"), has_tls=scheme == "etcds", shown=shown)
        return StoreAddress(etcd, network or None)
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > 3 and not rest.endswith("/"):
        return StoreAddress(EmbeddedAddress(Path(rest.removeprefix("//"))), network or None)
    raise UsageError(f"{shown} is not a store URL", hint=_FORMS)


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint in the text `HOST` or `HOST:PORT`.

    Raises:
        ValueError: the text has neither form. The message does not quote the text, because it may contain a
            password before an @.
    """
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or "@" in text:
        raise ValueError("an endpoint is not HOST or HOST:PORT")
    try:
        return Endpoint(parts.hostname, parts.port or ETCD_PORT)
    except ValueError as error:
        raise ValueError("the port of an endpoint is not a number from 1 to 65535") from error


def check_settings(settings: Mapping[str, str], *, has_tls: bool, shown: str) -> None:
    """Check that the settings of an etcd cluster are known and complete.

    Raises:
        UsageError: the message begins with the URL `shown` and names the wrong setting.
    """
    known = (*TLS_NAMES, *USER_NAMES) if has_tls else USER_NAMES
    for name in settings:
        if name in TLS_NAMES and not has_tls:
            raise UsageError(f"{shown}: {name} needs TLS", hint="Write etcds:// instead of etcd://.")
        if name == "password":
            raise UsageError(
                f"{shown}: a store URL must not contain a password",
                hint="Write password-file=PATH, or set FLANNELD_ETCD_PASSWORD.",
            )
        if name not in known:
            raise UsageError(
                f"{shown}: {name} is not a setting", hint=f"The settings are {', '.join(known)}."
            )
    if ("certfile" in settings) != ("keyfile" in settings):
        raise UsageError(f"{shown}: certfile and keyfile must be used together", hint="Set both, or neither.")
    if "password-file" in settings and "username" not in settings:
        raise UsageError(f"{shown}: password-file needs username", hint="Add username=NAME.")


def _etcd(rest: str, *, has_tls: bool, shown: str) -> EtcdAddress:
    place, _, query = rest.partition("?")
    hosts, _, prefix = place.partition("/")
    try:
        endpoints = tuple(map(parse_endpoint, hosts.split(",")))
    except ValueError as error:
        raise UsageError(f"{shown}: {error}", hint=_FORMS) from error
    settings = _settings(query, shown)
    check_settings(settings, has_tls=has_tls, shown=shown)
    return EtcdAddress(
        endpoints=endpoints,
        prefix=f"/{prefix}" if prefix.strip("/") else DEFAULT_PREFIX,
        has_tls=has_tls,
        settings=settings,
    )


def _settings(query: str, shown: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:  # the text of the error quotes the query
        raise UsageError(f"{shown}: the query is not NAME=VALUE&NAME=VALUE", hint=_FORMS) from None


def masked(url: str) -> str:
    """Return the URL without the parts that may contain a password: the text before an @ and the values of
    the query.
    """
    place, mark, query = url.partition("?")
    scheme, slashes, rest = place.partition("//") if "//" in place else ("", "", place)
    _, at, hosts = rest.rpartition("@")
    shown = f"{scheme}{slashes}{'***@' if at else ''}{hosts}"
    parts = [part.partition("=") for part in query.split("&")] if mark else []
    return shown + mark + "&".join(f"{name}=…" if equals else "…" for name, equals, _ in parts)


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_store(url: str, password: Secret | None = None, *, answer_s: float | None = None) -> Store:
    """Return the adapter of the store that `url` selects. The store connects at its first request.

    Args:
        url: the URL.
        password: password of the user in the URL, unless the URL names a password file.
        answer_s: time after which a read fails if the store does not respond; all members of etcd share it,
            so that the last member is still asked. None: 5 s for each member.

    Raises:
        UsageError: the URL is invalid, or the password is missing.
    """
    address = parse_store_url(url)
    store: Store
    match address.store:
        case EtcdAddress() as etcd:
            store = _etcd_store(etcd, password, answer_s)
        case EmbeddedAddress(path):
            store = _embedded_store(path, answer_s)
        case KubernetesAddress():
            raise UsageError(
                "kube: is the store of a running flanneld, and only that process can read it",
                hint="Start flanneld with --kube-subnet-mgr; flannelctl then asks flanneld.",
            )
    return PrefixedStore(store, address.network, closes=True) if address.network else store


def _embedded_store(path: Path, answer_s: float | None) -> Store:
    from pyflannel.kernel.host.inotify import InotifyFileWatch
    from pyflannel.kernel.host.machine import BoottimeClock
    from pyflannel.stores.embedded.database import BUSY_S, Database
    from pyflannel.stores.embedded.store import EmbeddedStore

    wait_s = BUSY_S if answer_s is None else answer_s
    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip(), busy_s=wait_s)
    return EmbeddedStore(path, database, InotifyFileWatch())


def _etcd_store(address: EtcdAddress, password: Secret | None, answer_s: float | None) -> Store:
    from pyflannel.stores.etcd.cluster import User
    from pyflannel.stores.etcd.endpoint import TlsFiles
    from pyflannel.stores.etcd.failure import CALL_S
    from pyflannel.stores.etcd.store import EtcdStore

    tls = user = None
    if address.has_tls:
        tls = TlsFiles(
            ca=address.path("cafile"), certificate=address.path("certfile"), key=address.path("keyfile")
        )
    if (name := address.settings.get("username")) is not None:
        user = User(name=name, password=_secret(address, name, password))
    call_s = CALL_S if answer_s is None else answer_s / len(address.endpoints)
    return EtcdStore(address.endpoints, address.prefix, tls=tls, user=user, call_s=call_s)


def _secret(address: EtcdAddress, name: str, password: Secret | None) -> Path | Secret:
    secret = address.path("password-file") or password
    if secret is None:
        raise UsageError(
            f"the etcd user {name!r} has no password",
            hint="Set FLANNELD_ETCD_PASSWORD, or add password-file=PATH to the store URL.",
        )
    return secret
