"""The checked options of flanneld, read from flags, FLANNELD_ variables and defaults, in this order of
precedence.
"""

import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.assembly.directories import objection
from pyflannel.assembly.flanneld_flags import (
    FLAGS,
    LATER_FLAGS,
    format_help,
)
from pyflannel.assembly.kubernetes import URL as KUBERNETES_URL
from pyflannel.assembly.kubernetes import KubernetesOptions, chosen_kubernetes
from pyflannel.assembly.store_flags import StoreChoice, chosen_store
from pyflannel.errors import UsageError, cut
from pyflannel.http.sockets import Endpoint
from pyflannel.model.host import GroChoice
from pyflannel.model.lease import LONGEST_OWNER
from pyflannel.model.store_record import Secret
from pyflannel.model.tunnel_guard import GuardMode
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.wire.go_flags import Flag, Given, Settings, read_words

_MARGIN_MINUTES = range(1, 24 * 60)
_LAST_PORT = 65535
_LONGEST_NAME = 15
"""Maximum length in bytes of an interface's name (IFNAMSIZ minus the NUL)."""

_TTL_S = range(5, 366 * 24 * 3600)
_POSIX_CLASSES = {
    "[:alpha:]": "a-zA-Z",
    "[:digit:]": "0-9",
    "[:alnum:]": "0-9a-zA-Z",
    "[:lower:]": "a-z",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9a-fA-F",
}
"""Character classes that Go's regular expressions allow inside brackets and Python's do not."""

KEY_FILE = "WIREGUARD_KEY_FILE"
"""Variable of the original with the path of the WireGuard key."""

LogForm = Literal["klog", "json"]
OnSubnetLost = Literal["keep", "renumber"]
FastPathChoice = Literal["auto", "safe", "flow", "off"]
_LOG_FORMS: Mapping[str, LogForm] = {"klog": "klog", "json": "json"}
_ON_SUBNET_LOST: Mapping[str, OnSubnetLost] = {"keep": "keep", "renumber": "renumber"}
_FAST_PATHS: Mapping[str, FastPathChoice] = {"auto": "auto", "safe": "safe", "flow": "flow", "off": "off"}
_GRO: Mapping[str, GroChoice] = {"auto": "auto", "on": "on", "off": "off"}
_GUARD_MODES: Mapping[str, GuardMode] = {"strict": "strict", "peer": "peer", "off": "off"}
LeaseSigningMode = Literal["off", "warn", "require"]
_LEASE_SIGNING: Mapping[str, LeaseSigningMode] = {"off": "off", "warn": "warn", "require": "require"}
_Choice = TypeVar("_Choice")
_Parsed = TypeVar("_Parsed")


class FlanneldOptions(Struct, frozen=True, kw_only=True):
    """The options of one flanneld.

    Attributes:
        store_url: URL of the store: `etcd://HOST:PORT,…/PREFIX`, `sqlite:///PATH`, `kube:`.
        etcd_password: password of the user in the URL, if it was given directly and not in a file.
        kubernetes: the cluster whose Nodes hold the leases; None for another store.
        iface: names or addresses of interfaces, in the order in which flanneld tries them.
        iface_regex: regular expressions that are tried after `iface`; they match any part of the addresses of
            an interface, or of its name.
        iface_can_reach: flanneld uses the interface of the route to this address; tried last.
        subnet_dir: directory of the subnet files of several networks.
        networks: names of several networks below the prefix of the store; empty for a single network.
        watch_networks: run each network of the store, or of `networks`, while its config exists.
        has_blackhole: drop packets to the host's own subnet that no local bridge accepts.
        iptables_resync_s: longest interval between two checks of the filter rules.
        lease_ttl_s: lease time.
        renew_margin_s: time before the end of the lease at which the lease is renewed; at most half of the
            lease time.
        run_dir, state_dir: directories of the daemon; None for the directories of the prefix in the store.
        node_id: identity of the host; None to use the identity in `state_dir`.
        verbosity: 1 or more adds debug lines to the log.
        healthz: address and port for health checks. http: address and port for health checks, metrics and the
            page.
        http_token_file: file of the token for the page; None for no token, on a loopback address only.
        fast_path: how the backends udp and vxlan forward packets; auto: as the network config specifies.
        fast_path_gro: whether received TCP segments are coalesced; auto: only if the underlay is a network
            card.
        requires_encryption: refuse every backend that sends packets unencrypted.
        wireguard_key_file: path of the WireGuard key; None for the file in `state_dir`.
        docker_socket: socket of the network plugin for Docker; None without the plugin.
        warnings: messages for the operator, one line each.
    """

    store_url: str
    etcd_password: Secret | None = None
    kubernetes: KubernetesOptions | None = None
    iface: tuple[str, ...]
    iface_regex: tuple[re.Pattern[str], ...]
    iface_can_reach: IPv4Address | IPv6Address | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None = None
    subnet_file: str
    subnet_dir: str
    networks: tuple[str, ...]
    watch_networks: bool
    lease_ttl_s: int
    renew_margin_s: int
    packet_filter: FilterOptions
    iptables_resync_s: int
    has_blackhole: bool
    run_dir: str | None
    state_dir: str | None
    node_id: str | None
    machine_id_file: str
    log_format: LogForm
    verbosity: int
    on_subnet_lost: OnSubnetLost
    healthz: Endpoint | None = None
    http: Endpoint | None = None
    http_token_file: str | None = None
    fast_path: FastPathChoice = "auto"
    fast_path_gro: GroChoice = "auto"
    requires_encryption: bool = False
    lease_signing: LeaseSigningMode = "off"
    lease_keys: str | None = None
    lease_operators: str | None = None
    wireguard_key_file: str | None = None
    docker_socket: str | None = None
    warnings: tuple[str, ...] = ()


