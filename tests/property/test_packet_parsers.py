"""Parsers of packets, control frames, HTTP and Docker's requests under hostile input.

Each parser returns or raises its own error. Each parser gets a thousand inputs, and many more from
`scripts/test fuzz`.
"""

import asyncio
import atexit
import json
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import strategies as st

from doubles.hostile_inputs import (
    Parser,
    as_bytes,
    check,
    damaged,
    deep,
    golden,
    joined,
    separated,
    values,
)
from pyflannel.api.page.access import Access
from pyflannel.datapath.forwarding import Drop, PeerTable, inbound, outbound
from pyflannel.datapath.tcp_run import TcpRun
from pyflannel.errors import DockerPluginError, StoreError, WireError
from pyflannel.http.server import Conversation, Limits, Request, Response
from pyflannel.model.docker import DockerEndpoint, DockerNetwork, DockerState, Pool, PublishedPort
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.reach_matrix import Matrix, MatrixCell, MatrixRow
from pyflannel.model.status import (
    JournalEntry,
    LeaseStatus,
    Notice,
    PlannedChange,
    PlanPreview,
    RefusedPeer,
    Status,
    StoreStatus,
    StoreTimes,
    StrangerStatus,
)
from pyflannel.model.store_record import Secret
from pyflannel.stores.kubernetes.access import Connection, parse_server
from pyflannel.stores.kubernetes.client import Answer
from pyflannel.wire import control_json, forwarder_control
from pyflannel.wire.docker_plugin import (
    AddressRequest,
    EndpointRequest,
    NetworkRequest,
    PoolRequest,
    format_state,
    parse_address,
    parse_as,
    parse_request,
    parse_state,
)
from pyflannel.wire.forwarder_control import FrameReader, Kind, Peer, Settings, encode_frame
from pyflannel.wire.icmp import clock_offset, parse_icmp, parse_icmpv6
from pyflannel.wire.kubeconfig import Kubeconfig
from pyflannel.wire.packet import icmp_time_exceeded, icmp_unreachable

# Packets: from a container, and from the tunnel.

# The packets of the golden cases.
PEER, OTHER, OWN, UNDERLAY = 0x0A4D3200, 0x0A4D3C00, 0x0A4D2800, 0xC0A83266
SETTINGS = Settings("flannel0", OWN, OWN, 24, 0xC0A83265, 8285, 1472)
PEERS = [
    Peer(PEER, 24, UNDERLAY, 8285),
    Peer(PEER + 128, 25, UNDERLAY + 1, 8285),
    Peer(OTHER, 24, UNDERLAY + 1, 9),
]
OLD_PACKETS = [bytes.fromhex(text) for text in golden("udp-proxy", "packet")]
SENDERS = ["192.168.50.102", "192.168.50.103", "192.0.2.1"]
ips_in_packets = st.sampled_from(
    [PEER + 9, PEER + 200, OTHER + 1, OWN + 5, UNDERLAY, 0, 0xE0000001, 0xFFFFFFFF]
)


def ip_packet(
    first: int,
    total: int,
    fragment: int,
    ttl: int,
    protocol: int,
    ends: tuple[int, int],
    payload: bytes,
    identity: int = 7,
) -> bytes:
    size = 20 + len(payload) if total < 0 else total
    return (
        struct.pack("!BBHHHBBHII", first, 0, size, identity, fragment, ttl, protocol, 0x1234, *ends) + payload
    )


def segment(sequence: int, control: int, data: bytes) -> bytes:
    return struct.pack("!HHIIHHHH", 80, 81, sequence, 5, control, 500, 0x77, 0) + data


tcp_payloads = st.builds(
    segment,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0x5010, 0x5018, 0x5002, 0xF010, 0x8010]),
    st.sampled_from([bytes(10), bytes(10), b"", bytes(7)]),
)


def flow(odd: list[int], last: int, control: int) -> bytes:
    """Consecutive segments of one flow, with a few deviations."""
    found = []
    for number, change in enumerate(odd):
        data = bytes(last if number == len(odd) - 1 else 10)
        payload = segment(1000 + 10 * number + change, control if number else 0x5010, data)
        found.append(ip_packet(0x45, -1, 0x4000, 64, 6, (PEER + 9, OWN + 5), payload, 7 + number))
    return batch(found)


