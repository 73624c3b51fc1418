"""From the flags that say where the leases live, and as whom we ask there, to the store's URL.

The URL says it all but a password that was given itself, which stays apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from pyflannel.assembly.store_url import (
    ETCD_PORT,
    TLS_NAMES,
    USER_NAMES,
    EtcdAddress,
    check_settings,
    parse_endpoint,
    parse_store_url,
)
from pyflannel.errors import UsageError
from pyflannel.model.secret import Secret
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
    Flag(name="etcd-prefix", default="/coreos.com/network", meaning="where flannel's keys begin in etcd"),
    Flag(
        name="etcd-cafile",
        meaning="who signed etcd's certificates; those whom the system trusts if not given",
    ),
    Flag(name="etcd-certfile", meaning="our certificate, where etcd asks for one"),
    Flag(name="etcd-keyfile", meaning="the private key of our certificate"),
    Flag(name="etcd-username", meaning="user of etcd"),
    Flag(
        name="etcd-password",
        kind="secret",
        meaning="password of the user; better in its variable or in a file",
    ),
    Flag(name="etcd-password-file", meaning="file with the password in its first line"),
    Flag(
        name="store",
        meaning="the lease store as a URL: etcd://HOST:PORT,HOST:PORT/PREFIX, etcds:// or sqlite:///PATH; "
        "instead of all flags of etcd but its password",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChoice:
    """Which store was asked for.

    Attributes:
        password: of the user in the URL, when it was given itself.
        warnings: what the operator should know, a line each.
    """

    url: str
    password: Secret | None = None
    warnings: tuple[str, ...] = ()


def chosen_store(settings: Settings) -> StoreChoice:
    """Return the store that flags and variables name together.

    Raises:
        UsageError: they make no sense; message and hint are one line together.
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
    """Return what names the store, the URL or the flags of etcd, and a warning of what does not count.

    Both ways may be given where the command line has one and the environment the other: a variable for all
    hosts does not contradict the command line.
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
            f"{names} name two stores",
            hint="Give etcd's flags, or the store's URL with all in it: …?cafile=PATH&username=NAME.",
        )
    way, other = (urls, etcd) if has_url else (etcd, urls)
    origin = next(each.origin for each in way if each.flag.name in settings.on_command_line)
    idle = ", ".join(dict.fromkeys(each.origin for each in other))
    return way, [f"Without effect, as {origin} names the store: {idle}"]


def etcd_password_of(environment: Mapping[str, str]) -> Secret | None:
    """Return the password that the environment gives, for a store that is named otherwise."""
    return Secret(environment.get(PASSWORD_VARIABLE, "")) or None


def _etcd(settings: Settings, given: Mapping[str, Given], password: Secret | None) -> StoreChoice:
    endpoints, prefix = settings.last(_ENDPOINTS), settings.last("etcd-prefix")
    has_tls, members = _members(endpoints)
    wanted = {name: str(given[name].value) for name in (*TLS_NAMES, *USER_NAMES) if name in given}
    warnings = []
    if not has_tls and (idle := [given[name].origin for name in TLS_NAMES if name in given]):
        warnings.append(f"Without effect, as {endpoints.origin} says http://: {', '.join(idle)}")
        wanted = {name: value for name, value in wanted.items() if name not in TLS_NAMES}
    _check_prefix(prefix)
    check_settings(wanted, has_tls=has_tls, shown="etcd")
    address = EtcdAddress(
        endpoints=tuple(members), prefix=str(prefix.value), has_tls=has_tls, settings=wanted
    )
    _check_password(address, password)
    warnings += _clear_text(address, f"{endpoints.origin} says http://")
    return StoreChoice(url=address.url, password=password, warnings=tuple(warnings))


def _named_by_url(url: str, origin: str, password: Secret | None) -> StoreChoice:
    address = parse_store_url(url, origin).store
    if not isinstance(address, EtcdAddress):
        return StoreChoice(url=url, password=password)
    _check_password(address, password)
    warnings = _clear_text(address, f"{origin} says etcd://")
    return StoreChoice(url=url, password=password, warnings=tuple(warnings))


def _clear_text(address: EtcdAddress, cause: str) -> list[str]:
    """Return a warning if the user's password is sent in clear text."""
    if address.has_tls or "username" not in address.settings:
        return []
    return [f"The etcd password goes unencrypted, as {cause}"]


def _password(given: Sequence[Given]) -> Secret | None:
    match [each.value for each in given]:
        case [*_, Secret() as password]:
            return password
        case _:
            return None


def _check_password(address: EtcdAddress, password: Secret | None) -> None:
    user, file = address.settings.get("username"), address.settings.get("password-file")
    if user is None and password is not None:
        raise UsageError("the etcd password needs a user", hint="Give --etcd-username=NAME.")
    if user is not None and password is None and file is None:
        raise UsageError(
            f"the etcd user {user!r} has no password",
            hint=f"Give --etcd-password-file, or set {PASSWORD_VARIABLE}.",
        )
    if password is not None and file is not None:
        raise UsageError(
            f"the etcd user {user!r} has two passwords",
            hint="Give --etcd-password-file, or the password itself; not both.",
        )


def _check_prefix(prefix: Given) -> None:
    path = str(prefix.value)
    if not path.startswith("/") or "?" in path or "#" in path:
        raise UsageError(
            f"{prefix.origin}={path!r} is no path of keys",
            hint=f"Write {prefix.origin}={prefix.flag.default}.",
        )


def _members(endpoints: Given) -> tuple[bool, list[Endpoint]]:
    """Return whether the members are reached over TLS, and where they are."""
    texts = [text.strip() for text in str(endpoints.value).split(",")]
    schemes = {_split(text).scheme for text in texts}
    members = [_member(text, endpoints.origin) for text in texts]
    if len(schemes) > 1:
        raise UsageError(
            f"{endpoints.origin} mixes http:// and https://", hint="Let every member serve one of them."
        )
    return schemes == {"https"}, members


def _member(text: str, origin: str) -> Endpoint:
    parts = _split(text)
    is_bare = not parts.query and not parts.fragment and parts.path in ("", "/")
    has_scheme = parts.scheme in ("http", "https")
    if has_scheme and is_bare and _has_port(parts.netloc):
        return parse_endpoint(parts.netloc)
    if _has_port(text):
        correct = f"http://{text}"
    elif has_scheme and is_bare and _has_port(f"{parts.netloc}:{ETCD_PORT}"):
        correct = f"{parts.scheme}://{parts.netloc}:{ETCD_PORT}"
    else:
        correct = "http://HOST:PORT"
    raise UsageError(f"{origin} has an endpoint that is no URL of an etcd member", hint=f"Write {correct}.")


def _has_port(text: str) -> bool:
    # What stands before an @ may be a password: it is refused, and no message quotes it.
    try:
        return bool(parse_endpoint(text) and _split(f"//{text}").port)
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address is not closed
        return SplitResult("", "", "", "", "")