class RequestedText(Struct, frozen=True):
    """The text of --help or --version, which is printed instead of running flanneld.

    The original prints both texts to stderr. The help is on stdout, so that it can be paged (decision 0036).
    """

    text: str
    stream: Literal["stdout", "stderr"]


def parse_flanneld(
    arguments: Sequence[str], environment: Mapping[str, str], *, program: str = "flanneld"
) -> FlanneldOptions | RequestedText:
    """Return the options in the command line (without the program's name) and the environment.

    A flag on the command line overrides its variable. If a flag is repeated, the last value applies, or all
    values if the flag allows it.

    Raises:
        UsageError: an invalid flag, variable or argument; message and hint fit one line.
    """
    written, rest = read_words(FLAGS, arguments)
    asked = {given.flag.name for given in written if given.value is True}
    if asked & {"help", "h"}:
        return RequestedText(format_help(program), "stdout")
    if "version" in asked:
        return RequestedText(VERSION + "\n", "stderr")
    if rest:
        raise UsageError(
            f"{rest[0]!r} is not a flag, and flanneld takes no other arguments",
            hint="Write --NAME=VALUE, or --NAME=false for a boolean flag.",
        )
    settings = Settings(FLAGS, written, environment)
    for flag in LATER_FLAGS:
        _refuse_later(flag, settings)
    if settings.last("lease-keys").value and settings.last("lease-operators").value:
        raise UsageError(
            "lease-keys and lease-operators cannot be used together",
            hint="Use lease-keys for a list in a file, or lease-operators for a signed list in the store.",
        )
    return replace(
        _options(settings, chosen_kubernetes(settings, environment)),
        wireguard_key_file=environment.get(KEY_FILE) or None,
    )


def kubernetes_from_environment(environment: Mapping[str, str]) -> KubernetesOptions | None:
    """Return the cluster that flanneld without flags would use in this environment; None for another store.

    Raises:
        UsageError: a variable is invalid; message and hint fit one line.
    """
    return chosen_kubernetes(Settings(FLAGS, [], environment), environment)