TO_PEER = struct.pack("!HHHH", 9, 8285, 8, 0)
udp_payloads = st.sampled_from([TO_PEER, struct.pack("!HHHH", 9, 53, 8, 0), b"\0"])
ip_packets = st.builds(
    ip_packet,
    st.sampled_from([0x45] * 5 + [0x46, 0x4F, 0x44, 0x65, 0]),
    st.sampled_from([-1, -1, -1, 20, 19, 65535]),
    st.sampled_from([0x4000, 0x4000, 0, 0x2000, 1]),
    st.sampled_from([64, 64, 1, 0]),
    st.sampled_from([6, 6, 17, 1]),
    st.tuples(ips_in_packets, ips_in_packets),
    tcp_payloads | udp_payloads | st.binary(max_size=60) | st.just(bytes(1500)),
)
old_packets = st.sampled_from(OLD_PACKETS)
packets = ip_packets | damaged(ip_packets) | damaged(old_packets) | st.binary(max_size=40)
GUARD = b"\xee" * 80


def a_table() -> PeerTable:
    table = PeerTable()
    table.replace(PEERS)
    table.change([(PEER, 24), (OWN, 24)], PEERS)
    return table


def send(packet: bytes) -> None:
    """A packet from the device: routed, or answered by an ICMP error. No other bytes are changed."""
    buffer, size = bytearray(packet + GUARD), len(packet)
    verdict = outbound(buffer, 0, size, a_table(), SETTINGS.mtu)
    if verdict is Drop.NO_ROUTE:
        icmp_unreachable(buffer, size, OWN)
    elif verdict is Drop.EXPIRED:
        icmp_time_exceeded(buffer, size, OWN)
    assert buffer[size:] == GUARD


def batch(datagrams: Sequence[bytes], sender: int = 0) -> bytes:
    """Datagrams of one batch as one input; `sender` is a position in SENDERS."""
    return joined([bytes([sender]), *datagrams])


def receive(data: bytes) -> None:
    """Datagrams of one batch: each is checked, and TCP segments are joined and split again."""
    first, *datagrams = separated(data) or [b""]
    sender = SENDERS[sum(first) % len(SENDERS)]
    buffer = bytearray(b"".join(datagrams) + GUARD)
    run, at, table = TcpRun(buffer), 0, a_table()
    for datagram in datagrams:
        size = len(datagram)
        if run.starts and run.extend(at, size):
            pass
        elif inbound(buffer, at, size, sender, table, SETTINGS) is None:
            finish(run)
            run.start(at, size)
        at += size
    finish(run)
    assert buffer[at:] == GUARD


def finish(run: TcpRun) -> None:
    if run.starts:
        if run.has_true_checksums():
            run.merged()
        run.packets()
        run.clear()


PACKETS = [
    Parser(
        "packet of a container",
        send,
        packets,
        (),
        [
            *OLD_PACKETS,
            ip_packet(0x45, -1, 0x4000, 64, 17, (OWN + 5, UNDERLAY), TO_PEER),
            ip_packet(0x45, -1, 1, 64, 17, (OWN + 5, UNDERLAY), TO_PEER),
            ip_packet(0x45, -1, 0x4000, 1, 17, (OWN + 5, PEER + 9), bytes(5)),
            ip_packet(0x45, -1, 0x4000, 1, 1, (OWN + 5, PEER + 9), bytes([3, 0, 0, 0])),
        ],
    ),
    Parser(
        "packets of the tunnel",
        receive,
        st.builds(batch, st.lists(packets, max_size=4), st.integers(0, 2))
        | st.builds(
            flow,
            st.lists(st.sampled_from([0, 0, 0, 1]), min_size=2, max_size=5),
            st.sampled_from([10, 7, 11]),
            st.sampled_from([0x5010, 0x5018]),
        ),
        (),
        [batch([packet], sender) for packet in OLD_PACKETS for sender in (0, 1)],
    ),
]

# Answers to probes: ICMP and ICMPv6 messages, and the times of a timestamp reply.

ICMP_BODIES = [
    bytes([0, 0, 0, 0, 0x12, 0x34, 0, 7]) + b"payload",
    bytes([3, 4, 0, 0, 0, 0, 5, 0x78]) + b"quoted",
    bytes([2, 0, 0, 0, 0, 0, 5, 0x78]) + b"quoted",
    bytes([11, 0, 0, 0, 0, 0, 0, 0]),
    bytes([14, 0, 0, 0, 0, 1, 0, 1]) + struct.pack("!III", 1000, 1007, 1007),
    bytes([129, 0, 0, 0, 0, 1, 0, 1]),
]
ICMP_PACKETS = [
    ip_packet(first, -1, 0, 64, 1, (PEER, OWN), body) for first in (0x45, 0x46) for body in ICMP_BODIES
]


