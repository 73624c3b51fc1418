"""The flags of flanneld mean the same as in the original. Wrong use is reported in one line."""

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.flanneld_flags import FLAGS, LATER_FLAGS
from pyflannel.assembly.options import (
    FlanneldOptions,
    RequestedText,
    parse_flanneld,
    store_url_from_environment,
)
from pyflannel.errors import UsageError
from pyflannel.http.sockets import Endpoint
from pyflannel.model.store_record import Secret
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.wire.go_flags import default_of

ROOT = Path(__file__).parents[3]


def golden(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((ROOT / "tests/golden" / name).read_text())["cases"]
    return cases


def options(*arguments: str, environment: Mapping[str, str] | None = None) -> FlanneldOptions:
    parsed = parse_flanneld(arguments, environment or {})
    assert isinstance(parsed, FlanneldOptions)
    return parsed


def refusal(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        parse_flanneld(arguments, environment or {})
    line = f"{caught.value}: {caught.value.hint}"
    assert len(line.splitlines()) == 1
    return line


def test_without_flags_everything_has_the_original_default() -> None:
    assert options() == FlanneldOptions(
        store_url="etcd://127.0.0.1:4001,127.0.0.1:2379/coreos.com/network",
        iface=(),
        iface_regex=(),
        iface_can_reach=None,
        public_ip=None,
        subnet_file="/run/flannel/subnet.env",
        subnet_dir="/run/flannel/networks",
        networks=(),
        watch_networks=False,
        lease_ttl_s=24 * 3600,
        renew_margin_s=3600,
        packet_filter=FilterOptions(accepts_forwarded=True, guard="strict"),
        iptables_resync_s=5,
        has_blackhole=False,
        run_dir=None,
        state_dir=None,
        node_id=None,
        machine_id_file="/etc/machine-id",
        log_format="klog",
        verbosity=0,
        on_subnet_lost="keep",
        healthz=None,
        http=None,
        fast_path="auto",
    )


def test_a_flag_enables_the_blackhole_route() -> None:
    assert options("--ip-blackhole-route").has_blackhole
    assert options(environment={"FLANNELD_IP_BLACKHOLE_ROUTE": "true"}).has_blackhole


def test_flags_select_the_filter_rules() -> None:
    asked = options(
        "--ip-masq",
        "--ip-masq-fully-random-disable",
        "--iptables-forward-rules=false",
        "--iptables-resync=7",
        "--guard=peer",
        "--open-ports",
    )

    assert asked.packet_filter == FilterOptions(
        masquerades=True, is_fully_random=False, accepts_forwarded=False, opens_ports=True, guard="peer"
    )
    assert asked.iptables_resync_s == 7


def test_open_ports_need_the_guard() -> None:
    with pytest.raises(UsageError, match="--open-ports needs the guard"):
        options("--open-ports", "--guard=off")


def test_flags_set_their_options() -> None:
    parsed = options(
        "--etcd-endpoints=http://a:1,http://[fd00::2]:2/",
        "-etcd-prefix",
        "/x",
        "--iface=eth0",
        "--iface=10.0.0.1",
        "--iface-regex=^10[.]",
        "--iface-regex=eth[[:digit:]]",
        "--iface-can-reach=192.0.2.9",
        "--public-ip=203.0.113.9",
        "--subnet-lease-renew-margin=1439",
        "--subnet-lease-ttl=5",
        "--node-id=docker1",
        "--log-format=json",
        "--on-subnet-lost=renumber",
        "-v=1",
    )

    assert parsed.store_url == "etcd://a:1,[fd00::2]:2/x"
    assert parsed.iface == ("eth0", "10.0.0.1")
    assert [pattern.pattern for pattern in parsed.iface_regex] == ["^10[.]", "eth[0-9]"]
    assert parsed.iface_can_reach == IPv4Address("192.0.2.9")
    assert parsed.public_ip == IPv4Address("203.0.113.9")
    assert (parsed.renew_margin_s, parsed.lease_ttl_s) == (1439 * 60, 5)
    assert (parsed.node_id, parsed.log_format, parsed.verbosity) == ("docker1", "json", 1)
    assert parsed.on_subnet_lost == "renumber"


def test_a_flag_overrides_its_variable_and_the_last_flag_the_earlier_ones() -> None:
    environment = {"FLANNELD_ETCD_PREFIX": "/env", "FLANNELD_SUBNET_FILE": "/env", "FLANNELD_IFACE": "a,b"}

    parsed = options("--etcd-prefix=/one", "--etcd-prefix=/two", environment=environment)

    assert parsed.store_url.endswith("/two")
    assert parsed.subnet_file == "/env"
    assert parsed.iface == ("a,b",)


def test_an_empty_interface_selects_the_default_one_as_in_the_original() -> None:
    """Units write --iface=${FLANNEL_IFACE}, and leave the variable unset."""
    assert options("--iface=").iface == ()


def test_a_name_of_fifteen_bytes_and_an_address_with_a_zone_may_name_an_interface() -> None:
    given = ("enp0s31f6.12345", "fe80::f816:3eff:fe12:3456%eth0", "192.0.2.1")

    assert options(*(f"--iface={each}" for each in given)).iface == given


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        (["--store=sqlite:///l.db"], {}, "sqlite:///l.db"),
        (["--store=etcd://h:1,g:2/p"], {}, "etcd://h:1,g:2/p"),
        ([], {"FLANNELD_STORE": "sqlite:///l.db"}, "sqlite:///l.db"),
        (["--store=sqlite:///l.db"], {"FLANNELD_ETCD_ENDPOINTS": "http://h:1"}, "sqlite:///l.db"),
        (
            ["--etcd-prefix=/p"],
            {"FLANNELD_STORE": "sqlite:///l.db", "FLANNELD_ETCD_ENDPOINTS": "http://h:1"},
            "etcd://h:1/p",
        ),
        ([], {"FLANNELD_ETCD_ENDPOINTS": "http://h:1", "FLANNELD_ETCD_PREFIX": "/p"}, "etcd://h:1/p"),
    ],
)
def test_the_store_is_named_by_url_or_by_endpoints(
    arguments: list[str], environment: dict[str, str], url: str
) -> None:
    assert options(*arguments, environment=environment).store_url == url


