"""Hosts on an etcd of three members that requires certificates and users, and its failures.

The data path is pinged during every failure, and no ping may be lost.
"""

import datetime
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.waiting import together, wait_until

SOON_S = 60.0
ADDRESS = "10.10.10.1"
"""Addresses of the members in their certificates.

The address 192.168.50.1 also reaches the members, but is in no certificate.
"""

PORTS = {"one": 2379, "two": 2381, "three": 2383}
ROOT = "root:of-the-cluster"
PASSWORD = "correct-horse"
OTHER_PASSWORD = "battery-staple"

NOBODY = 65534

NetworkOf = Callable[..., AbstractContextManager[Any]]
Pinging = Callable[[Any, str], AbstractContextManager[Any]]


class Authority:
    """Signs certificates. Each certificate consists of `NAME.pem` and `NAME-key.pem` in one directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._build(self._name, self._key, timedelta(days=1))
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._signed(own))

    def issue(self, name: str, *, address: str = "", ends_in: timedelta = timedelta(days=1)) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._build(subject, key, ends_in)
        if address:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            certificate = certificate.add_extension(names, critical=False)
        (self._directory / f"{name}.pem").write_bytes(self._signed(certificate))
        (self._directory / f"{name}-key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ends_in: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + ends_in)
        )

    def _signed(self, certificate: x509.CertificateBuilder) -> bytes:
        return certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Secured:
    """The cluster on the router of a lab, and the hosts that use it."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.pki = network.lab.directory / "pki"
        self.pki.mkdir()
        self.authority = Authority(self.pki, "ca")
        for name in (*PORTS, "operator", *network.hosts):
            self.authority.issue(name, address=ADDRESS if name in PORTS else "")
        self.password_file = self.pki / "password"
        self.password_file.write_text(f"{PASSWORD}\n")
        self.endpoints = ",".join(f"https://{ADDRESS}:{port}" for port in PORTS.values())
        self.members: dict[str, Program] = {}
        self.daemons: dict[str, Program] = {}

    def start_members(self) -> None:
        together([partial(self.start_member, name) for name in PORTS])

    def start_member(self, name: str) -> None:
        peers = {name: f"http://127.0.0.1:{port + 1}" for name, port in PORTS.items()}
        self.members[name] = self.network.lab.router.start_service(
            [
                "etcd",
                f"--name={name}",
                f"--data-dir=/var/lib/etcd-{name}",
                "--unsafe-no-fsync",
                f"--listen-client-urls=https://0.0.0.0:{PORTS[name]}",
                f"--advertise-client-urls=https://{ADDRESS}:{PORTS[name]}",
                f"--listen-metrics-urls=http://0.0.0.0:{PORTS[name] + 100}",
                f"--listen-peer-urls={peers[name]}",
                f"--initial-advertise-peer-urls={peers[name]}",
                f"--initial-cluster={','.join(f'{peer}={url}' for peer, url in peers.items())}",
                "--client-cert-auth",
                f"--trusted-ca-file={self.authority.file}",
                f"--cert-file={self.pki / name}.pem",
                f"--key-file={self.pki / name}-key.pem",
                "--auth-token-ttl=2",
                "--bcrypt-cost=4",
                "--logger=zap",
                "--log-outputs=stderr",
                "--log-level=debug",  # newer versions log a dropped token in this format
            ],
            name=f"etcd-{name}",
        )

    def kill_members(self) -> None:
        for member in self.members.values():
            member.kill()

    def require_users(self) -> None:
        """Create the users and enable authentication. From then on, every access requires a user."""
        self.etcdctl("user", "add", ROOT, user="")
        self.etcdctl("user", "grant-role", "root", "root", user="")
        self.etcdctl("role", "add", "hosts", user="")
        self.etcdctl("role", "grant-permission", "hosts", "readwrite", "--prefix=true", f"{PREFIX}/", user="")
        self.etcdctl("user", "add", f"flannel:{PASSWORD}", user="")
        self.etcdctl("user", "grant-role", "flannel", "hosts", user="")
        self.etcdctl("user", "add", f"guest:{PASSWORD}", user="")
        self.etcdctl("auth", "enable", user="")

    def etcdctl(self, *argv: str, user: str = ROOT, check: bool = True, text: str | None = None) -> str:
        command = [
            *("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.endpoints}"),
            f"--cacert={self.authority.file}",
            f"--cert={self.pki / 'operator'}.pem",
            f"--key={self.pki / 'operator'}-key.pem",
            *([f"--user={user}"] if user else []),
            *(["--dial-timeout=20s", "--command-timeout=30s"] if check else []),
        ]
        said: str = self.network.lab.router.run([*command, *argv], check=check, text=text).stdout
        return said

    def leader(self) -> str:
        """Wait until there is a leader, and return it."""
        leaders: list[str] = []

        def look() -> bool:
            statuses = json.loads(self.etcdctl("endpoint", "status", "--write-out=json", check=False) or "[]")
            leaders[:] = [
                name
                for name, port in PORTS.items()
                for status in statuses
                if status["Endpoint"].endswith(f":{port}")
                and status["Status"]["header"]["member_id"] == status["Status"]["leader"]
            ]
            return len(leaders) == 1

        wait_until(look, what="a leader", deadline_s=SOON_S)
        return leaders[0]

    def flags(self, host: str, **others: str) -> list[str]:
        """Return flanneld's flags on a host; `others` replaces or adds some flags."""
        flags = {
            "etcd_endpoints": self.endpoints,
            "etcd_cafile": str(self.authority.file),
            "etcd_certfile": f"{self.pki / host}.pem",
            "etcd_keyfile": f"{self.pki / host}-key.pem",
            "etcd_username": "flannel",
            "etcd_password_file": str(self.password_file),
        }
        return [f"--{name.replace('_', '-')}={value}" for name, value in (flags | others).items()]

    def write_bad_files(self) -> None:
        self.authority.issue("old", ends_in=-timedelta(hours=1))
        self.authority.issue("kept")
        os.chown(self.pki / "kept-key.pem", NOBODY, NOBODY)
        (self.pki / "kept-key.pem").chmod(0o600)
        Authority(self.pki, "stranger").issue("foreign")
        (self.pki / "wrong").write_text("wrong\n")

    def start(self, host: str, *flags: str) -> None:
        """Start flanneld on a host, and wait until it is ready."""
        flags = flags or tuple(self.flags(host))
        self.daemons[host] = self.network.hosts[host].start_flanneld(*flags, "-v=1")
        self.network.wait_ready(host)

    def lose_lease(self, host: str) -> None:
        """Delete a host's lease, so that it sends requests to the cluster."""
        key = f"{PREFIX}/{self.network.lease_key(host)}"
        wait_until(
            lambda: self.etcdctl("del", key, check=False) == "1\n",
            what=f"the lease of {host} is deleted",
            deadline_s=SOON_S,
        )

    def set_password(self, password: str) -> None:
        self.etcdctl("user", "passwd", "flannel", "--interactive=false", text=password)

    def let_tokens_expire(self) -> None:
        """Wait until every member has dropped a token that is newer than the tokens of all hosts."""
        before = self._dropped("guest")
        self.etcdctl("get", "/nothing", user=f"guest:{PASSWORD}", check=False)
        wait_until(
            lambda: self._dropped("guest") >= before + len(PORTS), what="tokens expire", deadline_s=SOON_S
        )

    def _dropped(self, user: str) -> int:
        logs = self.network.lab.router.directory / "log"
        lines = [line for name in PORTS for line in (logs / f"etcd-{name}.log").read_text().splitlines()]
        return sum("deleted a simple token" in line and f'"user-name":"{user}"' in line for line in lines)