def read_icmp(data: bytes) -> None:
    for message in (parse_icmp(data), parse_icmpv6(data, IPv6Address("fd00::1"))):
        if message is not None:
            _ = message.text, message.is_echo_reply
            clock_offset(message.body, 1.7e9)


PROBES = [
    Parser(
        "answer to a probe",
        read_icmp,
        damaged(st.sampled_from(ICMP_PACKETS + ICMP_BODIES)),
        (),
        ICMP_PACKETS + ICMP_BODIES,
    )
]

# Control: the forwarder's frames, and the documents of the control socket.

a_state = forwarder_control.encode_state(
    forwarder_control.ForwarderState("0.1.0", 7, True, SETTINGS, tuple(PEERS))
)
a_stranger = forwarder_control.Stranger(UNDERLAY, "stranger", 3, 100, PEER, OWN)
CONTENTS: dict[int, tuple[Callable[[bytes], object], bytes]] = {
    Kind.STATE: (forwarder_control.decode_state, a_state),
    Kind.HANDED: (forwarder_control.decode_handed, b"\2" + a_state),
    Kind.REPLACE_PEERS: (forwarder_control.decode_peers, forwarder_control.encode_peers(PEERS)),
    Kind.CHANGE_PEERS: (
        forwarder_control.decode_change,
        forwarder_control.encode_change([(PEER, 24)], PEERS),
    ),
    Kind.COUNTERS: (
        forwarder_control.decode_counters,
        forwarder_control.encode_counters({"short": 3, "long": 1}),
    ),
    Kind.STRANGERS: (
        forwarder_control.decode_strangers,
        forwarder_control.encode_strangers([a_stranger] * 2),
    ),
    Kind.SUMMARY: (
        forwarder_control.decode_summary,
        forwarder_control.encode_summary(forwarder_control.Summary(9, True, 1)),
    ),
    Kind.REFUSED: (forwarder_control.decode_refusal, forwarder_control.encode_refusal(16, "busy")),
}
contents = st.sampled_from(sorted(CONTENTS)).flatmap(
    lambda kind: damaged(st.just(CONTENTS[kind][1])).map(lambda payload: (kind, payload))
)
frames = st.lists(contents.map(lambda one: encode_frame(*one)), max_size=3).map(b"".join)


def read_content(data: bytes) -> None:
    """The first byte is the kind of the frame."""
    if (content := CONTENTS.get(data[0]) if data else None) is not None:
        content[0](data[1:])


def read_frames(data: bytes) -> None:
    reader = FrameReader()
    for start in range(0, len(data), 7):
        list(reader.feed(data[start : start + 7]))


a_status = Status(
    version="0.1.0",
    is_ready=False,
    waiting_for="the store",
    lease=LeaseStatus(subnet=IPv4Network("10.3.1.0/24"), trouble=Notice("none left", "Widen it.")),
    store=StoreStatus(url="etcd://a", is_connected=False, since_s=4.0),
    refused_peers=(
        RefusedPeer(subnet=IPv4Network("10.3.2.0/24"), public_ip=IPv4Address("192.0.2.1"), reason="x"),
    ),
    strangers=(
        StrangerStatus(
            address=IPv4Address("192.0.2.1"),
            reason="stranger",
            packets=1,
            age_s=1.0,
            inner_source=IPv4Address("10.3.1.2"),
            inner_destination=IPv6Address("fd00::1"),
            cause="x",
            hint="y",
        ),
    ),
)
an_entry = LeaseEntry(subnet=IPv4Network("10.3.1.0/24"), public_ip=IPv4Address("192.0.2.1"), owner="a")
a_matrix = Matrix(
    rows=(
        MatrixRow(
            subnet=IPv4Network("10.3.1.0/24"),
            public_ip=IPv4Address("192.0.2.1"),
            cells=(MatrixCell(subnet=IPv6Network("fd00::/64"), state="reached", rtt_ms=0.5),),
        ),
    )
)
DOCUMENTS: list[tuple[Callable[[bytes], object], bytes]] = [
    (control_json.parse_status, control_json.format_status(a_status)),
    (control_json.parse_leases, control_json.format_leases([an_entry])),
    (
        control_json.parse_events,
        control_json.format_events([JournalEntry(at=1.0, event="repaired", found="x")]),
    ),
    (
        control_json.parse_preview,
        control_json.format_preview(
            PlanPreview(changes=(PlannedChange(action="remove", kind="link", text="flannel.1"),))
        ),
    ),
    (control_json.parse_subnets, control_json.format_subnets([IPv4Network("10.3.1.0/24")])),
    (control_json.parse_store_times, control_json.format_store_times(StoreTimes(answered_s=(0.1,)))),
    (control_json.parse_matrix, control_json.format_document(a_matrix)),
    (control_json.parse_public_key, control_json.format_public_key("A" * 43 + "=")),
    (control_json.parse_config_text, control_json.format_config_text("{}")),
    (control_json.parse_error, control_json.format_error(WireError("bad", hint="Repair it."))),
]
DEEP = b'{"a":' * 3000
documents = st.sampled_from(range(len(DOCUMENTS))).flatmap(
    lambda number: (damaged(st.just(DOCUMENTS[number][1])) | as_bytes(values.map(json.dumps) | deep)).map(
        lambda data: bytes([number]) + data
    )
)


