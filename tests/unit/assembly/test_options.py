"""The flags of flanneld mean the same as in the original. Wrong use is reported in one line."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from doubles.flanneld_options import options, refusal
from pyflannel.assembly.flanneld_flags import LATER_FLAGS
from pyflannel.assembly.options import (
    FlanneldOptions,
    parse_flanneld,
)
from pyflannel.errors import UsageError
from pyflannel.http.sockets import Endpoint
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.wire.go_flags import default_of


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
    with pytest.raises(UsageError, match="--open-ports needs the tunnel guard"):
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
    assert options("--iface-can-reach=fd00::2").iface_can_reach == IPv6Address("fd00::2")
    assert parsed.public_ip == IPv4Address("203.0.113.9")
    assert (parsed.renew_margin_s, parsed.lease_ttl_s) == (1439 * 60, 5)
    assert (parsed.node_id, parsed.log_format, parsed.verbosity) == ("docker1", "json", 1)
    assert parsed.on_subnet_lost == "renumber"


def test_a_flag_overrides_its_variable_and_earlier_flags_of_the_same_name() -> None:
    environment = {"FLANNELD_ETCD_PREFIX": "/env", "FLANNELD_SUBNET_FILE": "/env", "FLANNELD_IFACE": "a,b"}

    parsed = options("--etcd-prefix=/one", "--etcd-prefix=/two", environment=environment)

    assert parsed.store_url.endswith("/two")
    assert parsed.subnet_file == "/env"
    assert parsed.iface == ("a,b",)


def test_an_empty_interface_selects_the_default_one_as_in_the_original() -> None:
    """Unit files contain --iface=${FLANNEL_IFACE} with an unset variable."""
    assert options("--iface=").iface == ()


def test_a_name_of_fifteen_bytes_and_an_address_with_a_zone_may_name_an_interface() -> None:
    given = ("enp0s31f6.12345", "fe80::f816:3eff:fe12:3456%eth0", "192.0.2.1")

    assert options(*(f"--iface={each}" for each in given)).iface == given


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
        (["--iface-can-reach=x\ny"], r"--iface-can-reach='x\ny' is not an IPv4 or IPv6 address"),
        (["--iface-regex=("], "--iface-regex='(' is not a regular expression: missing )"),
        (
            ["--subnet-lease-renew-margin=0"],
            "Invalid subnet-lease-renew-margin option, out of acceptable range",
        ),
        (["--lease-keys=a", "--lease-operators=b"], "lease-keys and lease-operators cannot be used together"),
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
            "--etcd-endpoints and --store select two different stores",
        ),
        (["--store=l.db"], "--store 'l.db' is not a store URL: Write etcd://"),
        (["--store=sqlite://l.db"], "--store 'sqlite://l.db' is not a store URL"),
        (
            ["--store=kube:"],
            "--store 'kube:' is not a store URL of flanneld: Write --kube-subnet-mgr instead.",
        ),
        (["--etcd-username=u"], "the etcd user 'u' has no password: Add --etcd-password-file"),
        (
            ["--etcd-password=secret"],
            "an etcd password was given, but no etcd user: Add --etcd-username=NAME.",
        ),
        (["--etcd-password-file=/f"], "etcd: password-file needs username: Add username=NAME."),
        (
            ["--etcd-username=u", "--etcd-password=secret", "--etcd-password-file=/f"],
            "the etcd user 'u' has two passwords",
        ),
        (
            ["--etcd-endpoints=https://h:1", "--etcd-certfile=/c"],
            "etcd: certfile and keyfile must be used together: Set both",
        ),
        (["--store=etcds://h", "--etcd-cafile=/c"], "--etcd-cafile and --store select two different stores"),
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


def test_the_fast_path_is_one_of_three() -> None:
    assert options("--fast-path=off").fast_path == "off"
    with pytest.raises(UsageError, match="--fast-path='turbo' is not a valid value"):
        options("--fast-path=turbo")


def test_the_docker_plugin_is_off_by_default_and_has_a_socket_in_dockers_directory() -> None:
    off, on = parse_flanneld([], {}), parse_flanneld(["--docker-plugin"], {})

    assert isinstance(off, FlanneldOptions)
    assert isinstance(on, FlanneldOptions)
    assert (off.docker_socket, on.docker_socket) == (None, "/run/docker/plugins/flannel.sock")


@pytest.mark.parametrize("flag", LATER_FLAGS, ids=lambda flag: flag.name)
def test_a_flag_not_yet_supported_is_refused_unless_its_value_requests_nothing(flag: Any) -> None:
    values = {"text": "x", "integer": "7", "boolean": "true"}
    expected = f"--{flag.name} is not supported yet: Remove it"
    assert expected in refusal(f"--{flag.name}={values[flag.kind]}")
    assert options(f"--{flag.name}={default_of(flag).value}") == options()
