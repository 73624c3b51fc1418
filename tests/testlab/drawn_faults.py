"""Faults of a host that are drawn at random: table, chain, family, direction, device, value."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from pyflannel.lab.topology import Host
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from testlab.doctor import problems


class Fault(NamedTuple):
    """The commands that cause a fault and end it, and the code and the severity of its finding."""

    do: str
    undo: str
    code: str
    severity: str = "error"


class End(NamedTuple):
    """A host, its address on the underlay, and its subnet."""

    host: Host
    address: IpAddress
    subnet: IpNetwork


class Pair(NamedTuple):
    """The examined host and its peer, in a vxlan network with one family.

    Attributes:
        device: name of the vxlan device.
        bridge: name of the bridge of the containers, which has the port port7.
    """

    here: End
    peer: End
    network: IpNetwork
    device: str
    bridge: str = "br7"

    @property
    def family(self) -> Family:
        return self.network.version

    @property
    def iptables(self) -> list[str]:
        """Both kinds of iptables."""
        program = "iptables" if self.family == 4 else "ip6tables"
        return [program, f"{program}-legacy"]

    @property
    def nft(self) -> str:
        """The family of nftables."""
        return "ip" if self.family == 4 else "ip6"

    @property
    def ip(self) -> str:
        """The program ip, for this family."""
        return f"ip -{self.family}"


def give_port(host: Host) -> None:
    """Give the bridge br7 a port, as a container has it."""
    batch = "link add port7 mtu 1400 type veth peer name inside7\nlink set port7 master br7\n"
    host.run(["ip", "-batch", "-"], text=batch)


def some_of(draw: random.Random, *texts: str) -> str:
    return " ".join(text for text in texts if draw.random() < 0.5)


def tunnel_by_iptables(draw: random.Random, pair: Pair) -> Fault:
    program = draw.choice(pair.iptables)
    is_in = draw.random() < 0.5
    table, chain = draw.choice(
        [("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")]
        if is_in
        else [("raw", "OUTPUT"), ("mangle", "POSTROUTING"), ("filter", "OUTPUT")]
    )
    address = f"-s {pair.peer.address}" if is_in else f"-d {pair.peer.address}"
    device = "-i eth0" if is_in else "-o eth0"
    ports = draw.choice(["--dport 8472", "--dport 8000:9000", "-m multiport --dports 53,8472"])
    target = draw.choice(["DROP", "REJECT"] if table == "filter" else ["DROP"])
    rule = f"{some_of(draw, address, device)} -p udp {ports} -j {target}"
    if draw.random() < 0.5:  # in a separate chain
        place = f"{program} -t {table}"
        do = f"{place} -N mine; {place} -A mine {rule}; {place} -I {chain} -j mine"
        undo = f"{place} -D {chain} -j mine; {place} -F mine; {place} -X mine"
    else:
        do, undo = (f"{program} -t {table} {option} {chain} {rule}" for option in ("-I", "-D"))
    return Fault(do, undo, "tunnel-dropped" if is_in else "tunnel-not-sent")


def tunnel_by_nft(draw: random.Random, pair: Pair) -> Fault:
    is_in = draw.random() < 0.5
    hook = draw.choice(["prerouting", "input"] if is_in else ["output", "postrouting"])
    family = draw.choice([pair.nft, "inet"])
    base = f"type filter hook {hook} priority {draw.choice([-350, -150, 0, 50])}"
    if is_in and draw.random() < 0.25:
        family, base = "netdev", "type filter hook ingress device eth0 priority 0"
    field = f"{pair.nft} {'saddr' if is_in else 'daddr'}"
    ports = draw.choice(["udp dport 8472", "udp dport { 53, 8472 }", "meta l4proto udp th dport 8472"])
    verdict = draw.choice(
        ["drop", "reject"] if hook in ("input", "output") and family != "netdev" else ["drop"]
    )
    text = f"{some_of(draw, f'{field} {pair.peer.address}')} {ports} counter {verdict}"
    table = f"{family} fw{draw.randint(0, 99)}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {text}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "tunnel-dropped" if is_in else "tunnel-not-sent")


def default_deny(draw: random.Random, pair: Pair) -> Fault:
    """A firewall that accepts only replies and ICMP."""
    program = draw.choice(pair.iptables)
    accept = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    last = draw.choice([f"{program} -P INPUT DROP", f"{program} -A INPUT -j REJECT"])
    icmp = "icmp" if pair.family == 4 else "ipv6-icmp"
    accepted = (accept, f"-p {icmp} -j ACCEPT", "-i lo -j ACCEPT")
    do = "; ".join(f"{program} -A INPUT {rule}" for rule in accepted)
    return Fault(f"{do}; {last}", f"{program} -P INPUT ACCEPT; {program} -F INPUT", "tunnel-dropped")


def forward_by_iptables(draw: random.Random, pair: Pair) -> Fault:
    program = draw.choice(pair.iptables)
    table = draw.choice(["filter", "mangle"])
    target = draw.choice(["DROP", "REJECT"] if table == "filter" else ["DROP"])
    # flanneld moves its accept rule before a rule of the filter table that decides for every packet.
    every = [""] if table == "mangle" else []
    devices = [f"-i {pair.bridge}", f"-o {pair.bridge}", f"-o {pair.device}"]
    match = draw.choice([*every, *devices, f"-s {pair.network}", f"-d {pair.here.subnet}"])
    do, undo = (f"{program} -t {table} {option} FORWARD {match} -j {target}" for option in ("-I", "-D"))
    return Fault(do, undo, "forward-dropped")


def forward_by_nft(draw: random.Random, pair: Pair) -> Fault:
    family, table = draw.choice([pair.nft, "inet"]), f"fw{draw.randint(0, 99)}"
    base = f"type filter hook forward priority {draw.choice([-10, 0, 10])}"
    device = f'iifname "{pair.device}" drop'
    rule = draw.choice(["policy drop", "reject", device, f"{pair.nft} daddr {pair.peer.subnet} drop"])
    do = f"nft 'table {family} {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {family} {table}", "forward-dropped")


def forward_by_bridge(draw: random.Random, pair: Pair) -> Fault:
    """A rule for the frames of containers at the bridge."""
    is_in = draw.random() < 0.5
    hook = draw.choice(["prerouting", "input"] if is_in else ["output", "postrouting"])
    base = f"type filter hook {hook} priority {draw.choice([-300, -200, 0, 10])}"
    device = f"{'iifname' if is_in else 'oifname'} {draw.choice(['port7', 'port*'])}"
    address = f"{pair.nft} {'saddr' if is_in else 'daddr'} {pair.here.subnet}"
    # A rule for every frame drops neighbour discovery too, which is another finding.
    always = [] if pair.family == 4 else ["meta l4proto tcp"]
    text = f"{some_of(draw, device, f'ether type {pair.nft}', address)} {' '.join(always)} counter drop"
    table = f"bridge fw{draw.randint(0, 99)}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {text}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "forward-dropped")


def asymmetric_way(draw: random.Random, pair: Pair) -> Fault:
    name = draw.choice(["eth0", "all"])
    before = f"sysctl -qw net/ipv4/conf/{name}/rp_filter"
    do = f"ip link add way type veth peer yaw; ip link set way up; ip link set yaw up; {before}=1"
    route = f"ip route add {pair.peer.address} dev way"
    return Fault(f"{do}; {route}", f"ip link delete way; {before}=0", "source-refused")


_FORGET_FLOWS = """python3 -c '
import socket, struct
flows = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
flows.send(struct.pack("=IHHIIBBH", 20, 0x102, 5, 1, 0, {}, 0, 0))
flows.recv(4096)'"""
"""Deletes all known flows of a family, which would keep a changed destination: IPCTNL_MSG_CT_DELETE."""