def read_document(data: bytes) -> None:
    """The first byte is the number of the document."""
    if data:
        DOCUMENTS[data[0] % len(DOCUMENTS)][0](data[1:])


CONTROL = [
    Parser(
        "content of a control frame",
        read_content,
        contents.map(lambda one: bytes([one[0]]) + one[1]),
        corpus=[
            bytes([kind]) + content[:size]
            for kind, (_, content) in CONTENTS.items()
            for size in (0, 3, 8, 13, 99)
        ],
    ),
    Parser(
        "control frames",
        read_frames,
        damaged(frames) | st.binary(max_size=40),
        corpus=[b"pf\1\0\0\0\0\0", b"pf\1\1\xff\0\0\0", encode_frame(Kind.STATE, a_state)],
    ),
    Parser(
        "document of the control socket",
        read_document,
        documents,
        corpus=[
            bytes([number]) + text
            for number, (_, document) in enumerate(DOCUMENTS)
            for text in (document, DEEP, re.sub(rb'"10[.][^"]+"', b"7", document))
        ],
    ),
]

# HTTP: the requests of a client, in pieces, to the server's side of one connection.

requests = st.builds(
    lambda method, target, version, headers, payload: (
        b"%s %s HTTP/%s\r\n" % (method, target, version) + b"".join(headers) + b"\r\n" + payload
    ),
    st.sampled_from([b"GET", b"PUT", b"HEAD", b"POST", b"get", b"CONNECT", b"\xff"]),
    st.sampled_from([b"/healthz", b"/echo?x=1", b"*", b"http://h/", b"/\xe9", b""]),
    st.sampled_from([b"1.1", b"1.1", b"1.0", b"2.0", b"0.9"]),
    st.lists(
        st.sampled_from(
            [
                b"Host: h\r\n",
                b"Host: h\r\n",
                b"Content-Length: 4\r\n",
                b"Content-Length: 99999999\r\n",
                b"Content-Length: -1\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: gzip\r\n",
                b"Expect: 100-continue\r\n",
                b"Connection: close\r\n",
                b"Upgrade: websocket\r\nConnection: upgrade\r\n",
                b"X: " + b"y" * 3000 + b"\r\n",
                b" folded\r\n",
                b"no colon\r\n",
            ]
        ),
        max_size=4,
    ),
    st.sampled_from(
        [b"", b"body", b"4\r\nbody\r\n0\r\n\r\n", b"ffffffffffffffffffff\r\n", b"0\r\nTrailer: x\r\n\r\n"]
    ),
)
BODIES = [
    b"Content-Length: 4\r\n\r\nbody",
    b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
    b"Content-Length: 99999999\r\n\r\nbody",
    b"Content-Length: 4\r\n\r\nbo",
    b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n" + b"200\r\n" + b"x" * 512 + b"\r\n" + b"1ff\r\n" + b"y" * 511,
    b"Connection: close\r\n\r\n",
    b"X: " + b"y" * 3000,
    b"\r\n",
]
SOUND_REQUESTS = [b"PUT /echo HTTP/1.1\r\nHost: h\r\n" + rest for rest in BODIES]
sound_requests = st.sampled_from(SOUND_REQUESTS)
some_requests = st.lists(requests | sound_requests, min_size=1, max_size=3).map(b"".join)
conversations = damaged(some_requests) | some_requests | sound_requests | st.binary(max_size=60)


