"""The VTEP in a lease that existed before."""

from ipaddress import IPv4Network

from msgspec.structs import replace

from doubles.performed_step import FIRST, HOUR, Host, Store, lease, owner_of, wanted
from pyflannel.model.lease import BackendPart, Lease, Vtep
from pyflannel.model.lease_protocol import Wanted
from pyflannel.plan.lease.choice import merged_attributes

THEIRS = "36:f5:41:10:dc:86"


def with_vtep(standing: Lease, mac: str, vni: int = 1) -> Lease:
    return replace(standing, attributes=replace(standing.attributes, vtep=Vtep(mac=mac, vni=vni)))


def wanted_with_vtep(mac: str = "0e:00:00:00:00:01", mac_prefix: bytes = b"") -> Wanted:
    known = wanted()
    vtep = Vtep(mac=mac, vni=1, mac_prefix=mac_prefix)
    return replace(known, attributes=replace(known.attributes, vtep=vtep))


def mac_of(store: Store, subnet: IPv4Network) -> str | None:
    standing = store.leases[subnet]
    assert isinstance(standing, Lease)
    vtep = standing.attributes.vtep
    return vtep.mac if vtep else None


def test_the_vtep_that_the_original_published_is_kept() -> None:
    """The peers know this VTEP. The VTEP stays when the lease is renewed, acquired again or used by a new
    start.
    """
    store = Store()
    store.write_lease(with_vtep(lease(FIRST, None, "192.168.50.102"), THEIRS))

    host = Host(store, wanted_with_vtep()).start()

    assert (owner_of(store, FIRST), mac_of(store, FIRST)) == ("me", THEIRS)
    assert store.revision == 2
    host.sleep(24 * HOUR)
    assert mac_of(store, FIRST) == THEIRS
    store.delete_lease(FIRST)
    host.settle()
    assert mac_of(store, FIRST) == THEIRS
    Host(store, wanted_with_vtep()).start()
    assert mac_of(store, FIRST) == THEIRS
    assert host.state.is_settled


def test_the_vtep_of_a_previous_backend_is_kept_after_a_restart() -> None:
    """During a change of the backend, peers still send to this VTEP."""
    vxlan = BackendPart(backend_type="vxlan", vtep=Vtep(mac=THEIRS, vni=1))
    derived = replace(vxlan, vtep=Vtep(mac="0e:00:00:00:00:01", vni=1))
    host_gw = BackendPart(backend_type="host-gw")
    standing = wanted().attributes.with_backend(host_gw, (vxlan,))
    after = wanted().attributes.with_backend(host_gw, (derived,))

    assert merged_attributes(standing, replace(wanted(), attributes=after)).also == (vxlan,)


def test_an_unsuitable_vtep_is_not_kept() -> None:
    """The VTEP has another VNI, no unicast MAC address, or lacks the prefix in the config."""
    ours = wanted_with_vtep()
    plain = lease(FIRST, None, "192.168.50.102")
    for standing, asked in (
        (with_vtep(plain, THEIRS, vni=2), ours),
        (with_vtep(plain, "ff:ff:ff:ff:ff:ff"), ours),
        (with_vtep(plain, THEIRS), wanted_with_vtep(mac_prefix=b"\x0e\x2a")),
    ):
        store = Store()
        store.write_lease(standing)

        host = Host(store, asked).start()

        assert host.state.is_settled
        assert mac_of(store, FIRST) == "0e:00:00:00:00:01"


def test_a_lease_taken_over_from_another_owner_gets_a_new_vtep() -> None:
    """The other host may return with another subnet and its own MAC address."""
    store = Store()
    store.write_lease(with_vtep(lease(FIRST, "other", "192.168.50.102"), THEIRS))

    host = Host(store, wanted_with_vtep()).start()
    host.sleep(60)

    assert (owner_of(store, FIRST), mac_of(store, FIRST)) == ("me", "0e:00:00:00:00:01")