TLS = ("--etcd-endpoints=https://h:1,https://g:2", "--etcd-cafile=/ca.pem")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (TLS, "etcds://h:1,g:2/coreos.com/network?cafile=/ca.pem"),
        (
            [
                *TLS,
                "--etcd-certfile=/c",
                "--etcd-keyfile=/k y",
                "--etcd-username=u",
                "--etcd-password-file=/f",
            ],
            "etcds://h:1,g:2/coreos.com/network"
            "?cafile=/ca.pem&certfile=/c&keyfile=/k%20y&username=u&password-file=/f",
        ),
        (["--store=etcds://h/p?cafile=/ca.pem"], "etcds://h/p?cafile=/ca.pem"),
    ],
)
def test_the_url_names_the_files_of_tls_and_the_user(arguments: list[str], url: str) -> None:
    parsed = options(*arguments)

    assert parsed.store_url == url
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        (
            ["--etcd-endpoints=https://h:1"],
            {"FLANNELD_ETCD_CAFILE": "/ca.pem"},
            "etcds://h:1/coreos.com/network?cafile=/ca.pem",
        ),
        (
            ["--etcd-endpoints=https://h:1"],
            {
                "FLANNELD_ETCD_CERTFILE": "/c",
                "FLANNELD_ETCD_KEYFILE": "/k",
                "FLANNELD_ETCD_USERNAME": "u",
                "FLANNELD_ETCD_PASSWORD_FILE": "/f",
            },
            "etcds://h:1/coreos.com/network?certfile=/c&keyfile=/k&username=u&password-file=/f",
        ),
        (
            ["--etcd-cafile=/mine.pem"],
            {
                "FLANNELD_ETCD_ENDPOINTS": "https://h:1",
                "FLANNELD_ETCD_PREFIX": "/p",
                "FLANNELD_ETCD_CAFILE": "/ca.pem",
                "FLANNELD_ETCD_USERNAME": "u",
                "FLANNELD_ETCD_PASSWORD": "secret",
            },
            "etcds://h:1/p?cafile=/mine.pem&username=u",
        ),
        (
            ["--etcd-prefix=/p", "--etcd-cafile="],
            {"FLANNELD_ETCD_ENDPOINTS": "https://h:1", "FLANNELD_ETCD_CAFILE": "/ca.pem"},
            "etcds://h:1/p",
        ),
    ],
)
def test_each_store_variable_counts_unless_its_own_flag_is_given(
    arguments: list[str], environment: dict[str, str], url: str
) -> None:
    """As in the original, a flag replaces its own variable and no other."""
    parsed = options(*arguments, environment=environment)

    assert parsed.store_url == url
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "url", "without_effect"),
    [
        (
            ["--store=etcds://h/p"],
            {"FLANNELD_ETCD_CAFILE": "/ca.pem", "FLANNELD_ETCD_USERNAME": "u"},
            "etcds://h/p",
            "Ignored FLANNELD_ETCD_CAFILE, FLANNELD_ETCD_USERNAME, because --store names the store",
        ),
        (
            ["--etcd-endpoints=http://h:1"],
            {"FLANNELD_STORE": "sqlite:///l.db"},
            "etcd://h:1/coreos.com/network",
            "Ignored FLANNELD_STORE, because --etcd-endpoints names the store",
        ),
    ],
)
def test_a_warning_names_the_variables_that_another_way_to_name_the_store_overrides(
    arguments: list[str], environment: dict[str, str], url: str, without_effect: str
) -> None:
    """`--store` and the etcd flags are two ways to name one store: the command line decides which counts."""
    parsed = options(*arguments, environment=environment)

    assert parsed.store_url == url
    assert parsed.warnings == (without_effect,)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--etcd-password=secret"], {}),
        (["--etcd-password", "secret"], {"FLANNELD_ETCD_PASSWORD": "other"}),
        ([], {"FLANNELD_ETCD_PASSWORD": "secret"}),
    ],
)
def test_a_password_is_accepted_and_never_shown(arguments: list[str], environment: dict[str, str]) -> None:
    parsed = options(*TLS, "--etcd-username=u", *arguments, environment=environment)

    assert parsed.etcd_password == Secret("secret")
    assert "secret" not in repr(parsed)
    assert parsed.store_url.endswith("&username=u")