def redirection(draw: random.Random, pair: Pair) -> Fault:
    """A rule that changes the destination of tunnel packets, as for a published port of a container."""
    elsewhere = pair.here.subnet.network_address + draw.randint(3, 14)
    if draw.random() < 0.5:
        program = pair.iptables[0]
        target = draw.choice(
            [f"DNAT --to-destination {elsewhere}", f"REDIRECT --to-ports {draw.randint(2000, 3000)}"]
        )
        match = f"{some_of(draw, '-i eth0', f'-d {pair.here.address}')} -p udp --dport 8472 -j {target}"
        do, undo = (f"{program} -t nat {option} PREROUTING {match}" for option in ("-I", "-D"))
    else:
        table, base = f"{pair.nft} nat{draw.randint(0, 99)}", "type nat hook prerouting priority -100"
        target = draw.choice([f"dnat to {elsewhere}", f"redirect to :{draw.randint(2000, 3000)}"])
        do = f"nft 'table {table} {{ chain c {{ {base}; udp dport 8472 {target}; }}; }}'"
        undo = f"nft delete table {table}"
    return Fault(do, f"{undo}; {_FORGET_FLOWS.format(2 if pair.family == 4 else 10)}", "tunnel-redirected")


def policy_rule(draw: random.Random, pair: Pair) -> Fault:
    """A rule for the packets to peers or, as programs for VPNs add it, for most packets of the host."""
    table, priority = draw.randint(1000, 2000), draw.randint(1, 30000)
    selector = draw.choice(
        [
            *(f"to {pair.network}", f"to {pair.peer.subnet}"),
            *(f"from {pair.here.subnet}", f"iif {pair.bridge}", f"iif {pair.bridge} not fwmark 0xca6c"),
        ]
    )
    route = draw.choice(["blackhole default", "unreachable default", f"default via {pair.peer.address}"])
    if draw.random() < 0.25:  # only for packets to a container of this host
        selector, route = f"to {pair.here.subnet[2]}", f"local {pair.here.subnet[2]} dev lo"
    do = f"{pair.ip} route add {route} table {table}"
    rule = f"{pair.ip} rule add {selector} lookup {table} priority {priority}"
    undo = f"{pair.ip} rule delete priority {priority}; {pair.ip} route flush table {table}"
    return Fault(f"{do}; {rule}", undo, "policy-rule")