LOOP = asyncio.new_event_loop()
"""One event loop for all inputs, because a new event loop takes longer than most inputs."""

atexit.register(LOOP.close)


class Client:
    """A connection that accepts all responses and discards them."""

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes | bytearray | memoryview)

    async def drain(self) -> None:
        """Return immediately, as if all bytes were read."""

    def write_eof(self) -> None:
        """Stop reading."""


class Pieces(asyncio.StreamReader):
    """A stream that returns few bytes at a time, as a slow client sends them."""

    async def read(self, n: int = -1) -> bytes:
        return await super().read(100)


def converse(data: bytes) -> None:
    async def answer(request: Request) -> Response:
        return Response(status=200 if request.method in ("GET", "PUT", "HEAD") else 405, body=request.body)

    async def run() -> None:
        reader = Pieces()
        reader.feed_data(data)
        reader.feed_eof()
        limits = Limits(head_bytes=2000, body_bytes=1000, linger_s=0.1)
        await Conversation(reader, Client(), limits).run(answer)

    LOOP.run_until_complete(run())


# HTTP: the answers of the API server of Kubernetes.

ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}\n{\r\n2\r\n}\n\r\n0\r\n\r\n",
    b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 Slow\r\nRetry-After: x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx",
    b"HTTP/1.1 503 No\r\nRetry-After: " + b"9" * 400 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n{}\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    *(
        b"HTTP/1.1 %d No\r\n\r\n" % status
        + json.dumps({"code": status, "message": message, "reason": "x"}).encode()
        for status, message in (
            (401, ""),
            (403, "denied the request"),
            (403, "no role"),
            (404, ""),
            (500, "failed calling webhook"),
            (500, ""),
        )
    ),
    b"",
]


API_SERVER = parse_server("https://h:6443", "x")
CREDENTIALS = [
    Kubeconfig(token=Secret("t")),
    Kubeconfig(certificate="/c", key="/k"),
    Kubeconfig(token_file="/proc/sys/kernel/random/boot_id"),
]
UNUSABLE = [
    Kubeconfig(token_file="/dev/null"),
    Kubeconfig(token_file="/proc/version"),  # several words
]


def read_answer(data: bytes) -> None:
    """Read the answer to a request, and the answer to the request of a watch."""

    async def run(is_watch: bool) -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        config = CREDENTIALS[len(data) % len(CREDENTIALS)]
        answer = Answer(Connection(server=API_SERVER, config=config, base=Path()), reader, "GET /x")
        with suppress(StoreError):
            answer.request("PATCH", "/x", b"{}" * (len(data) % 2))
            await answer.head()
            _ = answer.retry_after_s
            if is_watch:
                await answer.check()
                while await answer.lines():
                    pass
            else:
                await answer.body()

    for config in UNUSABLE if not data else ():
        with suppress(StoreError):
            Connection(server=API_SERVER, config=config, base=Path()).headers()
    for is_watch in (False, True):
        LOOP.run_until_complete(run(is_watch))


# HTTP: the requests to the page.

A_WORD = Path("/proc/sys/kernel/random/boot_id")  # a file with a word of 36 characters
ACCESSES = [
    Access(IPv4Address("127.0.0.1")),
    Access(IPv4Address("10.0.0.1")),
    Access(IPv4Address("10.0.0.1"), A_WORD),
    Access(IPv4Address("10.0.0.1"), Path("/dev/null")),
]
PAGE_REQUESTS = [
    b"10.0.0.1\nnone\nBearer " + A_WORD.read_bytes().strip(),
    b"127.0.0.1:8080\nnone\nBearer " + b"t" * 32,
    b"[::1]\nsame-origin\nbearer x",
    b"localhost:x\n\n",
    b"[::1\ncross-site\n",
    b"example.com\n\n",
]


def admit(data: bytes) -> None:
    """The lines are the headers Host, Sec-Fetch-Site and Authorization."""
    names = ("host", "sec-fetch-site", "authorization")
    headers = dict(zip(names, data.decode("latin-1").split("\n"), strict=False))
    for access in ACCESSES:
        access.objection_to_document(Request(method="GET", path="/v1/status", headers=headers))