@pytest.fixture(scope="module")
def secured(network_of: NetworkOf) -> Iterator[Secured]:
    """The cluster and two ready hosts, before and after each test."""
    with network_of("docker1", "docker4", config=None) as network:
        secured = Secured(network)
        secured.start_members()
        secured.require_users()
        secured.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.100.0.0/16"}')
        flags = [flag for flag in secured.flags("docker1") if "password" not in flag]
        together(
            [
                lambda: secured.start("docker1", *flags, f"--etcd-password={PASSWORD}"),
                lambda: secured.start("docker4"),
            ]
        )
        secured.write_bad_files()
        yield secured


@pytest.fixture
def network(secured: Secured) -> Any:
    return secured.network


@pytest.fixture
def pings(network: Any, pinging: Pinging) -> Iterator[Any]:
    """Pings from docker4 to docker1 during the whole test. No ping may be lost."""
    with pinging(network.hosts["docker4"], network.overlay("docker1")) as pings:
        yield pings
    assert pings.lost == 0


def test_the_password_is_not_readable_anywhere(secured: Secured, network: Any) -> None:
    """docker1 reads the password from its command line, docker4 from a file."""
    for name, host in network.hosts.items():
        status = network.wait_ready(name)
        assert "username=flannel" in status["store"]["url"]
        written = host.run(["grep", "-rlF", PASSWORD, "/run", "/var/lib/flannel"], check=False).stdout
        assert PASSWORD not in network.log(name)
        assert PASSWORD not in json.dumps(status)
        assert PASSWORD not in str(host.commands())
        assert any("--etcd-username=flannel" in command for command in host.commands())
        assert written == ""