def masquerade(draw: random.Random, pair: Pair) -> Fault:
    match = draw.choice(
        [f"-s {pair.here.subnet} ! -o {pair.bridge}", f"-o {pair.device}", f"-s {pair.network}"]
    )
    program = pair.iptables[0]
    do, undo = (f"{program} -t nat {option} POSTROUTING {match} -j MASQUERADE" for option in ("-I", "-D"))
    return Fault(do, undo, "source-changed", "warning")


def other_source(draw: random.Random, pair: Pair) -> Fault:
    """A rule that gives packets a source address that no host has."""
    elsewhere = f"192.0.2.{draw.randint(3, 14)}" if pair.family == 4 else f"2001:db8::{draw.randint(3, 14)}"
    match = draw.choice(
        [f"-o {pair.device}", f"-s {pair.network}", f"-d {pair.peer.subnet}", "-p udp -o eth0"]
    )
    if draw.random() < 0.5:
        program = pair.iptables[0]
        rule = f"POSTROUTING {match} -j SNAT --to-source {elsewhere}"
        do, undo = (f"{program} -t nat {option} {rule}" for option in ("-I", "-D"))
        return Fault(do, undo, "source-changed")
    table, base = f"{pair.nft} nat{draw.randint(0, 99)}", "type nat hook postrouting priority 100"
    to = draw.choice([f"oifname {pair.device}", f"{pair.nft} saddr {pair.network}", "udp dport 8472"])
    do = f"nft 'table {table} {{ chain c {{ {base}; {to} snat to {elsewhere}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "source-changed")


def short_life(draw: random.Random, pair: Pair) -> Fault:
    """A rule that sets the TTL of packets of containers so low that the next router drops them."""
    value = draw.choice([0, 1])
    if draw.random() < 0.5:
        chain = draw.choice(["PREROUTING", "FORWARD", "POSTROUTING"])
        match = draw.choice([f"-s {pair.here.subnet}", f"-d {pair.peer.subnet}"])
        target = f"TTL --ttl-set {value}" if pair.family == 4 else f"HL --hl-set {value}"
        rule = f"{chain} {match} -j {target}"
        do, undo = (f"{pair.iptables[0]} -t mangle {option} {rule}" for option in ("-I", "-D"))
        return Fault(do, undo, "forward-dropped")
    family, table = draw.choice([pair.nft, "inet"]), f"fw{draw.randint(0, 99)}"
    base = f"type filter hook {draw.choice(['prerouting', 'forward', 'postrouting'])} priority -150"
    field = "ip ttl" if pair.family == 4 else "ip6 hoplimit"
    rule = f"{pair.nft} daddr {pair.peer.subnet} {field} set {value}"
    do = f"nft 'table {family} {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {family} {table}", "forward-dropped")


