"""A daemon without TLS does not load OpenSSL, and a daemon loads only the store that it uses."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

SCRIPT = """
import os, re, sys
from pyflannel.programs.own_process import leave_out_openssl
leave_out_openssl(sys.argv[1:], os.environ)
import pyflannel.programs.flanneld_run, pyflannel.stores.embedded.store, pyflannel.stores.etcd.store
mapped = open("/proc/self/maps").read()
print(*{"ssl", "_hashlib"} & {name for name, module in sys.modules.items() if module})
print(*set(re.findall(r"/(libssl|libcrypto|_ssl|_hashlib)\\.", mapped)))
"""

STORE = """
import sys
from pyflannel.assembly.stores import open_store
import pyflannel.programs.flanneld_run
open_store(sys.argv[1])
print(*{"sqlite3", "grpclib", "yaml", "pyflannel.stores.kubernetes"} & {*sys.modules})
"""


def loaded(*flags: str, script: str = SCRIPT, environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the libraries that a process with these flags loaded, in memory or as a module."""
    command = [sys.executable, "-c", script, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


@pytest.mark.parametrize("flags", [(), ("--etcd-endpoints=http://192.0.2.1:2379",), ("--store=sqlite:///x",)])
def test_openssl_is_not_loaded_without_tls(flags: tuple[str, ...]) -> None:
    """The test fails if a module of every daemon imports ssl, or if ssl is imported before the setting."""
    assert loaded(*flags) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--etcd-endpoints=https://192.0.2.1:2379",),
        ("--etcd-endpoints", "http://192.0.2.1:2379,HTTPS://192.0.2.2:2379"),
        ("--store=etcds://192.0.2.1/x",),
        ("--http=127.0.0.1:8471",),
        ("--kube-subnet-mgr",),
        ("-http", "127.0.0.1:8471"),
    ],
)
def test_openssl_is_loaded_if_tls_may_be_used(flags: tuple[str, ...]) -> None:
    assert "ssl" in loaded(*flags)


@pytest.mark.parametrize(
    "environment",
    [
        {"FLANNELD_ETCD_ENDPOINTS": "https://192.0.2.1:2379"},
        {"FLANNELD_STORE": "etcds://192.0.2.1/x"},
        {"FLANNELD_HTTP": "127.0.0.1:8471"},
        {"FLANNELD_KUBE_SUBNET_MGR": "true"},
    ],
)
def test_variables_may_need_openssl_too(environment: dict[str, str]) -> None:
    assert "ssl" in loaded(environment=environment)


@pytest.mark.parametrize(
    ("url", "library"), [("etcd://192.0.2.1:2379", "grpclib"), ("sqlite:///tmp/x.db", "sqlite3")]
)
def test_only_the_libraries_of_the_store_in_use_are_loaded(url: str, library: str) -> None:
    assert loaded(url, script=STORE) == [library]
