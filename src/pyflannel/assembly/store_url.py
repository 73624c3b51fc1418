"""The URL that names a lease store: `etcd://HOST:PORT,HOST:PORT/PREFIX`, `sqlite:///PATH`."""

from urllib.parse import SplitResult, urlsplit

from pyflannel.errors import UsageError
from pyflannel.wire.go_flags import Given

_LATER_SCHEMES = ("etcds", "http", "https", "kube")
_EXAMPLES = "etcd://127.0.0.1:2379/coreos.com/network or sqlite:///var/lib/flannel/leases.db"


def etcd_store_url(endpoints: Given, prefix: Given) -> str:
    """Return the store's URL for etcd's endpoints, separated by commas, and the prefix of its keys.

    Raises:
        UsageError: an endpoint is no `http://HOST:PORT`, or the prefix does not begin with a slash.
    """
    hosts = [_host(endpoint.strip(), endpoints.origin) for endpoint in str(endpoints.value).split(",")]
    path = str(prefix.value)
    if not path.startswith("/") or "?" in path or "#" in path:
        raise UsageError(
            f"{prefix.origin}={path!r} is no path of keys",
            hint=f"Write {prefix.origin}={prefix.flag.default}.",
        )
    return f"etcd://{','.join(hosts)}{path}"


def checked_store_url(given: Given) -> str:
    """Return the URL that was given, if a store can have it.

    Raises:
        UsageError: it has another form, or names a kind of store that is not there yet.
    """
    url, origin = str(given.value), given.origin
    parts = _split(url)
    match parts.scheme:
        case "etcd" if parts.netloc and all(_is_host_and_port(host) for host in parts.netloc.split(",")):
            return url
        case "sqlite" if not parts.netloc and len(parts.path) > 1 and not parts.path.endswith("/"):
            return url
        case scheme if scheme in _LATER_SCHEMES:
            raise UsageError(
                f"{origin}: stores of the kind {scheme}: are not supported yet",
                hint=f"Write {_EXAMPLES}.",
            )
        case _:
            raise UsageError(f"{origin} names no store", hint=f"Write {_EXAMPLES}.")


def _host(endpoint: str, origin: str) -> str:
    parts = _split(endpoint)
    if parts.scheme == "https":
        raise UsageError(
            f"{origin}: TLS to etcd is not supported yet", hint=f"Write {origin}=http://HOST:PORT."
        )
    is_bare = not parts.query and not parts.fragment and parts.path in ("", "/")
    if parts.scheme == "http" and is_bare and _is_host_and_port(parts.netloc):
        return parts.netloc
    if _is_host_and_port(endpoint):
        correct = f"http://{endpoint}"
    elif parts.scheme == "http" and _is_host_and_port(f"{parts.netloc}:2379"):
        correct = f"http://{parts.netloc}:2379"
    else:
        correct = "http://HOST:PORT"
    raise UsageError(f"{origin} has an endpoint that is no URL of an etcd member", hint=f"Write {correct}.")


def _is_host_and_port(text: str) -> bool:
    # What stands before an @ may be a password: it is refused, and no message quotes it.
    parts = _split(f"//{text}")
    try:
        return bool(parts.hostname and parts.port) and parts.netloc == text and "@" not in text
    except ValueError:  # the port is no number below 65536
        return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address is not closed
        return SplitResult("", "", "", "", "")