def unread_queue(draw: random.Random, pair: Pair) -> Fault:
    """A rule that passes packets of containers to a queue that no program reads."""
    table, chain = draw.choice([("raw", "PREROUTING"), ("mangle", "FORWARD"), ("mangle", "POSTROUTING")])
    rule = f"{chain} -s {pair.here.subnet} -p tcp -j NFQUEUE --queue-num {draw.randint(0, 99)}"
    program = draw.choice(pair.iptables)
    do, undo = (f"{program} -t {table} {option} {rule}" for option in ("-I", "-D"))
    return Fault(do, undo, "forward-dropped")


def probes_dropped(draw: random.Random, pair: Pair) -> Fault:
    """A rule against ICMP echo requests, by which peers probe this host."""
    if draw.random() < 0.5:
        protocol = "icmp --icmp-type 8" if pair.family == 4 else "ipv6-icmp --icmpv6-type 128"
        rule = f"INPUT {some_of(draw, '-i eth0')} -p {protocol} -j {draw.choice(['DROP', 'REJECT'])}"
        program = draw.choice(pair.iptables)
        do, undo = (f"{program} {option} {rule}" for option in ("-I", "-D"))
        return Fault(do, undo, "echo-ignored", "warning")
    family, table = draw.choice([pair.nft, "inet"]), f"fw{draw.randint(0, 99)}"
    base = f"type filter hook {draw.choice(['prerouting', 'input'])} priority {draw.choice([-150, 0, 50])}"
    rule = f"{'icmp' if pair.family == 4 else 'icmpv6'} type echo-request drop"
    do = f"nft 'table {family} {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {family} {table}", "echo-ignored", "warning")


def deaf_bridge(draw: random.Random, pair: Pair) -> Fault:
    """Without ARP on the bridge, the host finds no container."""
    off, on = (f"ip link set {pair.bridge} arp {state}" for state in ("off", "on"))
    return Fault(off, on, "arp-off")


def diversion(draw: random.Random, pair: Pair) -> Fault:
    """A rule that changes the destination of packets of containers."""
    elsewhere = pair.here.subnet.network_address + draw.randint(3, 14)
    match = draw.choice([f"-i {pair.bridge}", f"-s {pair.here.subnet}", f"-d {pair.peer.subnet}"])
    action = draw.choice(
        [
            f"-j DNAT --to-destination {elsewhere}",
            f"-p tcp -j REDIRECT --to-ports {draw.randint(2000, 3000)}",
        ]
    )
    rule = f"PREROUTING {match} {action}"
    do, undo = (f"{pair.iptables[0]} -t nat {option} {rule}" for option in ("-I", "-D"))
    return Fault(do, undo, "destination-changed", "warning")


def ipsec_block(draw: random.Random, pair: Pair) -> Fault:
    """A policy against tunnel packets, or against packets of containers. Some require encryption instead."""
    is_in = draw.random() < 0.5
    ends = (ip_network(pair.here.address), ip_network(pair.peer.address))
    source, destination = reversed(ends) if is_in else ends
    everybody = "0.0.0.0/0" if pair.family == 4 else "::/0"
    # For IPv6, a policy against all packets drops neighbour discovery too.
    ports = "proto udp dport 8472"
    some = some_of(draw, ports) if pair.family == 4 else ports
    selector = f"src {source} dst {draw.choice([str(destination), everybody])}"
    selector += f" {some} dir {'in' if is_in else 'out'}"
    if draw.random() < 0.25:
        selector = f"src {pair.network} dst {pair.network} dir {draw.choice(['fwd', 'out'])}"
    do, undo = f"ip xfrm policy add {selector} priority {draw.randint(0, 5000)}", "ip xfrm policy delete"
    if draw.random() < 0.5:
        tunnel = f"tmpl src {source.network_address} dst {destination.network_address} proto esp mode tunnel"
        template = draw.choice(["tmpl proto esp mode transport", tunnel])
        return Fault(f"{do} {template}", f"{undo} {selector}", "ipsec-no-association")
    return Fault(f"{do} action block", f"{undo} {selector}", "ipsec-block")