def test_flags_that_http_endpoints_ignore_give_a_warning() -> None:
    parsed = options("--etcd-cafile=/c", "--etcd-username=u", "--etcd-password=secret")

    assert parsed.store_url.endswith("/coreos.com/network?username=u")
    assert ["--etcd-cafile" in parsed.warnings[0], "unencrypted" in parsed.warnings[1]] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "environment", "origin"),
    [
        (["--store=etcd://h/p?username=u", "--etcd-password=secret"], {}, "--store"),
        (["--store=etcd://h/p?username=u&password-file=/f"], {}, "--store"),
        ([], {"FLANNELD_STORE": "etcd://h/p?username=u", "FLANNELD_ETCD_PASSWORD": "s"}, "FLANNELD_STORE"),
    ],
)
def test_a_store_url_that_sends_a_password_in_clear_text_gives_a_warning(
    arguments: list[str], environment: dict[str, str], origin: str
) -> None:
    parsed = options(*arguments, environment=environment)

    assert parsed.warnings == (f"The etcd password is sent unencrypted, because {origin} uses etcd://",)


@pytest.mark.parametrize("url", ["etcds://h/p?username=u&password-file=/f", "etcd://h/p", "sqlite:///f"])
def test_a_store_url_without_a_clear_text_password_gives_no_warning(url: str) -> None:
    assert options(f"--store={url}").warnings == ()


