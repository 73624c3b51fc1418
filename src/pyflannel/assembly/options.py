"""What the operator asks of flanneld, checked once: flags, FLANNELD_ variables, defaults, in this order."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from ipaddress import IPv4Address
from typing import Literal, TypeVar

from pyflannel.assembly.flanneld_flags import (
    FLAGS,
    IDLE_FLAGS,
    IDLE_VALUES,
    LATER_FLAGS,
    STORE_FLAGS,
    WORKING_FLAGS,
)
from pyflannel.assembly.store_url import checked_store_url, etcd_store_url
from pyflannel.engine.network_follower import RESERVED
from pyflannel.errors import UsageError
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.wire.go_flags import Flag, Given, default_of, format_usage, read_environment, read_words

_ENVIRONMENT_PREFIX = "FLANNELD"
_MARGIN_MINUTES = range(1, 24 * 60)
_POSIX_CLASSES = {
    "[:alpha:]": "a-zA-Z",
    "[:digit:]": "0-9",
    "[:alnum:]": "0-9a-zA-Z",
    "[:lower:]": "a-z",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9a-fA-F",
}
"""Go's expressions have them inside brackets; Python's would take them for something else."""

_NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

LogForm = Literal["klog", "json"]
OnSubnetLost = Literal["keep", "renumber"]
_LOG_FORMS: Mapping[str, LogForm] = {"klog": "klog", "json": "json"}
_ON_SUBNET_LOST: Mapping[str, OnSubnetLost] = {"keep": "keep", "renumber": "renumber"}
_Choice = TypeVar("_Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlanneldOptions:
    """How flanneld is to run.

    Attributes:
        store_url: where the leases live: `etcd://HOST:PORT,…/PREFIX`, `sqlite:///PATH`.
        iface: names or addresses of interfaces, in the order in which they are tried.
        iface_regex: tried after `iface`: found anywhere in an interface's addresses, then in its name.
        iface_can_reach: tried last.
        subnet_dir: directory of the subnet files of several networks.
        networks: their names, below the store's prefix; none for the one network that stands there itself.
        watch_networks: run each network of the store, or of `networks`, as it comes.
        iptables_resync_s: longest time after which filter rules are read again.
        renew_margin_s: how long before its end the lease is renewed.
        node_id: identity that replaces the one kept in `state_dir`; None for that one.
        verbosity: debug lines are logged from 1.
    """

    store_url: str
    iface: tuple[str, ...]
    iface_regex: tuple[re.Pattern[str], ...]
    iface_can_reach: IPv4Address | None
    public_ip: IPv4Address | None
    subnet_file: str
    subnet_dir: str
    networks: tuple[str, ...]
    watch_networks: bool
    renew_margin_s: int
    packet_filter: FilterOptions
    iptables_resync_s: int
    run_dir: str
    state_dir: str
    node_id: str | None
    machine_id_file: str
    log_format: LogForm
    verbosity: int
    on_subnet_lost: OnSubnetLost


@dataclass(frozen=True, slots=True)
class Notice:
    """The text that was asked for instead of a daemon; it goes to stderr, and the exit status is 0."""

    text: str


def parse_flanneld(
    arguments: Sequence[str], environment: Mapping[str, str], *, program: str = "flanneld"
) -> FlanneldOptions | Notice:
    """Return what the command line (without the program's name) and the environment ask for.

    A flag on the command line beats its variable; of a repeated flag the last counts, or all of them where
    it may be repeated.

    Raises:
        UsageError: wrong use; message and hint are one line together.
    """
    written, rest = read_words(FLAGS, arguments)
    asked = {given.flag.name for given in written if given.value is True}
    if asked & {"help", "h"}:
        later = [replace(flag, meaning=f"{flag.meaning} (not supported yet)") for flag in LATER_FLAGS]
        return Notice(format_usage(program, [*WORKING_FLAGS, *later, *IDLE_FLAGS]))
    if "version" in asked:
        return Notice(version("pyflannel") + "\n")
    if rest:
        raise UsageError(
            f"{rest[0]!r} is no flag, and flanneld takes nothing else",
            hint="Write --NAME=VALUE; a boolean as --NAME or --NAME=false.",
        )
    settings = _Settings(FLAGS, written, environment)
    for flag in LATER_FLAGS:
        _refuse_later(flag, settings)
    return _options(settings)


def store_url_from_environment(environment: Mapping[str, str]) -> str:
    """Return the URL of the store that flanneld without flags would use in this environment.

    Raises:
        UsageError: a variable makes no sense; message and hint are one line together.
    """
    return _store_url(_Settings(STORE_FLAGS, [], environment))


class _Settings:
    """What was given for each flag, on the command line or else in the environment."""

    def __init__(
        self, flags: Sequence[Flag], written: Sequence[Given], environment: Mapping[str, str]
    ) -> None:
        self._flags = {flag.name: flag for flag in flags}
        self.on_command_line = {given.flag.name for given in written}
        others = [flag for flag in flags if flag.name not in self.on_command_line]
        self._given = [*written, *read_environment(others, environment, _ENVIRONMENT_PREFIX)]

    def all(self, name: str) -> list[Given]:
        """Return everything given for the flag, in its order."""
        return [given for given in self._given if given.flag.name == name]

    def last(self, name: str) -> Given:
        """Return what counts for a flag that is not repeated; its default when it was not given."""
        return (self.all(name) or [default_of(self._flags[name])])[-1]


def _options(settings: _Settings) -> FlanneldOptions:
    return FlanneldOptions(
        store_url=_store_url(settings),
        iface=tuple(str(given.value) for given in settings.all("iface") if given.value),
        iface_regex=tuple(_regex(given) for given in settings.all("iface-regex") if given.value),
        iface_can_reach=_address(settings.last("iface-can-reach")),
        public_ip=_address(settings.last("public-ip")),
        subnet_file=_path(settings.last("subnet-file")),
        subnet_dir=_path(settings.last("subnet-dir")),
        networks=_networks(settings.last("networks")),
        watch_networks=bool(settings.last("watch-networks").value),
        renew_margin_s=_margin_s(settings.last("subnet-lease-renew-margin")),
        packet_filter=_packet_filter(settings),
        iptables_resync_s=_resync_s(settings.last("iptables-resync")),
        run_dir=_path(settings.last("run-dir")),
        state_dir=_path(settings.last("state-dir")),
        node_id=str(settings.last("node-id").value) or None,
        machine_id_file=_path(settings.last("machine-id-file")),
        log_format=_one_of(settings.last("log-format"), _LOG_FORMS),
        verbosity=int(settings.last("v").value),
        on_subnet_lost=_one_of(settings.last("on-subnet-lost"), _ON_SUBNET_LOST),
    )


def _packet_filter(settings: _Settings) -> FilterOptions:
    return FilterOptions(
        masquerades=bool(settings.last("ip-masq").value),
        is_fully_random=not settings.last("ip-masq-fully-random-disable").value,
        accepts_forwarded=bool(settings.last("iptables-forward-rules").value),
    )


def _resync_s(given: Given) -> int:
    if int(given.value) < 1:
        raise UsageError(
            f"{given.origin}={given.value} is no number of seconds from 1 up",
            hint=f"Write {given.origin}={given.flag.default}.",
        )
    return int(given.value)


def _store_url(settings: _Settings) -> str:
    given = [given for flag in STORE_FLAGS for given in settings.all(flag.name) if given.value]
    # A variable for all hosts does not contradict the command line, which beats it.
    given = [each for each in given if each.flag.name in settings.on_command_line] or given
    urls = [each for each in given if each.flag.name == "store"]
    if urls and len(urls) < len(given):
        names = " and ".join(dict.fromkeys(each.origin for each in given))
        raise UsageError(
            f"{names} name two stores", hint="Give the store's URL or etcd's endpoints and prefix."
        )
    if urls:
        return checked_store_url(urls[-1])
    return etcd_store_url(settings.last("etcd-endpoints"), settings.last("etcd-prefix"))


def _refuse_later(flag: Flag, settings: _Settings) -> None:
    idle = IDLE_VALUES.get(flag.name, ("", 0, False))
    for given in settings.all(flag.name):
        if given.value not in idle:
            # The value is not quoted: it may be a password.
            other = f", or write {given.origin}=false" if flag.kind == "boolean" else ""
            raise UsageError(f"{given.origin} is not supported yet", hint=f"Leave it out{other}.")


def _address(given: Given) -> IPv4Address | None:
    if not given.value:
        return None
    try:
        return IPv4Address(str(given.value))
    except ValueError as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is no IPv4 address",
            hint=f"Write {given.origin}=192.0.2.1, for example.",
        ) from error


def _regex(given: Given) -> re.Pattern[str]:
    text = str(given.value)
    for name, members in _POSIX_CLASSES.items():
        text = text.replace(name, members)
    try:
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise UsageError(
            f"{given.origin}={given.value!r} is no regular expression: {error}",
            hint=f"Write {given.origin}='^eth', for example.",
        ) from error


def _path(given: Given) -> str:
    if not given.value:
        raise UsageError(f"{given.origin} is empty", hint=f"Write {given.origin}={given.flag.default}.")
    return str(given.value)


def _networks(given: Given) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in str(given.value).split(",") if name.strip()))
    for name in names:
        if not _NETWORK_NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(
                f"{given.origin}={given.value!r}: {name!r} cannot be a network's name",
                hint=f"Write {given.origin}=blue,red; subnets and claims are kept for flannel itself.",
            )
    return names


def _margin_s(given: Given) -> int:
    if given.value not in _MARGIN_MINUTES:
        raise UsageError(
            f"Invalid {given.flag.name} option, out of acceptable range: {given.value}",
            hint=f"Write {given.origin}=60; 1 to {_MARGIN_MINUTES[-1]} minutes can be had.",
        )
    return int(given.value) * 60


def _one_of(given: Given, choices: Mapping[str, _Choice]) -> _Choice:
    if given.value not in choices:
        raise UsageError(
            f"{given.origin}={given.value!r} is not known",
            hint=f"Write {given.origin}={' or '.join(choices)}.",
        )
    return choices[str(given.value)]
