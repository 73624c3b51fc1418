"""Two networks on one host, of two daemons or of one, have separate devices, ports, files and leases."""

import asyncio
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest

from pyflannel.assembly.stores import open_store
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from pyflannel.model.link import split_alias
from pyflannel.model.store_record import Delete

BLUE = '{"Network":"10.101.0.0/16","Backend":{"Type":"udp","Port":8286}}'
SOON_S = 60.0
GREEN = '{"Network":"10.100.0.0/16"}'


@pytest.fixture
def pair() -> Iterator[tuple[Lab, Host, Host]]:
    """A lab, and two of its hosts, on different segments."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    with Lab(f"several-{os.getpid()}") as lab:
        yield lab, lab.hosts["docker1"], lab.hosts["docker4"]


def lease_of(host: Host, subnet_file: str) -> str:
    """Return the base address of the subnet in the file: the address of the host's device."""
    text = host.run(["cat", subnet_file]).stdout
    line = next(line for line in text.splitlines() if line.startswith("FLANNEL_SUBNET="))
    return line.removeprefix("FLANNEL_SUBNET=").rpartition(".")[0] + ".0"


def tunnels(host: Host) -> dict[str, tuple[str, str]]:
    """Return mark and address of each TUN device by name."""
    links = json.loads(host.run(["ip", "-j", "-d", "addr"]).stdout)
    return {
        link["ifname"]: (split_alias(link.get("ifalias", ""))[0], link["addr_info"][0]["local"])
        for link in links
        if link.get("linkinfo", {}).get("info_kind") == "tun"
    }


def reach(host: Host, address: str) -> None:
    """Ping until there is an answer, because a host may be ready before its peers have read its lease."""
    host.run(["timeout", "100", "sh", "-c", f"until ping -c1 -W1 {address}; do :; done"])


def wait_file(host: Host, path: str) -> None:
    wait_until(
        lambda: host.run(["test", "-e", path], check=False).returncode == 0,
        what=f"{path}",
        deadline_s=SOON_S,
    )


def set_config(host: Host, store: str, config: str) -> None:
    host.run(["flannelctl", "--store", store, "config", "set", config])


def test_two_daemons_with_two_stores_are_independent(pair: tuple[Lab, Host, Host]) -> None:
    """Each daemon finds its own device again after a restart, and removes no object of the other."""
    lab, *hosts = pair
    stores = {"green": lab.sqlite_url, "blue": f"{lab.sqlite_url}.blue"}
    for name, config in (("green", GREEN), ("blue", BLUE)):
        set_config(hosts[0], stores[name], config)

    def flags(name: str) -> list[str]:
        if name == "green":
            return [f"--store={stores[name]}"]
        places = ["--run-dir=/run/flannel-blue", "--state-dir=/var/lib/flannel-blue"]
        return [f"--store={stores[name]}", *places, "--subnet-file=/run/flannel-blue/subnet.env"]

    def start(host: Host, name: str) -> None:
        host.start_service(["flanneld", *flags(name)], name=name)

    files = {"green": "/run/flannel/subnet.env", "blue": "/run/flannel-blue/subnet.env"}
    together([partial(start, host, name) for host, name in product(hosts, files)])
    leases = {(host.name, name): lease_of(host, file) for host in hosts for name, file in files.items()}

    for host in hosts:
        found = tunnels(host)
        assert dict(found.values()) == {
            "pyflannel": leases[host.name, "green"],
            "pyflannel /run/flannel-blue": leases[host.name, "blue"],
        }
        assert set(found) == {"flannel0", "flannel1"}
    for name in files:
        reach(hosts[0], leases["docker4", name])

    before = tunnels(hosts[0])
    hosts[0].run(["flannelctl", "--store", stores["green"], "cleanup"])
    assert set(tunnels(hosts[0]).values()) == {("pyflannel /run/flannel-blue", leases["docker1", "blue"])}
    reach(hosts[0], leases["docker4", "blue"])
    start(hosts[0], "green")
    assert tunnels(hosts[0]).keys() == before.keys()
    blue = ["--run-dir=/run/flannel-blue", "--state-dir=/var/lib/flannel-blue"]
    blue.append("--subnet-file=/run/flannel-blue/subnet.env")
    hosts[0].run(["flannelctl", "--store", stores["blue"], "cleanup", *blue])
    assert [alias for alias, _ in tunnels(hosts[0]).values()] == ["pyflannel"]


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_two_networks_without_a_device_of_the_claimed_name_are_independent(
    pair: tuple[Lab, Host, Host], kind: str
) -> None:
    """The networks have two VNIs, or routes on one link. Restart and cleanup of one network do not affect the
    other network.
    """
    lab, host, _ = pair
    stores = {"green": lab.sqlite_url, "blue": f"{lab.sqlite_url}.blue"}
    for number, name in enumerate(stores, start=1):
        options = {"Type": kind, "VNI": number} if kind == "vxlan" else {"Type": kind}
        set_config(
            host, stores[name], json.dumps({"Network": f"10.{100 + number}.0.0/16", "Backend": options})
        )
    hosts = [host, lab.hosts["docker2"]]

    _, blue, *_ = together([partial(start, one, stores[name], name) for one, name in product(hosts, stores)])
    for name in stores:
        wait_routes(host, name, kind)
    before = objects(host)
    devices = {f"flannel.{number}" for number in (1, 2)} if kind == "vxlan" else set()
    assert devices == {name for name in before["links"] if name.startswith("flannel")}

    blue.kill()
    start(host, stores["blue"], "blue")
    assert objects(host) == before
    for name in stores:
        assert not repaired(host, name)

    places = ["--run-dir=/run/flannel-blue", "--state-dir=/var/lib/flannel-blue"]
    places.append("--subnet-file=/run/flannel-blue/subnet.env")
    host.run(["flannelctl", "--store", stores["blue"], "cleanup", *places])
    after = objects(host)
    assert after["routes"] == [route for route in before["routes"] if "10.102." not in route]
    assert set(after["links"]) == set(before["links"]) - {"flannel.2"}
    kept = ":FLANNEL-FWD" if claimed(host) == "flannel0" else ":FLANNEL-FWD-1"
    assert (len(before["chains"]), after["chains"]) == (2, [kept])
    wait_routes(host, "green", kind)
    assert not repaired(host, "green")