HTTP = [
    Parser(
        "HTTP",
        converse,
        conversations,
        (),
        [
            *SOUND_REQUESTS,
            SOUND_REQUESTS[0] * 3,
            SOUND_REQUESTS[0].replace(b"PUT", b"HEAD"),
            SOUND_REQUESTS[2] + bytes(3000),
            SOUND_REQUESTS[0][:20],
            b"HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
            SOUND_REQUESTS[2] + bytes(200_000),
            b"HEAD / HTTP/1.0\r\n\r\n",
            b"",
        ],
    ),
    Parser("answer of the API server", read_answer, damaged(st.sampled_from(ANSWERS)), (), ANSWERS),
    Parser("request to the page", admit, damaged(st.sampled_from(PAGE_REQUESTS)), (), PAGE_REQUESTS),
]

# Docker: its requests, and the memory of its plugin.

ADDRESS = IPv4Address("10.3.1.130")
ENDPOINT = DockerEndpoint(
    name="e" * 64,
    network="n" * 64,
    address=IPv4Interface("10.3.1.130/26"),
    mac="02:42:0a:03:01:82",
    ports=(PublishedPort(protocol="tcp", host_address=None, host_port=8080, address=ADDRESS, port=80),),
)
PLUGIN_STATES = [
    format_state(DockerState()),
    format_state(
        DockerState(
            pools={"p": Pool(subnet=IPv4Network("10.3.1.128/26"), choice=IPv4Network("10.3.1.128/26"))},
            networks={"n": DockerNetwork(name="n", gateway=IPv4Interface("10.3.1.129/26"))},
            endpoints={"e": ENDPOINT},
        )
    ),
]
GENERIC = "com.docker.network.generic"
PORTS = [{"Proto": 6, "Port": 80, "HostIP": "0.0.0.0", "HostPort": 8080, "HostPortEnd": 8080}]
REFUSED_PORTS = [{"Proto": 1}, {"Proto": 6}, {"Proto": 6, "HostPort": 80, "HostIP": "fd00::1"}]
DOCKER_REQUESTS = [
    *(
        json.dumps(
            {"NetworkID": "n", "EndpointID": "e", "Options": {"com.docker.network.portmap": [port]}}
        ).encode()
        for port in REFUSED_PORTS
    ),
    b"",
    b'{"Pool":"10.3.1.128/26","SubPool":"10.3.1.128/27","Options":{},"V6":false}',
    b'{"PoolID":"flannel/10.3.1.128/26","Address":"10.3.1.129/26",'
    b'"Options":{"RequestAddressType":"com.docker.network.gateway"}}',
    b'{"NetworkID":"n","Options":{"com.docker.network.generic":{"x":"y"}},'
    b'"IPv4Data":[{"Pool":"10.3.1.128/26","Gateway":"10.3.1.129/26"}],"IPv6Data":[]}',
    json.dumps(
        {
            "NetworkID": "n",
            "EndpointID": "e",
            "Interface": {"Address": "10.3.1.130/26", "AddressIPv6": "fd00::2/64", "MacAddress": ""},
            "Options": {"com.docker.network.portmap": PORTS, GENERIC: {}},
        }
    ).encode(),
]


def read_docker_request(body: bytes) -> None:
    with suppress(WireError, DockerPluginError):
        address = parse_request(body, AddressRequest)
        _ = address.is_for_gateway, parse_address(address.address)
    with suppress(WireError, DockerPluginError):
        pool = parse_request(body, PoolRequest)
        parse_as(IPv6Network if pool.is_ipv6 else IPv4Network, pool.pool)
    with suppress(WireError, DockerPluginError):
        network = parse_request(body, NetworkRequest)
        _ = network.driver_options, network.is_internal, network.has_ipv6
        for data in network.ipv4 or []:
            parse_as(IPv4Interface, data.gateway)
    endpoint = parse_request(body, EndpointRequest)
    endpoint.ports(ADDRESS)
    _ = endpoint.address, endpoint.ipv6_address, endpoint.mac


def read_plugin_state(data: bytes) -> None:
    state = parse_state(data)
    _ = state.plan, [one.bridge for one in state.networks.values()]
    format_state(state)


DOCKER = [
    Parser(
        "request of Docker",
        read_docker_request,
        damaged(st.sampled_from(DOCKER_REQUESTS)) | as_bytes(deep),
        (WireError, DockerPluginError),
        DOCKER_REQUESTS,
    ),
    Parser(
        "state of the Docker plugin",
        read_plugin_state,
        damaged(st.sampled_from(PLUGIN_STATES)) | as_bytes(deep),
        corpus=PLUGIN_STATES,
    ),
]
PARSERS = [*PACKETS, *PROBES, *CONTROL, *HTTP, *DOCKER]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_raises_no_error_but_its_own(parser: Parser) -> None:
    check(parser)