def test_flannelctl_uses_the_same_connection(network: Any) -> None:
    leases = json.loads(network.hosts["docker4"].flannelctl("leases", "--json"))

    assert str(network.hosts["docker1"].lease()) in json.dumps(leases)
    assert "expires_in_s" in json.dumps(leases)


def test_flannelctl_finds_the_password_in_its_environment(network: Any) -> None:
    """The daemon of docker1 reads the password from its command line, and does not publish it."""
    host = network.hosts["docker1"]
    ask = ["flannelctl", "leases", "--json"]

    without = host.run(ask)
    having_it = host.run(["env", f"FLANNELD_ETCD_PASSWORD={PASSWORD}", *ask])

    assert "FLANNELD_ETCD_PASSWORD" in without.stderr or "no password" in without.stderr
    assert having_it.stderr == ""
    assert json.loads(having_it.stdout) != json.loads(without.stdout)


def test_the_ca_suffices_if_no_client_certificate_is_required(secured: Secured, network: Any) -> None:
    network.lab.router.start_service(
        [
            "etcd",
            "--data-dir=/var/lib/etcd-open",
            f"--listen-client-urls=https://{ADDRESS}:2389",
            f"--advertise-client-urls=https://{ADDRESS}:2389",
            "--listen-peer-urls=http://127.0.0.1:2390",
            f"--cert-file={secured.pki / 'one'}.pem",
            f"--key-file={secured.pki / 'one'}-key.pem",
        ],
        name="etcd-open",
    )
    store = f"etcds://{ADDRESS}:2389/x?cafile={secured.authority.file}"

    network.hosts["docker1"].flannelctl("--store", store, "config", "set", '{"Network":"10.101.0.0/16"}')

    assert "10.101.0.0/16" in network.hosts["docker4"].flannelctl("--store", store, "config", "get")


def test_authentication_is_enabled_later(secured: Secured, network: Any, pings: Any) -> None:
    """A host that connected without a login logs in when it becomes necessary."""
    secured.etcdctl("auth", "disable")
    try:
        secured.daemons["docker1"].stop()
        secured.start("docker1")
    finally:
        secured.etcdctl("auth", "enable", user="")
    acquired = network.log("docker1").count("Lease acquired again")

    secured.lose_lease("docker1")

    network.wait_logged("docker1", "Lease acquired again", times=acquired + 1)
    network.wait_ready("docker1")


def test_the_leader_is_killed(secured: Secured, network: Any, pings: Any) -> None:
    """The other members respond immediately. The restarted member does not know earlier tokens."""
    leader = secured.leader()
    acquired = network.log("docker1").count("Lease acquired again")

    secured.members[leader].kill()
    secured.lose_lease("docker1")
    network.wait_logged("docker1", "Lease acquired again", times=acquired + 1)
    secured.start_member(leader)

    network.wait_ready("docker1")
    network.wait_ready("docker4")


def test_an_expired_token_is_replaced(secured: Secured, network: Any, pings: Any) -> None:
    logins = network.log("docker4").count("Logged in at etcd")
    acquired = network.log("docker4").count("Lease acquired again")
    secured.let_tokens_expire()

    secured.lose_lease("docker4")

    network.wait_logged("docker4", "Lease acquired again", times=acquired + 1)
    assert network.log("docker4").count("Logged in at etcd") > logins
    assert network.wait_ready("docker4")["store"]["is_connected"]


class TestReplaced:
    """Replaced files are used without a restart."""

    def test_an_expired_certificate(self, secured: Secured, network: Any, pings: Any) -> None:
        daemon = pid_of(network, "docker1")
        secured.kill_members()
        wait_for(network, "docker1", "connection refused")
        secured.authority.issue("docker1", ends_in=-timedelta(hours=1))
        secured.start_members()
        try:
            waits = wait_for(network, "docker1", "docker1.pem expired at")
        finally:
            secured.authority.issue("docker1")
        network.wait_ready("docker1")
        network.wait_ready("docker4")

        assert not waits["is_ready"]
        assert pid_of(network, "docker1") == daemon

    def test_a_password(self, secured: Secured, network: Any, pings: Any) -> None:
        """The password is changed in etcd first, so that the old password is refused for a while."""
        daemon = pid_of(network, "docker4")
        secured.set_password(OTHER_PASSWORD)
        try:
            secured.lose_lease("docker4")
            waits = wait_for(network, "docker4", "refused user 'flannel': authentication failed")
            secured.password_file.write_text(f"{OTHER_PASSWORD}\n")
            network.wait_ready("docker4")
        finally:
            secured.set_password(PASSWORD)
            secured.password_file.write_text(f"{PASSWORD}\n")

        assert not waits["is_ready"]
        assert PASSWORD not in network.log("docker4") + network.log("docker1")
        assert pid_of(network, "docker4") == daemon


