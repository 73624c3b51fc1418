"""The flags that select the store and its user, and the store URL that they form.

The URL contains every setting except a password given directly, which is kept separately.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.stores import (
    ETCD_PORT,
    TLS_NAMES,
    USER_NAMES,
    EtcdAddress,
    KubernetesAddress,
    check_settings,
    masked,
    parse_endpoint,
    parse_store_url,
)
from pyflannel.errors import UsageError
from pyflannel.model.store_record import Secret
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.wire.go_flags import Flag, Given, Settings

PASSWORD_VARIABLE = "FLANNELD_ETCD_PASSWORD"

_ENDPOINTS = "etcd-endpoints"

STORE_FLAGS = (
    Flag(
        name=_ENDPOINTS,
        default="http://127.0.0.1:4001,http://127.0.0.1:2379",
        meaning="URLs of the etcd members, separated by commas; https:// for TLS",
    ),
    Flag(name="etcd-prefix", default="/coreos.com/network", meaning="prefix of flannel's keys in etcd"),
    Flag(
        name="etcd-cafile",
        meaning="file with the certificate authorities of etcd; default: the authorities that the system "
        "trusts",
    ),
    Flag(name="etcd-certfile", meaning="client certificate, if etcd requires one"),
    Flag(name="etcd-keyfile", meaning="private key of the client certificate"),
    Flag(name="etcd-username", meaning="name of the etcd user"),
    Flag(
        name="etcd-password",
        kind="secret",
        meaning="password of the etcd user; for secrecy, use its variable or etcd-password-file instead",
    ),
    Flag(name="etcd-password-file", meaning="file that contains the password in its first line"),
    Flag(
        name="store",
        meaning="URL of the store: etcd://HOST:PORT,HOST:PORT/PREFIX, etcds://... (TLS) or sqlite:///PATH; "
        "replaces all other etcd flags except the password",
    ),
)


class StoreChoice(Struct, frozen=True, kw_only=True):
    """The requested store.

    Attributes:
        password: password of the user in the URL, if it was given directly and not in a file.
        warnings: messages for the operator, one line each.
    """

    url: str
    password: Secret | None = None
    warnings: tuple[str, ...] = ()


def chosen_store(settings: Settings) -> StoreChoice:
    """Return the store that the flags and variables select.

    Raises:
        UsageError: the flags or variables are invalid or contradict each other; message and hint fit one
            line.
    """
    given = [given for flag in STORE_FLAGS for given in settings.all(flag.name) if given.value]
    passwords = [each for each in given if isinstance(each.value, Secret)]
    others, overridden = _one_way(settings, [each for each in given if not isinstance(each.value, Secret)])
    password = _password(passwords)
    if others and others[-1].flag.name == "store":
        choice = _named_by_url(str(others[-1].value), others[-1].origin, password)
    else:
        choice = _etcd(settings, {each.flag.name.removeprefix("etcd-"): each for each in others}, password)
    return replace(choice, warnings=(*overridden, *choice.warnings))


def _one_way(settings: Settings, given: Sequence[Given]) -> tuple[list[Given], list[str]]:
    """Return the settings that select the store (the URL, or the etcd flags), and a warning about the
    settings without effect.

    The command line may use the URL and the environment the etcd flags, or the reverse. A variable for all
    hosts then does not contradict the command line.
    """
    urls = [each for each in given if each.flag.name == "store"]
    etcd = [each for each in given if each.flag.name != "store"]
    if not urls or not etcd:
        return urls or etcd, []
    has_url, has_etcd = (
        any(each.flag.name in settings.on_command_line for each in way) for way in (urls, etcd)
    )
    if has_url == has_etcd:
        names = " and ".join(dict.fromkeys(each.origin for each in given))
        raise UsageError(
            f"{names} select two different stores",
            hint="Use either the etcd flags, or a store URL with all settings: …?cafile=PATH&username=NAME.",
        )
    way, other = (urls, etcd) if has_url else (etcd, urls)
    origin = next(each.origin for each in way if each.flag.name in settings.on_command_line)
    idle = ", ".join(dict.fromkeys(each.origin for each in other))
    return way, [f"Ignored {idle}, because {origin} names the store"]


def store_from_environment(environment: Mapping[str, str]) -> StoreChoice:
    """Return the store that flanneld without flags would use in this environment.

    Raises:
        UsageError: a variable is invalid; message and hint fit one line.
    """
    return chosen_store(Settings(STORE_FLAGS, [], environment))


def store_url_from_environment(environment: Mapping[str, str]) -> str:
    """Return the URL of the store that flanneld without flags would use in this environment.

    Raises:
        UsageError: a variable is invalid; message and hint fit one line.
    """
    return store_from_environment(environment).url


def etcd_password_of(environment: Mapping[str, str]) -> Secret | None:
    """Return the password in the environment, for a store that a URL selects."""
    return Secret(environment.get(PASSWORD_VARIABLE, "")) or None


def _etcd(settings: Settings, given: Mapping[str, Given], password: Secret | None) -> StoreChoice:
    endpoints, prefix = settings.last(_ENDPOINTS), settings.last("etcd-prefix")
    has_tls, members = _members(endpoints)
    wanted = {name: str(given[name].value) for name in (*TLS_NAMES, *USER_NAMES) if name in given}
    warnings = []
    if not has_tls and (idle := [given[name].origin for name in TLS_NAMES if name in given]):
        warnings.append(f"Ignored {', '.join(idle)}, because {endpoints.origin} uses http://")
        wanted = {name: value for name, value in wanted.items() if name not in TLS_NAMES}
    _check_prefix(prefix)
    check_settings(wanted, has_tls=has_tls, shown="etcd")
    address = EtcdAddress(
        endpoints=tuple(members), prefix=str(prefix.value), has_tls=has_tls, settings=wanted
    )
    _check_password(address, password)
    warnings += _clear_text(address, f"{endpoints.origin} uses http://")
    return StoreChoice(url=address.url, password=password, warnings=tuple(warnings))


def _named_by_url(url: str, origin: str, password: Secret | None) -> StoreChoice:
    address = parse_store_url(url, origin).store
    if isinstance(address, KubernetesAddress):
        raise UsageError(
            f"{origin} {url!r} is not a store URL of flanneld", hint="Write --kube-subnet-mgr instead."
        )
    if not isinstance(address, EtcdAddress):
        return StoreChoice(url=url, password=password)
    _check_password(address, password)
    warnings = _clear_text(address, f"{origin} uses etcd://")
    return StoreChoice(url=url, password=password, warnings=tuple(warnings))


def _clear_text(address: EtcdAddress, cause: str) -> list[str]:
    """Return a warning if the password of the user is sent unencrypted."""
    if address.has_tls or "username" not in address.settings:
        return []
    return [f"The etcd password is sent unencrypted, because {cause}"]


def _password(given: Sequence[Given]) -> Secret | None:
    match [each.value for each in given]:
        case [*_, Secret() as password]:
            return password
        case _:
            return None


def _check_password(address: EtcdAddress, password: Secret | None) -> None:
    user, file = address.settings.get("username"), address.settings.get("password-file")
    if user is None and password is not None:
        raise UsageError("an etcd password was given, but no etcd user", hint="Add --etcd-username=NAME.")
    if user is not None and password is None and file is None:
        raise UsageError(
            f"the etcd user {user!r} has no password",
            hint=f"Add --etcd-password-file=PATH, or set {PASSWORD_VARIABLE}.",
        )
    if password is not None and file is not None:
        raise UsageError(
            f"the etcd user {user!r} has two passwords",
            hint="Use either --etcd-password-file, or a flag or variable with the password itself.",
        )


def _check_prefix(prefix: Given) -> None:
    path = str(prefix.value)
    if not path.startswith("/") or "?" in path or "#" in path:
        raise UsageError(
            f"{prefix.origin}={path!r} is not a key prefix: it must begin with / and contain no ? or #",
            hint=f"Write {prefix.origin}={prefix.flag.default}.",
        )


def _members(endpoints: Given) -> tuple[bool, list[Endpoint]]:
    """Return whether the members use TLS, and their endpoints."""
    texts = [text.strip() for text in str(endpoints.value).split(",")]
    schemes = {_split(text).scheme for text in texts}
    members = [_member(text, endpoints.origin) for text in texts]
    if len(schemes) > 1:
        raise UsageError(
            f"{endpoints.origin} mixes http:// and https://", hint="Use the same scheme for every member."
        )
    return schemes == {"https"}, members


def _member(text: str, origin: str) -> Endpoint:
    parts = _split(text)
    is_bare = not parts.query and not parts.fragment and parts.path in ("", "/")
    has_scheme = parts.scheme in ("http", "https")
    if has_scheme and is_bare and _has_port(parts.netloc):
        return parse_endpoint(parts.netloc)
    if _has_port(text):
        fault, correct = "has no http:// or https://", f"http://{text}"
    elif has_scheme and is_bare and _has_port(f"{parts.netloc}:{ETCD_PORT}"):
        fault, correct = "has no port", f"{parts.scheme}://{parts.netloc}:{ETCD_PORT}"
    else:
        fault, correct = "is not the URL of an etcd member", "http://HOST:PORT"
    raise UsageError(f"{origin}: endpoint {masked(text)!r} {fault}", hint=f"Write {correct}.")


def _has_port(text: str) -> bool:
    # The text before an @ may be a password. An endpoint with an @ is refused, and no message quotes it.
    try:
        return bool(parse_endpoint(text) and _split(f"//{text}").port)
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address is not closed
        return SplitResult("", "", "", "", "")