def bridge_down(draw: random.Random, pair: Pair) -> Fault:
    """A link that is set down loses its IPv6 addresses, unless keep_addr_on_down is set."""
    down, up = (f"ip link set {pair.bridge} {state}" for state in ("down", "up"))
    if pair.family == 4:
        return Fault(down, up, "bridge-down")
    keeps = draw.choice([0, 1])
    gateway = ip_interface((pair.here.subnet[1], pair.here.subnet.prefixlen))
    again = f"ip address replace {gateway} dev {pair.bridge} nodad"
    return Fault(
        f"sysctl -qw net/ipv6/conf/{pair.bridge}/keep_addr_on_down={keeps}; {down}",
        f"{up}; {again}",
        "bridge-down",
    )


def ipv6_off(draw: random.Random, pair: Pair) -> Fault:
    setting = f"sysctl -qw net/ipv6/conf/{pair.bridge}/disable_ipv6"
    gateway = ip_interface((pair.here.subnet[1], pair.here.subnet.prefixlen))
    again = f"ip address replace {gateway} dev {pair.bridge} nodad"
    return Fault(f"{setting}=1", f"{setting}=0; {again}", "ipv6-off")


def overlay_address(draw: random.Random, pair: Pair) -> Fault:
    address = ip_network(pair.peer.subnet.network_address + draw.randint(1, 14))
    do = f"ip link add elsewhere type veth peer erehwesle; ip address add {address} dev elsewhere"
    return Fault(do, "ip link delete elsewhere", "overlay-address")


def forwarding_off(draw: random.Random, pair: Pair) -> Fault:
    """The kernel has a setting for each link only for IPv4."""
    if pair.family == 6:
        setting = "sysctl -qw net.ipv6.conf.all.forwarding"
        return Fault(f"{setting}=0", f"{setting}=1", "forwarding-off")
    link = draw.choice([pair.bridge, pair.device, None])
    setting = f"sysctl -qw net/ipv4/{f'conf/{link}/forwarding' if link else 'ip_forward'}"
    return Fault(f"{setting}=0", f"{setting}=1", "forwarding-off")


def other_route(draw: random.Random, pair: Pair) -> Fault:
    """A route to a part of the peer's subnet. The kernel prefers this route to the route of flanneld."""
    part = next(pair.peer.subnet.subnets(prefixlen_diff=1))
    kind, to = draw.choice(
        [
            *(("", f"via {pair.peer.address}"), ("", f"dev {pair.bridge}")),
            *((kind, "") for kind in ("unreachable", "blackhole", "prohibit")),
        ]
    )
    return Fault(f"ip route add {kind} {part} {to}", f"ip route del {kind} {part}", "unplanned-route")


def no_echo(draw: random.Random, pair: Pair) -> Fault:
    """Peers see no answer, but this host sends and receives packets of containers."""
    name = "net.ipv4.icmp_echo_ignore_all" if pair.family == 4 else "net.ipv6.icmp.echo_ignore_all"
    return Fault(f"sysctl -qw {name}=1", f"sysctl -qw {name}=0", "echo-ignored", "warning")


def no_arp_answer(draw: random.Random, pair: Pair) -> Fault:
    setting = f"sysctl -qw net/ipv4/conf/{draw.choice(['eth0', 'all'])}/arp_ignore"
    return Fault(f"{setting}=8", f"{setting}=0", "arp-ignored", "warning")


