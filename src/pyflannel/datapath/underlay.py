"""Sends packets to peers with the UDP socket on the underlay."""

import errno
import socket
from collections.abc import Sequence
from struct import Struct
from time import monotonic

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.forwarding import Endpoint
from pyflannel.datapath.tun import Offload, Offloads

LONGEST_RUN_BYTES = 65507
LONGEST_RUN_PACKETS = 64
"""Limits of UDP_SEGMENT: the maximum payload of a datagram, and UDP_MAX_SEGMENTS of Linux 4.18 to 6.8."""

_SOL_UDP = 17
_UDP_SEGMENT = 103
"""linux/udp.h."""

_SEGMENT = Struct("=H")

_UNSEGMENTED = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})
"""Errors of UDP_SEGMENT that do not occur with single datagrams. Possible causes are a link without checksum
offload, IPsec, or a path MTU smaller than the packets."""

_AGAIN_S = 10.0
"""Time in seconds for which UDP_SEGMENT is not used for a peer after a refusal."""


class UnderlaySender:
    """Sends packets with the socket. Refused packets are counted and lost. Never raises."""

    def __init__(self, udp: socket.socket, counters: Counters, offloads: Offloads) -> None:
        self._udp = udp
        self._counters = counters
        self._offloads = offloads
        self._refused_until: dict[Endpoint, float] = {}
        try:
            # tests the option without setting a size; a kernel without the option refuses it
            udp.setsockopt(_SOL_UDP, _UDP_SEGMENT, 0)
        except OSError as error:
            offloads.lack(Offload.SEGMENTED_SEND, error)
            self._can_segment = False
        else:
            offloads.use(Offload.SEGMENTED_SEND)
            self._can_segment = True

    def send(self, packet: bytes | memoryview, endpoint: Endpoint) -> None:
        """Send one packet."""
        try:
            self._udp.sendto(packet, endpoint)
        except OSError as error:
            self._counters.count_failure("send", error)
        else:
            self._counters.sent_packets += 1
            self._counters.sent_bytes += len(packet)

    def send_run(self, packets: Sequence[memoryview], size: int, endpoint: Endpoint) -> None:
        """Send packets of `size` bytes each. The last packet may be shorter."""
        if len(packets) == 1 or not self._may_segment(endpoint):
            self._send_one_by_one(packets, endpoint)
            return
        try:
            sent_bytes = self._udp.sendmsg(
                packets, [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(size))], 0, endpoint
            )
        except OSError as error:
            if error.errno not in _UNSEGMENTED:
                self._counters.count_failure("send", error, len(packets))
                return
            self._refused_until[endpoint] = monotonic() + _AGAIN_S
            self._offloads.lack(Offload.SEGMENTED_SEND, f"sending to {endpoint[0]}: {error.strerror}")
            self._send_one_by_one(packets, endpoint)
        else:
            self._counters.batches_sent += 1
            self._counters.sent_packets += len(packets)
            self._counters.sent_bytes += sent_bytes

    def _may_segment(self, endpoint: Endpoint) -> bool:
        if self._refused_until and (until := self._refused_until.get(endpoint)) is not None:
            if monotonic() < until:
                return False
            del self._refused_until[endpoint]
            self._offloads.use(Offload.SEGMENTED_SEND)
        return self._can_segment

    def _send_one_by_one(self, packets: Sequence[memoryview], endpoint: Endpoint) -> None:
        for packet in packets:
            self.send(packet, endpoint)