def test_two_networks_with_one_vni_do_not_change_each_other(pair: tuple[Lab, Host, Host]) -> None:
    """The first daemon has the device. The second daemon names the owner of the device, and works after its
    VNI was changed.
    """
    lab, host, _ = pair
    stores = {"green": lab.sqlite_url, "blue": f"{lab.sqlite_url}.blue"}
    for number, name in enumerate(stores, start=1):
        config = {"Network": f"10.{100 + number}.0.0/16", "Backend": {"Type": "vxlan"}}
        set_config(host, stores[name], json.dumps(config))
    start(host, stores["green"], "green")
    before = objects(host)

    host.start(["flanneld", *flags(stores["blue"], "blue")], name="blue")

    log = host.directory / "log/blue.log"
    text = "flannel.1: missing; refused: the flanneld with --run-dir=/run/flannel owns this link"
    wait_until(lambda: text in log.read_text(), what="the owner of the device", deadline_s=SOON_S)
    assert objects(host)["links"] == before["links"]
    assert not repaired(host, "green")
    blue = {"Network": "10.102.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}
    set_config(host, stores["blue"], json.dumps(blue))
    wait_file(host, "/run/flannel-blue/subnet.env")
    assert {"flannel.1", "flannel.2"} <= set(objects(host)["links"])


def flags(store: str, name: str) -> list[str]:
    """Return the flags of one of two daemons. The green daemon uses the default directories."""
    if name == "green":
        return [f"--store={store}"]
    places = [f"--run-dir=/run/flannel-{name}", f"--state-dir=/var/lib/flannel-{name}"]
    return [f"--store={store}", *places, f"--subnet-file=/run/flannel-{name}/subnet.env"]


def start(host: Host, store: str, name: str) -> Program:
    return host.start_service(["flanneld", *flags(store, name)], name=name)


def repaired(host: Host, name: str) -> list[str]:
    """Return the repairs that a daemon logged."""
    lines = (host.directory / f"log/{name}.log").read_text().splitlines()
    return [line for line in lines if "Repaired" in line]


def objects(host: Host) -> dict[str, list[str]]:
    """Return the host's devices with their aliases, its routes, and its chains of pyflannel."""
    links = [f"{link['ifname']} {link.get('ifalias', '')}" for link in host.links()]
    saved = host.run(["iptables-save"]).stdout.splitlines()
    return {
        "links": sorted(line.split()[0] for line in links),
        "aliases": sorted(links),
        "routes": sorted(json.dumps(route) for route in host.routes()),
        "chains": sorted(line.split()[0] for line in saved if line.startswith(":FLANNEL")),
    }


def claimed(host: Host) -> str:
    """Return the name that the green daemon claims: the first daemon has flannel0."""
    return (host.directory / "run/flannel/device").read_text().strip()


def wait_routes(host: Host, name: str, kind: str) -> None:
    """Wait until the host has the route of the only peer of this network, with its daemon's protocol."""
    network, protocol, vni = {"green": ("10.101.", "80", 1), "blue": ("10.102.", "101", 2)}[name]
    if claimed(host) != "flannel0":
        protocol = {"80": "101", "101": "80"}[protocol]
    device = f"flannel.{vni}" if kind == "vxlan" else "eth0"
    wait_until(
        lambda: (
            [(route["dev"], route["protocol"]) for route in host.routes() if route["dst"].startswith(network)]
            == [(device, protocol)]
        ),
        what=f"{host.name} has the route of {name}",
        deadline_s=SOON_S,
    )


def test_one_daemon_runs_several_given_networks(pair: tuple[Lab, Host, Host]) -> None:
    """--networks of flannel 0.6: each network has a subnet file, a control socket and a device."""
    _, *hosts = pair
    store = pair[0].sqlite_url
    for name, config in (("green", GREEN), ("blue", BLUE)):
        set_config(hosts[0], f"{store}#{name}", config)

    together([partial(host.start_flanneld, f"--store={store}", "--networks=green,blue") for host in hosts])

    for name in ("green", "blue"):
        other = lease_of(hosts[1], f"/run/flannel/networks/{name}.env")
        reach(hosts[0], other)
        status = hosts[0].run(
            ["flannelctl", "--socket", f"/run/flannel/{name}/flanneld.sock", "--json", "status"]
        )
        assert json.loads(status.stdout)["is_ready"]
    assert set(tunnels(hosts[0])) == {"flannel0", "flannel1"}
    log = (hosts[0].directory / "log/flanneld.log").read_text()
    assert "network=green" in log
    assert "network=blue" in log


def test_a_network_named_like_the_directory_of_pins_has_separate_pins(pair: tuple[Lab, Host, Host]) -> None:
    """The daemon does not have the right to find programs without pins."""
    lab, host, _ = pair
    for name, config in (("bpf", GREEN), ("blue", BLUE)):
        set_config(host, f"{lab.sqlite_url}#{name}", config)
    host.flannelctl("pins")

    flags = [f"--store={lab.sqlite_url}", "--networks=bpf,blue"]
    host.start_service(["setpriv", "--bounding-set=-sys_admin", "flanneld", *flags], name="flanneld")

    for name in ("bpf", "blue"):
        said = host.flannelctl("--socket", f"/run/flannel/{name}/flanneld.sock", "--json", "status")
        assert json.loads(said)["fast_path"]["mode"] == "safe"

    def pinned() -> list[str]:
        names = host.run(["ls", "/run/flannel/.bpf"]).stdout.split()
        return [name for name in names if name.startswith("program")]

    wait_until(lambda: len(pinned()) == 6, what="three programs of each", deadline_s=SOON_S)


def test_networks_start_and_end_with_their_configs(pair: tuple[Lab, Host, Host]) -> None:
    """--watch-networks: a network starts when its config is written.

    After the deletion of the config, cleanup is possible.
    """
    lab, host, _ = pair
    set_config(host, f"{lab.sqlite_url}#green", GREEN)
    host.start_flanneld(f"--store={lab.sqlite_url}", "--networks=green,blue", "--watch-networks")
    assert set(tunnels(host)) == {"flannel0"}

    set_config(host, f"{lab.sqlite_url}#blue", BLUE)

    wait_file(host, "/run/flannel/networks/blue.env")
    assert set(tunnels(host)) == {"flannel0", "flannel1"}
    cleanup = ["flannelctl", "--store", lab.sqlite_url, "cleanup", "--run-dir=/run/flannel/blue"]
    cleanup += ["--state-dir=/var/lib/flannel/blue", "--subnet-file=/run/flannel/networks/blue.env"]
    refused = host.run(cleanup, check=False)
    assert refused.returncode != 0
    assert "runs the network blue" in refused.stderr
    assert set(tunnels(host)) == {"flannel0", "flannel1"}

    asyncio.run(delete_config(f"{lab.sqlite_url}#blue"))
    wait_until(
        lambda: host.run(cleanup, check=False).returncode == 0, what="blue is cleaned up", deadline_s=SOON_S
    )

    assert set(tunnels(host)) == {"flannel0"}


async def delete_config(url: str) -> None:
    store = open_store(url)
    await store.write(Delete(key="config", expected=None))
    await store.close()


def test_a_network_without_config_is_reported_and_does_not_stop_other_networks(
    pair: tuple[Lab, Host, Host],
) -> None:
    """While a config is missing, the service manager receives no readiness. The other network works."""
    lab, host, _ = pair
    set_config(host, f"{lab.sqlite_url}#green", GREEN)

    host.launch_flanneld(f"--store={lab.sqlite_url}", "--networks=green,nosuch")

    wait_file(host, "/run/flannel/networks/green.env")
    log = host.directory / "log/flanneld.log"
    wait_until(lambda: "\nE" in log.read_text(), what="an error is logged", deadline_s=SOON_S)
    lines = [line for line in log.read_text().splitlines() if line.startswith("E")]
    assert len(lines) == 1
    assert "flannel config not found" in lines[0]
    assert lines[0].endswith("network=nosuch")


def test_a_network_with_an_occupied_directory_is_reported_and_does_not_stop_other_networks(
    pair: tuple[Lab, Host, Host],
) -> None:
    """A process with access to the store may create a network with this name.

    If an operator configures this name, flanneld refuses to start.
    """
    lab, host, _ = pair
    host.run(["sh", "-c", "mkdir -p /run/flannel && touch /run/flannel/docker"])
    for name in ("..", "device", "docker", "green"):
        set_config(host, f"{lab.sqlite_url}#{name}", GREEN)

    host.start_flanneld(f"--store={lab.sqlite_url}", "--watch-networks").stop()

    assert set(tunnels(host)) == {"flannel0"}
    log = (host.directory / "log/flanneld.log").read_text()
    for name in ("..", "device", "docker"):
        assert log.count(f'Network "{name}" cannot run on this host: ') == 1
    assert "/run/flannel/docker is a file, and flanneld needs a directory there. Move the file" in log
    told = host.run(["flanneld", f"--store={lab.sqlite_url}", "--networks=green,docker"], check=False)
    assert told.returncode == 1
    assert "network docker cannot run on this host: /run/flannel/docker is a file" in told.stderr


def test_cleanup_of_one_network_releases_only_its_lease(pair: tuple[Lab, Host, Host]) -> None:
    """The network has no identity of its own, and all networks use the given store."""
    lab, host, _ = pair
    for name, config in (("green", GREEN), ("blue", BLUE)):
        set_config(host, f"{lab.sqlite_url}#{name}", config)
    host.start_flanneld(f"--store={lab.sqlite_url}", "--networks=green,blue").stop()
    files = {name: f"/run/flannel/networks/{name}.env" for name in ("green", "blue")}
    subnets = {name: lease_of(host, file) for name, file in files.items()}

    def leases(name: str) -> str:
        return host.flannelctl("--store", f"{lab.sqlite_url}#{name}", "leases")

    def cleanup(name: str) -> list[str]:
        places = [f"--run-dir=/run/flannel/{name}", f"--state-dir=/var/lib/flannel/{name}"]
        return ["cleanup", *places, f"--subnet-file={files[name]}"]

    said = host.run(["env", f"FLANNELD_STORE={lab.sqlite_url}", "flannelctl", *cleanup("blue")]).stdout

    assert f"removed lease {subnets['blue']}/24\n" in said
    assert subnets["blue"] not in leases("blue")
    assert subnets["green"] in leases("green")
    assert len(tunnels(host)) == 1
    assert f"removed lease {subnets['green']}/24\n" in host.flannelctl(
        "--store", lab.sqlite_url, *cleanup("green")
    )