def discovery_by_iptables(draw: random.Random, pair: Pair) -> Fault:
    """A rule against ICMPv6, without which a host finds no MAC address."""
    program = draw.choice(pair.iptables)
    is_in = draw.random() < 0.5
    table, chain = draw.choice(
        [("raw", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT")]
        if is_in
        else [("raw", "OUTPUT"), ("mangle", "POSTROUTING"), ("filter", "OUTPUT")]
    )
    kinds = draw.choice(
        ["", "--icmpv6-type 135", "--icmpv6-type 136", "--icmpv6-type neighbour-solicitation"]
    )
    link = draw.choice(["eth0", pair.bridge])
    device = f"-{'i' if is_in else 'o'} {link}"
    match = f"{some_of(draw, device)} -p ipv6-icmp {kinds}"
    do, undo = (f"{program} -t {table} {option} {chain} {match} -j DROP" for option in ("-I", "-D"))
    return Fault(do, undo, "neighbour-dropped")


def discovery_by_nft(draw: random.Random, pair: Pair) -> Fault:
    is_in = draw.random() < 0.5
    hook = draw.choice(["prerouting", "input"] if is_in else ["output", "postrouting"])
    family = draw.choice([pair.nft, "inet"])
    base = f"type filter hook {hook} priority {draw.choice([-350, -150, 0, 50])}"
    rule = draw.choice(
        [
            "icmpv6 type nd-neighbor-solicit drop",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop",
            "meta l4proto ipv6-icmp drop",
            "ip6 hoplimit 255 counter drop",
        ]
    )
    table = f"{family} fw{draw.randint(0, 99)}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "neighbour-dropped")


def arp_by_nft(draw: random.Random, pair: Pair) -> Fault:
    """A rule against ARP, without which a host finds no MAC address."""
    hook = draw.choice(["input", "output"])
    rule = draw.choice(
        [
            "drop",
            "arp operation request drop",
            "arp operation { request, reply } counter drop",
            f"arp {'saddr' if hook == 'input' else 'daddr'} ip {pair.peer.address} drop",
            "arp ptype ip drop",
        ]
    )
    table = f"arp fw{draw.randint(0, 99)}"
    base = f"type filter hook {hook} priority {draw.choice([-150, 0, 50])}"
    do = f"nft 'table {table} {{ chain c {{ {base}; {rule}; }}; }}'"
    return Fault(do, f"nft delete table {table}", "neighbour-dropped")


def some_packets(draw: random.Random, pair: Pair) -> Fault:
    """A rule against a kind of packets: pings pass."""
    program = draw.choice(pair.iptables)
    table = draw.choice(["filter", "mangle"])
    match = draw.choice(
        [
            "-p tcp --tcp-flags SYN,ACK SYN,ACK",
            "-p tcp ! --syn",
            "-p udp",
            "-m conntrack --ctstate ESTABLISHED",
            "-m length --length 1000:65535",
            "-p tcp -m statistic --mode random --probability 0.3",
        ]
    )
    do, undo = (f"{program} -t {table} {option} FORWARD {match} -j DROP" for option in ("-I", "-D"))
    return Fault(do, undo, "forward-dropped")


def one_port(draw: random.Random, pair: Pair) -> Fault:
    program, protocol = draw.choice(pair.iptables), draw.choice(["tcp", "udp"])
    match = f"-p {protocol} {draw.choice(['--dport', '--sport'])} {draw.randint(1, 9999)}"
    do, undo = (f"{program} {option} FORWARD {match} -j DROP" for option in ("-I", "-D"))
    return Fault(do, undo, "single-dropped", "warning")


def no_resolution(draw: random.Random, pair: Pair) -> Fault:
    """Without ARP, a link does not discover neighbours by IPv6 either."""
    return Fault("ip link set eth0 arp off", "ip link set eth0 arp on", "arp-off")


def wrong_neighbour(draw: random.Random, pair: Pair) -> Fault:
    mac = f"02:00:00:00:00:{draw.randint(16, 99)}"
    entry = f"{pair.peer.address} dev eth0"
    do = f"ip neighbour replace {entry} lladdr {mac} nud permanent"
    return Fault(do, f"ip neighbour delete {entry}", "neighbour-set")


Kind = Callable[[random.Random, Pair], Fault]

KINDS: dict[Family, list[Kind]] = {
    4: [
        tunnel_by_iptables,
        tunnel_by_nft,
        default_deny,
        forward_by_iptables,
        forward_by_nft,
        forward_by_bridge,
        asymmetric_way,
        policy_rule,
        masquerade,
        other_source,
        short_life,
        unread_queue,
        probes_dropped,
        deaf_bridge,
        diversion,
        ipsec_block,
        bridge_down,
        overlay_address,
        forwarding_off,
        other_route,
        redirection,
        no_echo,
        no_arp_answer,
        arp_by_nft,
        some_packets,
        one_port,
    ],
    6: [
        tunnel_by_iptables,
        tunnel_by_nft,
        default_deny,
        forward_by_iptables,
        forward_by_nft,
        forward_by_bridge,
        discovery_by_iptables,
        discovery_by_nft,
        no_resolution,
        wrong_neighbour,
        policy_rule,
        masquerade,
        other_source,
        short_life,
        unread_queue,
        probes_dropped,
        deaf_bridge,
        diversion,
        ipsec_block,
        bridge_down,
        ipv6_off,
        overlay_address,
        forwarding_off,
        other_route,
        redirection,
        no_echo,
        some_packets,
        one_port,
    ],
}
"""Faults that a host may have, by family. The kernel has no reverse path filter for IPv6."""

_SINGLE = frozenset({"wrong_neighbour"})
"""Faults that doctor finds by probes, which stop at an earlier fault of the host itself."""


def harmless(draw: random.Random, pair: Pair) -> tuple[str, str]:
    """Return commands that add and remove a rule which stops no packet of the overlay."""
    elsewhere, other = ("192.0.2.0/24", "192.0.2.7") if pair.family == 4 else ("2001:db8::/32", "2001:db8::7")
    rule = draw.choice(
        [
            "INPUT -p tcp --dport 9999 -j DROP",
            "INPUT -p udp --dport 8471 -j REJECT",
            f"FORWARD -s {elsewhere} -j DROP",
            f"OUTPUT -d {other} -p udp --dport 8472 -j DROP",
            "INPUT -m conntrack --ctstate INVALID -j DROP",
        ]
    )
    program = pair.iptables[0]
    return f"{program} -I {rule}", f"{program} -D {rule}"


def check_each_fault(pair: Pair, draws: int) -> None:
    """Each fault is named without a second error. The kinds take turns, their details are drawn.

    A harmless rule beside it is not named.
    """
    host, kinds = pair.here.host, KINDS[pair.family]
    assert problems(host) == []
    for number in range(draws):
        draw = random.Random(number)
        fault = kinds[number % len(kinds)](draw, pair)
        add, remove = harmless(draw, pair)
        host.run(["sh", "-c", f"set -e; {add}; {fault.do}"])
        try:
            found = problems(host)
        finally:
            host.run(["sh", "-c", f"{remove}; {fault.undo}"])
        errors = [one["code"] for one in found if one["severity"] == "error"]
        named = [(one["code"], one["severity"]) for one in found]
        text = f"draw {number}: {fault.do}\n{found}"
        assert (fault.code, fault.severity) in named, text
        assert errors == ([fault.code] if fault.severity == "error" else []), text
    assert problems(host) == []


_OF_BRIDGE = (bridge_down, ipv6_off)
"""After these faults of the bridge, the kernel accepts no IPv6 route on it."""


def _exclude(one: Kind, other: Kind) -> bool:
    """Return whether two faults cannot exist at once."""
    return (one in _OF_BRIDGE and other in (*_OF_BRIDGE, other_route)) or (
        other in _OF_BRIDGE and one is other_route
    )


def _drawn_pair(draw: random.Random, kinds: Sequence[Kind], number: int, pair: Pair) -> tuple[Fault, Fault]:
    """Return two faults of different kinds. The kinds of the first take turns."""
    paired = [kind for kind in kinds if kind.__name__ not in _SINGLE]
    first = paired[number % len(paired)]
    second = draw.choice([kind for kind in paired if kind is not first and not _exclude(kind, first)])
    return first(draw, pair), second(draw, pair)


def check_pairs_of_faults(pair: Pair, draws: int) -> None:
    """Two faults are both named without a third error."""
    host = pair.here.host
    for number in range(draws):
        faults = _drawn_pair(random.Random(1000 + number), KINDS[pair.family], number, pair)
        host.run(["sh", "-c", f"set -e; {faults[0].do}; {faults[1].do}"])
        try:
            found = problems(host)
        finally:
            host.run(["sh", "-c", f"{faults[1].undo}; {faults[0].undo}"])
        text = f"pair {number}: {faults[0].do}; {faults[1].do}\n{found}"
        wanted = Counter(fault.code for fault in faults)
        named = Counter(one["code"] for one in found)
        assert wanted <= named, text
        errors = {one["code"] for one in found if one["severity"] == "error"}
        assert errors <= wanted.keys(), text
    assert problems(host) == []