def _options(settings: Settings, kubernetes: KubernetesOptions | None) -> FlanneldOptions:
    store = chosen_store(settings) if kubernetes is None else StoreChoice(url=KUBERNETES_URL)
    return FlanneldOptions(
        store_url=store.url,
        etcd_password=store.password,
        kubernetes=kubernetes,
        iface=tuple(_iface(given) for given in settings.all("iface") if given.value),
        iface_regex=tuple(_regex(given) for given in settings.all("iface-regex") if given.value),
        iface_can_reach=_address(settings.last("iface-can-reach"), ip_address, "IPv4 or IPv6"),
        public_ip=_address(settings.last("public-ip"), IPv4Address, "IPv4"),
        public_ipv6=_ipv6_address(settings.last("public-ipv6")),
        subnet_file=_path(settings.last("subnet-file")),
        subnet_dir=_path(settings.last("subnet-dir")),
        networks=_networks(settings.last("networks")),
        watch_networks=bool(settings.last("watch-networks").value),
        lease_ttl_s=_ttl_s(settings.last("subnet-lease-ttl")),
        renew_margin_s=_margin_s(settings.last("subnet-lease-renew-margin")),
        packet_filter=_packet_filter(settings),
        iptables_resync_s=_resync_s(settings.last("iptables-resync")),
        has_blackhole=bool(settings.last("ip-blackhole-route").value),
        run_dir=_directory(settings, "run-dir"),
        state_dir=_directory(settings, "state-dir"),
        node_id=_node_id(settings.last("node-id")),
        machine_id_file=_path(settings.last("machine-id-file")),
        log_format=_one_of(settings.last("log-format"), _LOG_FORMS),
        verbosity=settings.last("v").number,
        on_subnet_lost=_one_of(settings.last("on-subnet-lost"), _ON_SUBNET_LOST),
        healthz=_healthz(settings),
        http=_http(settings.last("http")),
        http_token_file=str(settings.last("http-token-file").value) or None,
        fast_path=_one_of(settings.last("fast-path"), _FAST_PATHS),
        fast_path_gro=_one_of(settings.last("fast-path-gro"), _GRO),
        requires_encryption=bool(settings.last("require-encryption").value),
        lease_signing=_one_of(settings.last("lease-signing"), _LEASE_SIGNING),
        lease_keys=str(settings.last("lease-keys").value) or None,
        lease_operators=str(settings.last("lease-operators").value) or None,
        docker_socket=_docker_socket(settings),
        warnings=store.warnings,
    )


def _packet_filter(settings: Settings) -> FilterOptions:
    guard = _one_of(settings.last("guard"), _GUARD_MODES)
    opens_ports = settings.last("open-ports")
    if opens_ports.value and guard == "off":
        raise UsageError(
            f"{opens_ports.origin} needs the tunnel guard, which drops tunnel packets of senders without "
            f"a lease",
            hint="Remove --guard=off, or open the port in your firewall.",
        )
    return FilterOptions(
        masquerades=bool(settings.last("ip-masq").value),
        is_fully_random=not settings.last("ip-masq-fully-random-disable").value,
        accepts_forwarded=bool(settings.last("iptables-forward-rules").value),
        opens_ports=bool(opens_ports.value),
        guard=guard,
    )


def _resync_s(given: Given) -> int:
    if given.number < 1:
        raise UsageError(
            f"{given.origin}={given.value} is not a number of seconds of 1 or more",
            hint=f"Write {given.origin}={given.flag.default}.",
        )
    return given.number


def _refuse_later(flag: Flag, settings: Settings) -> None:
    for given in settings.all(flag.name):
        if given.value not in ("", 0, False):
            # The message does not quote the value, because it may be a password.
            other = f", or write {given.origin}=false" if flag.kind == "boolean" else ""
            raise UsageError(f"{given.origin} is not supported yet", hint=f"Remove it{other}.")


def _address(given: Given, parse: Callable[[str], _Parsed], kind: str) -> _Parsed | None:
    if not given.value:
        return None
    try:
        return parse(str(given.value))
    except ValueError as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is not an {kind} address",
            hint=f"Write {given.origin}=192.0.2.1, for example.",
        ) from error


def _ipv6_address(given: Given) -> IPv6Address | None:
    if not given.value:
        return None
    try:
        address = IPv6Address(str(given.value))
    except ValueError:
        address = None
    if address is None or address.is_link_local or address.scope_id or address.ipv4_mapped:
        raise UsageError(
            f"{given.origin}={given.value!r} is not an IPv6 address that other hosts can reach",
            hint=f"Write {given.origin}=2001:db8::1, for example.",
        )
    return address


def _iface(given: Given) -> str:
    """Return the checked name or address of an interface. The rules for names are the rules of the kernel
    (dev_valid_name).
    """
    text = str(given.value)
    with suppress(ValueError):
        ip_address(text)
        return text
    if (why := _name_objection(text)) is not None:
        raise UsageError(
            f"{given.origin}={text!r} is not the name or address of an interface: {why}",
            hint=f"Write {given.origin}=eth0, for example; `ip link` shows the names.",
        )
    return text