def test_the_health_endpoint_is_off_below_port_one() -> None:
    assert options("--healthz-port=-1").healthz is None
    assert options("--healthz-port=8081").healthz == Endpoint(
        name="healthz", ip=IPv4Address("0.0.0.0"), port=8081, asked_by="--healthz-port=8081"
    )
    assert options("--healthz-ip=::1", "--healthz-port=8081").healthz.ip == IPv6Address("::1")


def test_the_http_flag_sets_the_endpoint_of_metrics() -> None:
    assert options("--http=127.0.0.1:8471").http == Endpoint(
        name="http", ip=IPv4Address("127.0.0.1"), port=8471, asked_by="--http=127.0.0.1:8471"
    )
    assert options(environment={"FLANNELD_HTTP": "[::1]:1"}).http == Endpoint(
        name="http", ip=IPv6Address("::1"), port=1, asked_by="FLANNELD_HTTP=[::1]:1"
    )


def test_the_environment_alone_names_the_store() -> None:
    environment = {"FLANNELD_ETCD_ENDPOINTS": "http://h:1", "FLANNELD_IP_MASQ": "nonsense"}

    assert store_url_from_environment(environment) == "etcd://h:1/coreos.com/network"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["foo"], "'foo' is not a flag, and flanneld takes no other arguments: Write --NAME=VALUE"),
        (["--ifcae=eth0"], "unknown flag --ifcae: Write --iface."),
        (["--public-ip=xx"], "--public-ip='xx' is not an IPv4 address: Write --public-ip=192.0.2.1"),
        (["--public-ip=fd00::1"], "is not an IPv4 address"),
        (
            ["--iface=a-name-of-16-char"],
            "--iface='a-name-of-16-char' is not the name or address of an interface: a name has at most 15",
        ),
        (["--iface=enp0s31f6-übers"], "a name has at most 15 bytes"),
        (["--iface=eth0", "--iface=eth 1"], "--iface='eth 1' is not the name or address of an interface"),
        (["--iface=eth/0"], "'eth/0' is not the name or address of an interface"),
        (["--iface=eth0:1"], "'eth0:1' is not the name or address of an interface: a name has no ':'"),
        (["--iface=.."], "'..' is not the name or address of an interface"),
        (["--iface= "], "--iface=' ' is not the name or address of an interface: a name has no white space"),
        (["--iface=10.0.0.256.1.2.3.4"], "a name has at most 15 bytes"),
        (["--iface-can-reach=x\ny"], r"--iface-can-reach='x\ny' is not an IPv4 address"),
        (["--iface-regex=("], "--iface-regex='(' is not a regular expression: missing )"),
        (
            ["--subnet-lease-renew-margin=0"],
            "Invalid subnet-lease-renew-margin option, out of acceptable range",
        ),
        (["--lease-keys=a", "--lease-operators=b"], "lease-keys and lease-operators exclude each other"),
        (["--subnet-lease-renew-margin=1440"], "1 to 1439 minutes"),
        (["--subnet-lease-ttl=4"], "--subnet-lease-ttl=86400"),
        (["--subnet-lease-ttl=0"], "from 5 to 31622399"),
        (["--iptables-resync=0"], "--iptables-resync=0 is not a number of seconds of 1 or more"),
        (
            ["--etcd-endpoints=h:2379"],
            "--etcd-endpoints: endpoint 'h:2379' has no http:// or https://: Write http://h:2379.",
        ),
        (
            ["--etcd-endpoints=http://g:1,http://h"],
            "--etcd-endpoints: endpoint 'http://h' has no port: Write http://h:2379.",
        ),
        (["--etcd-endpoints=http://h:99999"], "Write http://HOST:PORT."),
        (["--etcd-endpoints=http://h:1/path"], "Write http://HOST:PORT."),
        (["--etcd-endpoints=http://[::1"], "Write http://HOST:PORT."),
        (["--etcd-endpoints="], "endpoint '' is not the URL of an etcd member: Write http://HOST:PORT."),
        (["--etcd-endpoints=https://h"], "Write https://h:2379."),
        (["--etcd-endpoints=http://h:1,https://g:1"], "--etcd-endpoints mixes http:// and https://"),
        (
            ["--etcd-prefix=x"],
            "--etcd-prefix='x' is not a key prefix: it must begin with / and contain no ? or #: Write",
        ),
        (
            ["--etcd-endpoints=http://h:1", "--store=sqlite:///l"],
            "--etcd-endpoints and --store name two stores",
        ),
        (["--store=l.db"], "--store 'l.db' is not a store URL: Write etcd://"),
        (["--store=sqlite://l.db"], "--store 'sqlite://l.db' is not a store URL"),
        (
            ["--store=kube:"],
            "--store 'kube:' is not a store URL of flanneld: Write --kube-subnet-mgr instead.",
        ),
        (["--etcd-username=u"], "the etcd user 'u' has no password: Add --etcd-password-file"),
        (["--etcd-password=secret"], "the etcd password needs a user: Add --etcd-username=NAME."),
        (["--etcd-password-file=/f"], "etcd: password-file needs username: Add username=NAME."),
        (
            ["--etcd-username=u", "--etcd-password=secret", "--etcd-password-file=/f"],
            "the etcd user 'u' has two passwords",
        ),
        (
            ["--etcd-endpoints=https://h:1", "--etcd-certfile=/c"],
            "etcd: certfile and keyfile need each other: Give both",
        ),
        (["--store=etcds://h", "--etcd-cafile=/c"], "--etcd-cafile and --store name two stores"),
        (["--store=etcds://h?username=u"], "the etcd user 'u' has no password"),
        (["--node-id=" + "x" * 257], "Write --node-id with at most 256 printable characters."),
        (["--node-id=a\nb"], "--node-id='a\\nb' is not an identity"),
        (["--healthz-ip=x"], "--healthz-ip='x' is not an IP address"),
        (["--healthz-port=65536"], "--healthz-port=65536 is not a port"),
        (
            ["--http=localhost:8471"],
            "--http='localhost:8471' is not an IP address and port: Write --http=127.0.0.1:8471, or [::1]",
        ),
        (["--http=8471"], "--http='8471' is not an IP address and port"),
        (["--http=:8471"], "--http=':8471' is not an IP address and port"),
        (["--http=::1:8471"], "--http='::1:8471' is not an IP address and port"),
        (["--http=127.0.0.1"], "--http='127.0.0.1' is not an IP address and port"),
        (
            ["--http=127.0.0.1:65536"],
            "--http='127.0.0.1:65536': '65536' is not a port from 1 to 65535: Write --http=127.0.0.1:8471",
        ),
        (["--http=127.0.0.1:0"], "'0' is not a port from 1 to 65535"),
        (["--http=[::1]:http"], "'http' is not a port from 1 to 65535: Write --http=[::1]:8471"),
        (["--run-dir="], "--run-dir is empty: Write --run-dir=/run/flannel."),
        (["--log-format=xml"], "--log-format='xml' is not a valid value: Write --log-format=klog or json."),
    ],
)
def test_wrong_use_is_reported_in_one_line_with_a_remedy(arguments: list[str], line: str) -> None:
    assert line in refusal(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--etcd-endpoints=http://u:secret@h:1"],
        ["--etcd-endpoints=u:secret@h:1"],
        ["--etcd-endpoints=http://h:1?x=secret"],
        ["--store=u:secret@h:1"],
        ["--store=etcd://u:secret@h:1/"],
        ["--store=etcds://h/?username=u&password=secret"],
        ["--etcd-password=secret"],
        ["--etcd-password", "secret", "--etcd-username="],
    ],
)
def test_no_refusal_quotes_a_password(arguments: list[str]) -> None:
    assert "secret" not in refusal(*arguments)