def wait_for(network: Any, name: str, text: str) -> dict[str, Any]:
    """Wait until the reason why a host waits matches the pattern `text`. Return the status."""
    status: dict[str, Any] = network.wait_status(
        name, lambda status: re.search(text, status["waiting_for"] or "") is not None, f"waits for {text!r}"
    )
    return status


def pid_of(network: Any, name: str) -> str:
    text: str = network.hosts[name].run(["cat", "/run/flannel/flanneld.lock"]).stdout
    return text.split()[0]


WITHOUT_ROOTS_WAYS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
"""The command that removes the rights by which root reads the files of all users."""

BAD = {
    "no CA file": (
        {"etcd_cafile": "/nowhere/ca.pem"},
        "CA file /nowhere/ca.pem cannot be read: No such file",
    ),
    "no certificate file": ({"etcd_certfile": "/nowhere/c.pem"}, "certificate /nowhere/c.pem cannot be read"),
    "no certificate in it": ({"etcd_certfile": "PKI/password"}, "the file contains no certificate"),
    "no CA in it": ({"etcd_cafile": "PKI/password"}, "password contains no usable certificate"),
    "not readable": ({"etcd_keyfile": "PKI/kept-key.pem"}, "kept-key.pem cannot be read: Permission denied"),
    "expired": ({"etcd_certfile": "PKI/old.pem", "etcd_keyfile": "PKI/old-key.pem"}, "old.pem expired at"),
    "another's key": (
        {"etcd_keyfile": "PKI/docker4-key.pem"},
        "docker4-key.pem does not belong to the certificate",
    ),
    "not their CA": ({"etcd_cafile": "PKI/stranger.pem"}, "10.10.10.1:2379: its certificate is not accepted"),
    "another CA": (
        {"etcd_certfile": "PKI/foreign.pem", "etcd_keyfile": "PKI/foreign-key.pem"},
        "10.10.10.1:2379: it refused TLS: (bad certificate|unknown ca)",
    ),
    "no certificate": (
        {"etcd_certfile": "", "etcd_keyfile": ""},
        "10.10.10.1:2379: it refused TLS: (bad certificate|certificate required)",
    ),
    "another name": (
        {"etcd_endpoints": "https://192.168.50.1:2379"},
        "IP address mismatch, certificate is not valid for '192.168.50.1'",
    ),
    "no TLS there": ({"etcd_endpoints": "https://10.10.10.1:2479"}, "10.10.10.1:2479: TLS failed: "),
    "TLS and not said": ({"etcd_endpoints": "http://10.10.10.1:2379"}, "10.10.10.1:2379: connection lost"),
    "wrong password": ({"etcd_password_file": "PKI/wrong"}, "refused user 'flannel': authentication failed"),
    "no password file": ({"etcd_password_file": "/nowhere/p"}, "password file /nowhere/p cannot be read"),
    "no rights": (
        {"etcd_username": "guest"},
        "refused user 'guest' /coreos.com/network/",
    ),
}
"""By the name of an error: the flags that cause it, and a pattern of its message."""


@pytest.fixture(scope="module")
def secured_without_docker1(secured: Secured) -> Iterator[Secured]:
    """The cluster without the daemon of docker1, which starts again after the last bad input."""
    secured.daemons["docker1"].stop()
    yield secured
    secured.start("docker1")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_logged_in_one_line_and_packets_flow(
    case: str, secured_without_docker1: Secured, network: Any, pings: Any
) -> None:
    secured = secured_without_docker1
    others, text = BAD[case]
    flags = secured.flags(
        "docker1", **{name: value.replace("PKI", str(secured.pki)) for name, value in others.items()}
    )
    before = network.log("docker1")

    bad = network.hosts["docker1"].start([*WITHOUT_ROOTS_WAYS, "flanneld", *flags], name="flanneld")
    try:
        waits = wait_for(network, "docker1", text)
        pings.wait_answered(10)
    finally:
        bad.stop()
        said = network.log("docker1").removeprefix(before)

    assert not waits["is_ready"]
    errors = re.findall(r"^E.*$", said, re.MULTILINE)
    assert [re.search(text, error) is not None for error in errors] == [True], said


def test_cleanup_releases_the_lease_over_the_same_connection(secured: Secured, network: Any) -> None:
    key = f"{PREFIX}/{network.lease_key('docker4')}"

    network.hosts["docker4"].flannelctl("cleanup")

    assert secured.etcdctl("get", key) == ""
    secured.start("docker4")