def _name_objection(name: str) -> str | None:
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return f"a name has at most {_LONGEST_NAME} bytes"
    if name in (".", ".."):
        return "no interface has this name"
    if any(each in name for each in string.whitespace):
        return "a name has no white space"
    return next((f"a name has no {each!r}" for each in "/:" if each in name), None)


def _any_address(given: Given) -> IPv4Address | IPv6Address:
    text = str(given.value or given.flag.default)
    try:
        return ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is not an IP address", hint=f"Write {given.origin}=127.0.0.1."
        ) from error


def _healthz(settings: Settings) -> Endpoint | None:
    ip, given = _any_address(settings.last("healthz-ip")), settings.last("healthz-port")
    if given.number > _LAST_PORT:
        raise UsageError(
            f"{given.origin}={given.value} is not a port from 1 to {_LAST_PORT}",
            hint=f"Write {given.origin}=8081, for example.",
        )
    if given.number <= 0:  # the original also treats negative numbers as 0
        return None
    return Endpoint(name="healthz", ip=ip, port=given.number, asked_by=f"{given.origin}={given.value}")


def _http(given: Given) -> Endpoint | None:
    if not given.value:
        return None
    host, _, port = str(given.value).rpartition(":")
    try:
        ip = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if ip.version == 6 and not host.startswith("["):
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is not an IP address and port",
            hint=f"Write {given.origin}=127.0.0.1:8471, or [::1]:8471.",
        ) from error
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= _LAST_PORT:
        raise UsageError(
            f"{given.origin}={given.value!r}: {port!r} is not a port from 1 to {_LAST_PORT}",
            hint=f"Write {given.origin}={host}:8471, for example.",
        )
    return Endpoint(name="http", ip=ip, port=int(port), asked_by=f"{given.origin}={given.value}")


def _regex(given: Given) -> re.Pattern[str]:
    text = str(given.value)
    for name, members in _POSIX_CLASSES.items():
        text = text.replace(name, members)
    try:
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is not a regular expression: {error}",
            hint=f"Write {given.origin}='^eth', for example.",
        ) from error


def _docker_socket(settings: Settings) -> str | None:
    given = settings.last("docker-plugin")
    return _path(settings.last("docker-plugin-socket")) if given.value else None


def _path(given: Given) -> str:
    if not given.value:
        raise UsageError(f"{given.origin} is empty", hint=f"Write {given.origin}={given.flag.default}.")
    return str(given.value)


def _directory(settings: Settings, name: str) -> str | None:
    return _path(settings.last(name)) if settings.all(name) else None


def _node_id(given: Given) -> str | None:
    text = str(given.value)
    if len(text) > LONGEST_OWNER or not all(map(str.isprintable, text)):
        raise UsageError(
            f"{given.origin}={cut(text, LONGEST_OWNER)!r} is not an identity",
            hint=f"Write {given.origin} with at most {LONGEST_OWNER} printable characters.",
        )
    return text or None


def _networks(given: Given) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in str(given.value).split(",") if name.strip()))
    for name in names:
        if (why := objection(name)) is not None:
            raise UsageError(
                f"{given.origin}={given.value!r}: {name!r} cannot be the name of a network: {why}",
                hint=f"Write {given.origin}=blue,red, for example.",
            )
    return names


def _margin_s(given: Given) -> int:
    if given.value not in _MARGIN_MINUTES:
        raise UsageError(
            f"Invalid {given.flag.name} option, out of acceptable range: {given.value}",
            hint=f"Write {given.origin}=60; the range is 1 to {_MARGIN_MINUTES[-1]} minutes.",
        )
    return given.number * 60


def _ttl_s(given: Given) -> int:
    if given.value not in _TTL_S:
        raise UsageError(
            f"{given.origin}={given.value} is not a number of seconds from {_TTL_S[0]} to {_TTL_S[-1]}",
            hint=f"Write {given.origin}={given.flag.default}.",
        )
    return given.number


def _one_of(given: Given, choices: Mapping[str, _Choice]) -> _Choice:
    if given.value not in choices:
        raise UsageError(
            f"{given.origin}={given.value!r} is not a valid value",
            hint=f"Write {given.origin}={' or '.join(choices)}.",
        )
    return choices[str(given.value)]