@pytest.mark.parametrize("flag", LATER_FLAGS, ids=lambda flag: flag.name)
def test_a_flag_not_yet_supported_is_refused_unless_its_value_requests_nothing(flag: Any) -> None:
    values = {"text": "x", "integer": "7", "boolean": "true"}
    expected = f"--{flag.name} is not supported yet: Remove it"
    assert expected in refusal(f"--{flag.name}={values[flag.kind]}")
    assert options(f"--{flag.name}={default_of(flag).value}") == options()


def test_help_and_version_are_printed_before_any_other_check() -> None:
    told = parse_flanneld(["--ip-masq", "--public-ip=x", "--version"], {"FLANNELD_IP_MASQ": "maybe"})
    usage = parse_flanneld(["-h"], {}, program="./flanneld")

    assert isinstance(told, RequestedText)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", told.text)
    assert told.stream == "stderr"  # as the original
    assert isinstance(usage, RequestedText)
    assert usage.text.startswith("Usage: ./flanneld [OPTION]...\n")
    assert usage.stream == "stdout"


def test_help_groups_the_flags_by_subject_and_ends_with_the_flags_not_yet_supported() -> None:
    usage = parse_flanneld(["--help"], {})
    assert isinstance(usage, RequestedText)

    parts = re.split(r"^(\S.*):\n", usage.text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    flags = {title: set(re.findall(r"^  --?(\w\S*?)(?:=|$)", text, re.M)) for title, text in sections.items()}

    assert list(sections) == [
        *("Store", "Kubernetes", "Leases", "Underlay", "Backend", "Firewall", "Docker", "Operation"),
        *("Accepted without effect", "Not supported yet"),
        *("Environment variables", "Exit codes", "Examples"),
    ]
    assert set.union(*list(flags.values())[:10]) == {flag.name for flag in FLAGS}
    assert flags["Not supported yet"] == {flag.name for flag in LATER_FLAGS}
    assert max(map(len, usage.text.splitlines())) <= 80


@pytest.mark.parametrize(
    "case", golden("cli-flags.json"), ids=lambda case: f"{case['version']}-{case['flag']}"
)
def test_every_flag_of_the_original_exists_with_its_default(case: dict[str, Any]) -> None:
    flag = next(flag for flag in FLAGS if flag.name == case["flag"])

    default = default_of(flag).value
    text = str(default).lower() if isinstance(default, bool) else str(default)
    assert (text or None) == (case.get("default") or ("0" if flag.kind == "integer" else None))


# Golden cases that pyflannel refuses. The original continued, or ended with status 0.
OUR_REFUSALS = {
    "words that are no flags were ignored (0.20.2) or answered by the usage with status 0 (0.6.2)": {
        "bool with separate word",
        "single dash word",
        "double dash then version",
        "positional",
        "positional before version",
    },
    "a wrong variable became zero, or was ignored": {
        "env bad bool",
        "env bad int",
        "env bad bool for a flag with default true",
    },
    "wrong values showed late, as status 1 or not at all": {
        "value that looks like a flag",
        "public-ip not an address",
        "renew margin 0",
        "renew margin -5",
        "bad endpoint",
        "empty endpoints",
        "bad iface regex",
        "kube bad config file",
        "kube with url, no names",
        "kube bad prefix",
    },
    "not there yet": {
        "listen bad scheme",
        "listen",
    },
}


@pytest.mark.parametrize("case", golden("cli-behaviour.json"), ids=lambda case: case["id"])
def test_command_lines_are_accepted_or_refused_as_by_the_original(case: dict[str, Any]) -> None:
    ours = _verdict(case["args"], case["env"])

    refused = any(case["name"] in names for names in OUR_REFUSALS.values())
    assert ours == ("refused" if refused else _original_verdict(case))


def _verdict(arguments: list[str], environment: dict[str, str]) -> str:
    try:
        parsed = parse_flanneld(arguments, environment)
    except UsageError:
        return "refused"
    if isinstance(parsed, FlanneldOptions):
        return "runs"
    return "usage" if parsed.text.startswith("Usage") else "version"


def _original_verdict(case: dict[str, Any]) -> str:
    first = (case["stderr_lines"] or [""])[0]
    if first.startswith(
        ("flag provided", "flag needs", "invalid value", "invalid boolean", "bad flag syntax")
    ):
        return "refused"
    if case["usage_on_stderr"]:
        return "usage"
    return "version" if first in ("dev", "0.5.3+git") else "runs"


def test_the_reference_names_every_flag_and_default() -> None:
    text = (ROOT / "docs/reference/flags.md").read_text()

    assert [flag.name for flag in FLAGS if f"`{flag.name}`" not in text] == []
    assert [flag.default for flag in FLAGS if flag.default and f"`{flag.default}`" not in text] == []


def test_the_fast_path_is_one_of_three() -> None:
    assert options("--fast-path=off").fast_path == "off"
    with pytest.raises(UsageError, match="--fast-path='turbo' is not a valid value"):
        options("--fast-path=turbo")


def test_the_docker_plugin_is_off_by_default_and_has_a_socket_in_dockers_directory() -> None:
    off, on = parse_flanneld([], {}), parse_flanneld(["--docker-plugin"], {})

    assert isinstance(off, FlanneldOptions)
    assert isinstance(on, FlanneldOptions)
    assert (off.docker_socket, on.docker_socket) == (None, "/run/docker/plugins/flannel.sock")


KUBERNETES = ("--kube-subnet-mgr", "--kubeconfig-file=/etc/flannel.conf")


def test_kubernetes_replaces_the_other_stores() -> None:
    found = options(*KUBERNETES, "--kube-annotation-prefix=example.org/blue", environment={"NODE_NAME": "n1"})

    assert found.store_url == "kube:"
    assert found.kubernetes is not None
    assert (found.kubernetes.node, found.kubernetes.pod) == ("n1", None)
    assert found.kubernetes.prefix == "example.org/blue-"
    assert str(found.kubernetes.config) == "/etc/kube-flannel/net-conf.json"
    assert found.kubernetes.sets_condition
    assert not found.kubernetes.warns
    pod = {"POD_NAME": "p", "POD_NAMESPACE": "s"}
    others = ("--set-node-network-unavailable=false", "--warn-network-policies")
    other = options(*KUBERNETES, *others, environment=pod).kubernetes
    assert other is not None
    assert (other.node, other.pod, other.sets_condition, other.warns) == (None, ("s", "p"), False, True)
    assert options("--kube-api-url=x", "--net-config-path=/x").kubernetes is None


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (KUBERNETES, {}, "env variables POD_NAME and POD_NAMESPACE must be set: Or set NODE_NAME"),
        (KUBERNETES, {"POD_NAME": "p"}, "env variables POD_NAME and POD_NAMESPACE must be set"),
        (["--kube-subnet-mgr"], {"NODE_NAME": "n"}, "fail to create kubernetes config: this is no pod"),
        (
            ["--kube-subnet-mgr", "--kube-api-url=ftp://x"],
            {"NODE_NAME": "n"},
            "--kube-api-url is not the URL",
        ),
        (
            [*KUBERNETES, "--networks=a"],
            {"NODE_NAME": "n"},
            "--networks cannot be used with --kube-subnet-mgr",
        ),
        ([*KUBERNETES, "--lease-signing=warn"], {"NODE_NAME": "n"}, "--lease-signing cannot be used with"),
        (
            [*KUBERNETES, "--kube-annotation-prefix=a/b/c"],
            {"NODE_NAME": "n"},
            "prefix can contain at most single slash: Write flannel.alpha.coreos.com.",
        ),
    ],
)
def test_wrong_options_for_kubernetes_are_refused(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    assert message in refusal(*arguments, environment=environment)
