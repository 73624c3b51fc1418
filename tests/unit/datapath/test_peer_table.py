"""The table finds the longest prefix, after any changes."""

from socket import inet_aton, inet_ntoa

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.datapath.forwarding import PeerTable
from pyflannel.wire.forwarder_control import Peer

# Addresses with a few bits, so that prefixes contain each other and addresses match them.
crowded = st.integers(0, 255).map(lambda low: 0x0A640000 | low << 4)
prefixes = st.tuples(crowded, st.integers(0, 32)).map(
    lambda pair: (pair[0] >> (32 - pair[1]) << (32 - pair[1]), pair[1])
)
peers = st.builds(
    lambda prefix, address, port: Peer(*prefix, address, port),
    prefixes,
    st.integers(1, 9),
    st.integers(1, 9),
)
changes = st.tuples(st.lists(prefixes, max_size=4), st.lists(peers, max_size=6))


def naive_find(peers_by_prefix, address):
    """Search all entries for the longest prefix."""
    fitting = [p for p in peers_by_prefix.values() if not (p.subnet ^ address) >> (32 - p.prefix_length)]
    best = max(fitting, key=lambda peer: peer.prefix_length, default=None)
    return best and (inet_ntoa(best.address.to_bytes(4, "big")), best.port)


@given(
    start=st.lists(peers), history=st.lists(changes, max_size=4), address=crowded | st.integers(0, 2**32 - 1)
)
def test_the_longest_prefix_is_found_after_any_history(start, history, address):
    """After any changes, the table finds and lists the same entries as a naive search."""
    table, model = PeerTable(), {}
    table.replace(start)
    model |= {(p.subnet, p.prefix_length): p for p in start}
    for removals, added in history:
        table.change(removals, added)
        for removal in removals:
            model.pop(removal, None)
        model |= {(p.subnet, p.prefix_length): p for p in added}

    assert table.find(address) == naive_find(model, address)
    assert set(table.peers) == set(model.values())
    for underlay in range(1, 10):
        ports = sorted(peer.port for peer in model.values() if peer.address == underlay)
        assert sorted(table.ports_at(underlay)) == ports


@given(before=st.lists(peers), after=st.lists(peers), address=crowded)
def test_replacing_the_table_removes_the_old_entries(before, after, address):
    """Addresses of the old table are not found."""
    replaced, fresh = PeerTable(), PeerTable()
    replaced.replace(before)

    replaced.replace(after)
    fresh.replace(after)

    assert replaced.find(address) == fresh.find(address)
    assert set(replaced.peers) == set(fresh.peers)


def test_an_endpoint_has_the_form_of_a_socket_address():
    """The form is the form of sendto and recvfrom: an address as text, and a port number."""
    table = PeerTable()

    table.replace([Peer(0x0A645D00, 24, int.from_bytes(inet_aton("192.168.50.102"), "big"), 8285)])

    assert table.find(0x0A645D09) == ("192.168.50.102", 8285)
    assert table.find(0x0A645E09) is None
