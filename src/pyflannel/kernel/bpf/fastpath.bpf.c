/* SPDX-License-Identifier: Apache-2.0
 *
 * eBPF programs that carry the packets of the udp backend in the kernel. The payload of a UDP datagram is one inner
 * IPv4 packet; no other header precedes it. vxlan.h adds mode flow of the vxlan backend.
 *
 *	container -> bridge -> routing, netfilter -> flannel0 [flannel_encap] -> underlay
 *	underlay [flannel_decap] -> flannel0 -> routing, netfilter -> bridge [flannel_hop] -> container
 *
 * At the egress of the underlay, flannel_nexthop stores the Ethernet header of a packet. Later packets to the same
 * peer get the stored header. If the underlay is a network card, received TCP packets take this path to flannel0:
 *
 *	underlay [flannel_decap] -> near end of a veth pair -> GRO, far end [flannel_join] -> flannel0
 *
 * In mode flow, a flow bypasses the firewall for one second after the firewall passed one of its packets unchanged.
 * The packets of the flow then take these paths:
 *
 *	container's veth [flannel_short] -> underlay
 *	underlay [flannel_decap] or the far end of the veth pair [flannel_join] -> container's veth
 *
 * A program carries a packet, drops it, or leaves it unchanged. The kernel handles an unchanged packet as if no program
 * existed: it passes the packet to the forwarder, through flannel0 or through the UDP socket of the forwarder. The
 * forwarder carries the packet, or answers it with an ICMP error.
 *
 * The programs are attached to tcx hooks, or to a clsact qdisc as classifiers with direct action. In both cases, the
 * verdict NEXT means that the kernel continues with the packet.
 */
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "maps.h"

#define NEXT TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT

#define IP_BYTES 20
#define TUNNEL_BYTES 28	/* an IPv4 header and a UDP header */
#define VXLAN_BYTES 50		/* IPv4, UDP, VXLAN and Ethernet headers */
#define LONGEST 65535		/* maximum length in an IPv4 header */
#define OUTER_TTL 64
#define FRAGMENT 0x3fff		/* the flag "more fragments" and the fragment offset */
#define DO_NOT_FRAGMENT 0x4000
#define VLAN 0x0fff		/* the bits of the VLAN ID in a VLAN tag; ID 0 means no VLAN */
#define FLOW_NS 1000000000ULL	/* how long the firewall's decision about a flow is valid */
#define RENEWAL_NS (FLOW_NS / 2)	/* age of a decision from which single packets pass the firewall to renew it */
#define RENEWALS_NS (FLOW_NS / 8)	/* minimum interval between two such packets */
#define LOOKED_UP 0xf1a7	/* tc_index of a packet whose route and neighbour the kernel looks up */

static __always_inline int count(enum outcome outcome, __u32 bytes, int verdict)
{
	__u32 key = outcome;
	struct count *counted = bpf_map_lookup_elem(&flannel_counts, &key);

	if (counted) {
		counted->packets++;
		counted->bytes += bytes;
	}
	return verdict;
}

/* Count the bytes of a datagram that a program decapsulated, without the outer Ethernet header. The arguments are the
 * outer and the inner source address. */
static __always_inline void count_from(__be32 address, __be32 source, __u64 bytes)
{
	struct sender sender = { .address = address, .subnet = source & settings.subnet_mask };
	__u64 *counted = bpf_map_lookup_elem(&flannel_bytes, &sender);

	if (counted)
		*counted += bytes;
	else	/* writes only the value of this processor */
		bpf_map_update_elem(&flannel_bytes, &sender, &bytes, BPF_ANY);
}

/* Drop a packet that the tunnel guard does not permit. Count the packet, and record its sender. */
static __always_inline int turn_away(enum outcome outcome, const struct iphdr *outer, const struct iphdr *inner,
				     __u32 bytes)
{
	struct stranger who = { .address = outer->saddr, .outcome = outcome };
	struct sighting first = {
		.packets = 1,
		.seen_at = bpf_ktime_get_boot_ns(),
		.source = inner->saddr,
		.destination = inner->daddr,
	};
	struct sighting *seen = bpf_map_lookup_elem(&flannel_dropped, &who);

	if (seen) {
		__sync_fetch_and_add(&seen->packets, 1);
		seen->seen_at = first.seen_at;
		seen->source = first.source;
		seen->destination = first.destination;
	} else {
		bpf_map_update_elem(&flannel_dropped, &who, &first, BPF_ANY);
	}
	return count(outcome, bytes, DROP);
}

static __always_inline struct peer *find_peer(__be32 address)
{
	struct subnet key = { .prefix_length = 32, .base = address };

	return bpf_map_lookup_elem(&flannel_peers, &key);
}

/* Return the number of the current period. A period has eight ticks of the kernel, and a tick has 1 to 10 ms. Therefore
 * a change of a route or a neighbour has an effect within 80 ms. */
static __always_inline __u64 current_period(void)
{
	return bpf_jiffies64() / 8;
}

/* Make the first bytes of a packet readable, because they may be in separate pages. Return 0 if they are readable. The
 * caller must still compare with data_end, because the verifier requires this. */
static __always_inline int is_short(struct __sk_buff *skb, __u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return 0;
	return bpf_skb_pull_data(skb, bytes);
}

static __always_inline int is_gone(__u32 device)
{
	return !bpf_map_lookup_elem(&flannel_devices, &device);
}

/* Whether a frame is for another host or for a VLAN. A network card in promiscuous mode also receives frames for other
 * hosts. */
static __always_inline int is_of_others(const struct __sk_buff *skb)
{
	return skb->pkt_type != PACKET_HOST || (skb->vlan_present && (skb->vlan_tci & VLAN));
}

static __always_inline int is_same_mac(const void *one, const void *other)
{
	const __u16 *a = one, *b = other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* Decrement the TTL, and update the checksum of the header (RFC 1624). The TTL is the upper byte of a 16-bit word, so
 * the sum changes by 0x0100. */
static __always_inline void decrement_ttl(struct iphdr *ip)
{
	__u32 sum = ip->check + bpf_htons(0x0100);

	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
}

static __always_inline __u16 checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int word = 0; word < IP_BYTES / 2; word++)
		sum += words[word];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Whether the UDP checksum is unfinished. The kernel of the sender leaves the checksum to the network card, but a
 * datagram within one machine passes no card. The field then contains the sum of the pseudo header, not inverted. */
static __always_inline int has_unfinished_checksum(const struct iphdr *ip, const struct udphdr *udp)
{
	__u32 sum = (ip->saddr & 0xffff) + (ip->saddr >> 16) + (ip->daddr & 0xffff) + (ip->daddr >> 16) +
		    bpf_htons(IPPROTO_UDP) + udp->len;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return udp->check == sum;
}

/* Write the headers that the socket of the forwarder would write, but without a UDP checksum. RFC 768 permits this.
 * Each inner packet has its own checksum, and hardware can compute only one checksum of a packet. */
static __always_inline void write_tunnel_header(struct iphdr *ip, const struct peer *peer, __u32 inner_bytes)
{
	struct udphdr *udp = (void *)(ip + 1);

	ip->version = 4;
	ip->ihl = IP_BYTES / 4;
	ip->tos = 0;
	ip->tot_len = bpf_htons(inner_bytes + TUNNEL_BYTES);
	ip->id = 0;
	ip->frag_off = bpf_htons(DO_NOT_FRAGMENT);
	ip->ttl = OUTER_TTL;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = settings.address;
	ip->daddr = peer->address;
	ip->check = checksum(ip);
	udp->source = settings.port;
	udp->dest = peer->port;
	udp->len = bpf_htons(inner_bytes + sizeof(*udp));
	udp->check = 0;
}

/* Encapsulate the IPv4 packet that follows an Ethernet header of `link_bytes` bytes, or no header if `link_bytes` is 0.
 * Return 0, or the outcome that names the failure. */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct peer *peer, __u32 link_bytes,
				       __u32 bytes)
{
	struct iphdr *ip;

	/* FIXED_GSO keeps the length of the segments. The MTU of flannel0 leaves room for the headers of the tunnel. */
	if (bpf_skb_adjust_room(skb, TUNNEL_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP))
		return LEFT_NO_ROOM;
	ip = (void *)(long)skb->data + link_bytes;
	if ((void *)ip + TUNNEL_BYTES + IP_BYTES > (void *)(long)skb->data_end)
		return DROPPED_UNFINISHED;
	decrement_ttl((void *)ip + TUNNEL_BYTES);
	if (link_bytes)	/* the packet skips the routing of this host, which would decrement the TTL */
		decrement_ttl((void *)ip + TUNNEL_BYTES);
	write_tunnel_header(ip, peer, bytes);
	return 0;
}

/* Whether the Ethernet header that flannel_nexthop stored is valid for a packet. It is not valid for a packet with a
 * mark, because a routing rule for the mark may choose another route. */
static __always_inline int has_header(const struct __sk_buff *skb, const struct peer *peer)
{
	return !skb->mark && peer->period == current_period() && peer->link == settings.underlay_index;
}

/* Whether the underlay was deleted. If the stored header is valid, the underlay existed in this period, and no look-up
 * is necessary. */
static __always_inline int lacks_underlay(const struct __sk_buff *skb, const struct peer *peer)
{
	return !has_header(skb, peer) && is_gone(settings.underlay_index);
}

/* Send an encapsulated packet, which has an Ethernet header, on the underlay. */
static __always_inline int send_to_underlay(struct __sk_buff *skb, const struct peer *peer)
{
	struct ethhdr *ethernet = (void *)(long)skb->data;

	if (has_header(skb, peer) && (void *)(ethernet + 1) <= (void *)(long)skb->data_end) {
		__builtin_memcpy(ethernet, peer->macs, sizeof(peer->macs));
		return bpf_redirect(settings.underlay_index, 0);
	}
	/* This helper looks up the route and the neighbour as the kernel does, and holds the packet until the neighbour
	 * answers ARP. The packet then passes flannel_nexthop. */
	skb->tc_index = LOOKED_UP;
	return bpf_redirect_neigh(settings.underlay_index, NULL, 0, 0);
}

/* Count a failure of encapsulate(), and return the verdict for the packet. */
static __always_inline int fail(int outcome, __u32 bytes)
{
	return count(outcome, bytes, outcome == LEFT_NO_ROOM ? NEXT : DROP);
}

/* The flow cache. */

/* The properties of a packet that the cache compares. */
struct candidate {
	struct flow_key key;
	__u16 bytes;		/* length of the packet, or of each segment with its headers */
	__u8 tos;
	__u8 closes;		/* 1 for TCP with SYN, FIN or RST; such packets never bypass the firewall */
};

/* Fill in `packet` from the headers at `ip`. Return 0 if the packet is neither TCP nor UDP, or if its headers are not
 * readable, and 1 otherwise. */
static __always_inline int describe(struct __sk_buff *skb, const struct iphdr *ip, int is_inbound,
				    struct candidate *packet)
{
	const struct udphdr *udp = (const void *)(ip + 1);
	const struct tcphdr *tcp = (const void *)(ip + 1);

	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return 0;
	packet->key.source = is_inbound ? ip->daddr : ip->saddr;
	packet->key.destination = is_inbound ? ip->saddr : ip->daddr;
	packet->key.source_port = is_inbound ? udp->dest : udp->source;
	packet->key.destination_port = is_inbound ? udp->source : udp->dest;
	packet->key.protocol = ip->protocol;
	packet->bytes = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	packet->closes = 0;
	if (ip->protocol == IPPROTO_UDP)
		return 1;
	if (ip->protocol != IPPROTO_TCP || (void *)(tcp + 1) > (void *)(long)skb->data_end)
		return 0;
	packet->closes = tcp->syn || tcp->fin || tcp->rst;
	if (skb->gso_size)
		packet->bytes = IP_BYTES + tcp->doff * 4 + skb->gso_size;
	return 1;
}

/* Whether a packet is complete and valid, so that neither routing nor connection tracking would drop it. `at` is the
 * offset of its IP header. describe() must have accepted the packet. */
static __always_inline int is_sound(struct __sk_buff *skb, const struct iphdr *ip, __u32 at)
{
	const struct udphdr *udp = (const void *)(ip + 1);
	const struct tcphdr *tcp = (const void *)(ip + 1);
	__u32 bytes;

	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return 0;
	bytes = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || ip->ihl != IP_BYTES / 4 || (ip->frag_off & bpf_htons(FRAGMENT)) || ip->ttl <= 2 ||
	    bytes != skb->len - at || bytes > LONGEST - VXLAN_BYTES || checksum(ip))
		return 0;
	/* Over vxlan, only the checksum of the datagram protects an inner packet without a checksum. The programs send
	 * datagrams without checksum, so they leave such packets to the kernel. */
	if (ip->protocol == IPPROTO_UDP)
		return !skb->gso_size && bpf_ntohs(udp->len) == bytes - IP_BYTES && (udp->check || !settings.is_vxlan);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return 0;
	return tcp->ack && !tcp->urg && tcp->doff >= sizeof(*tcp) / 4 && bytes >= IP_BYTES + tcp->doff * 4U;
}

static __always_inline int is_same_origin(const struct origin *one, const struct origin *other)
{
#pragma unroll
	for (int word = 0; word < 7; word++)
		if (one->words[word] != other->words[word])
			return 0;
	return 1;
}

/* Return the proof of a packet with this token and this origin. Packets of the same flow from different origins are on
 * several processors at the same time, and overwrite each other's token and origin. The proof shows that a decision
 * and an origin are of the same packet. A sender that does not know the token cannot find two origins with the same
 * proof. */
static __always_inline __u16 proof_of(__u16 token, const struct origin *origin)
{
	__u32 key = token * 0x9e3779b1, sum = key;
	__u16 proof;

#pragma unroll
	for (int word = 0; word < 7; word++) {
		sum = (sum ^ origin->words[word]) * key;
		sum ^= sum >> 15;
	}
	proof = sum ^ sum >> 16;
	return proof ?: 1;
}

/* Store the headers of an outbound vxlan frame. The IP header in the packet is aligned to four bytes. The Ethernet
 * header is not, so its first two bytes are copied separately. */
static __always_inline void keep_frame(struct flow *flow, const void *frame)
{
	const __u32 *words = frame + 2;

	((__u16 *)flow->frame)[1] = *(const __u16 *)frame;
#pragma unroll
	for (int word = 0; word < FRAME_BYTES / 4 - 1; word++)
		flow->frame[word + 1] = words[word];
	((__u16 *)flow->frame)[FRAME_BYTES / 2] = *(const __u16 *)(frame + FRAME_BYTES - 2);
}

static __always_inline void write_frame(void *frame, const struct flow *flow)
{
	__u32 *words = frame + 2;

	*(__u16 *)frame = ((const __u16 *)flow->frame)[1];
#pragma unroll
	for (int word = 0; word < FRAME_BYTES / 4 - 1; word++)
		words[word] = flow->frame[word + 1];
	*(__u16 *)(frame + FRAME_BYTES - 2) = ((const __u16 *)flow->frame)[FRAME_BYTES / 2];
}

static __always_inline void forget(struct side *side)
{
	side->passed_at = 0;
	side->token = 0;
}

/* If the packet may bypass the firewall, return its direction of the flow. Otherwise return NULL. If the decision of
 * the firewall about this packet will be valid for the flow, also write a proof into the packet, for open_bypass().
 * `at` is the offset of the IP header. `origin` is the origin of an inbound vxlan packet, and NULL for all other
 * packets. */
static __always_inline struct side *find_bypass(struct __sk_buff *skb, int is_inbound, __u32 at,
						const struct origin *origin, struct flow_key *key, __u64 *time)
{
	struct iphdr *ip = (void *)(long)skb->data + at;
	struct ethhdr *ethernet = (void *)(long)skb->data;
	struct candidate packet = {};
	struct side *side, *opposite;
	struct permit *permit;
	struct flow *flow;
	__u32 zero = 0;
	__u64 now, age;
	__u16 proof;
	int is_same;

	skb->tc_index = 0;
	permit = bpf_map_lookup_elem(&flannel_permit, &zero);
	if (!permit || skb->mark || !describe(skb, ip, is_inbound, &packet))
		return NULL;
	if (!(permit->protocols & (packet.key.protocol == IPPROTO_TCP ? CACHES_TCP : CACHES_UDP)))
		return NULL;
	*key = packet.key;
	flow = bpf_map_lookup_elem(&flannel_flows, key);
	if (packet.closes) {
		if (flow) {
			forget(&flow->outbound);
			forget(&flow->inbound);
		}
		return NULL;
	}
	*time = now = bpf_ktime_get_boot_ns();
	if (now >= permit->until || !is_sound(skb, ip, at))
		return NULL;
	if (!flow) {
		struct flow unknown = {};

		bpf_map_update_elem(&flannel_flows, key, &unknown, BPF_NOEXIST);
		flow = bpf_map_lookup_elem(&flannel_flows, key);
		if (!flow)
			return NULL;
	}
	side = is_inbound ? &flow->inbound : &flow->outbound;
	opposite = is_inbound ? &flow->outbound : &flow->inbound;
	is_same = side->link == skb->ifindex && side->tos == packet.tos &&
		  (is_inbound || is_same_mac(side->mac, ethernet->h_dest)) &&
		  (!origin || is_same_origin(&flow->origin, origin));
	age = now - side->passed_at;
	if (age < FLOW_NS && side->passed_at && side->generation == permit->generation) {
		proof = origin ? proof_of(side->token, origin) : side->token;
		if (!is_same || side->proof != proof)
			return NULL;	/* the decision does not apply to this packet, so the firewall must decide */
		if (packet.bytes <= side->longest &&
		    (age < RENEWAL_NS || now - side->examined_at < RENEWALS_NS))
			return side;
	} else {
		side->passed_at = 0;
	}

	/* The first packet, or a packet after a pause, may change the state of its connection. The firewall may then
	 * decide differently about the opposite direction, so its earlier decision is forgotten. */
	if (now - side->examined_at >= FLOW_NS) {
		forget(opposite);
		side->token = 0;
	}
	if (!side->token || !is_same || side->generation != permit->generation)
		side->token = bpf_get_prandom_u32() | 1;
	side->examined_at = now;
	side->generation = permit->generation;
	side->link = skb->ifindex;
	side->tos = packet.tos;
	if (!is_inbound)
		__builtin_memcpy(side->mac, ethernet->h_dest, ETH_ALEN);
	if (origin)
		flow->origin = *origin;
	skb->tc_index = origin ? proof_of(side->token, origin) : side->token;
	return NULL;
}

/* Let a flow bypass the firewall, if find_bypass() wrote a proof into this packet and the firewall passed the packet
 * unchanged. `bridge` is the source MAC address of an inbound frame, and NULL for an outbound packet. `frame` points to
 * the headers of an outbound vxlan frame, and is NULL for all other packets. */
static __always_inline void open_bypass(struct __sk_buff *skb, const struct iphdr *ip, const __u8 *bridge,
					const void *frame)
{
	struct candidate packet = {};
	__u16 proof = skb->tc_index;
	struct flow *flow;
	struct side *side;
	__u64 now;

	if (!proof)
		return;
	skb->tc_index = 0;
	if (skb->mark || !describe(skb, ip, !!bridge, &packet))
		return;
	flow = bpf_map_lookup_elem(&flannel_flows, &packet.key);
	if (!flow)
		return;
	side = bridge ? &flow->inbound : &flow->outbound;
	if (proof != (bridge && settings.is_vxlan ? proof_of(side->token, &flow->origin) : side->token) ||
	    side->tos != packet.tos)
		return;
	now = bpf_ktime_get_boot_ns();
	if (packet.bytes > side->longest || now - side->passed_at >= RENEWAL_NS)
		side->longest = packet.bytes;
	if (bridge)
		__builtin_memcpy(side->mac, bridge, ETH_ALEN);
	if (frame) {
		side->passed_at = 0;
		keep_frame(flow, frame);
	}
	side->proof = proof;
	side->passed_at = now;
}

/* Return the link to the container with this address, and set `mac` to its MAC address. Return NULL if the container is
 * unknown. */
static __always_inline __u32 *find_port(__be32 address, struct mac **mac)
{
	*mac = bpf_map_lookup_elem(&flannel_macs, &address);
	return *mac ? bpf_map_lookup_elem(&flannel_ports, &address) : NULL;
}

/* Make the headers of a packet readable, up to the TCP or UDP header. `at` is the offset of the IP header. */
static __always_inline void pull_headers(struct __sk_buff *skb, __u32 at)
{
	if (is_short(skb, at + IP_BYTES + sizeof(struct tcphdr)))
		is_short(skb, at + IP_BYTES + sizeof(struct udphdr));
}

/* Deliver a decapsulated packet of a cached flow directly to the container. The packet has an Ethernet header. Return
 * NEXT if the headers are not readable. */
static __always_inline int deliver(struct __sk_buff *skb, const struct side *side, const struct mac *mac,
				   const __u32 *port, __u64 now)
{
	struct ethhdr *ethernet = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	__u32 bytes = skb->len - ETH_HLEN;
	__u64 *direct_until;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return NEXT;
	__builtin_memcpy(ethernet->h_dest, mac->bytes, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, side->mac, ETH_ALEN);
	decrement_ttl(ip);	/* the packet skips the routing of this host */
	count(CACHED_IN, bytes, 0);
	direct_until = bpf_map_lookup_elem(&flannel_direct, port);
	return direct_until && now < *direct_until ? bpf_redirect_peer(*port, 0) : bpf_redirect(*port, 0);
}

/* If the flow of a decapsulated packet is cached, deliver the packet directly to the container. Otherwise return NEXT.
 * The packet has an Ethernet header. */
static __always_inline int deliver_cached(struct __sk_buff *skb)
{
	struct flow_key key;
	struct side *side;
	struct mac *mac;
	__u32 *port;
	__u64 now;

	pull_headers(skb, ETH_HLEN);
	side = find_bypass(skb, 1, ETH_HLEN, NULL, &key, &now);
	if (!side)
		return NEXT;
	port = find_port(key.source, &mac);
	return port ? deliver(skb, side, mac, port, now) : NEXT;
}

#include "vxlan.h"

/* Ingress of the host's end of a container's veth: send a packet of a cached flow directly to the peer. */
SEC("tc")
int flannel_short(struct __sk_buff *skb)
{
	__u32 bytes = skb->len - ETH_HLEN;
	struct flow_key key;
	struct side *side;
	struct peer *peer;
	__u64 now;
	int outcome;

	skb->tc_index = 0;
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return NEXT;
	pull_headers(skb, ETH_HLEN);
	side = find_bypass(skb, 0, ETH_HLEN, NULL, &key, &now);
	if (!side)
		return NEXT;
	if (settings.is_vxlan)
		return send_in_vxlan(skb, (struct flow *)side);
	peer = find_peer(key.destination);
	if (!peer || !(peer->flags & PEER_READS_UNFINISHED) || lacks_underlay(skb, peer))
		return NEXT;
	outcome = encapsulate(skb, peer, ETH_HLEN, bytes);
	if (outcome)
		return fail(outcome, bytes);
	return count(CACHED_OUT, bytes, send_to_underlay(skb, peer));
}

/* Egress of flannel0: encapsulate a packet that the host routed to a peer's subnet, and send it on the underlay. */
SEC("tc")
int flannel_encap(struct __sk_buff *skb)
{
	__u32 bytes = skb->len;
	struct peer *peer;
	struct ethhdr *ethernet;
	struct iphdr *ip;
	int outcome;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_short(skb, IP_BYTES))
		return count(LEFT_NOT_IPV4, bytes, NEXT);
	ip = (void *)(long)skb->data;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return NEXT;
	if (ip->version != 4 || ip->ihl != IP_BYTES / 4)
		return count(LEFT_OPTIONS, bytes, NEXT);
	peer = find_peer(ip->daddr);
	if (!peer)
		return count(LEFT_NO_ROUTE, bytes, NEXT);
	if (!(peer->flags & PEER_READS_UNFINISHED))
		return count(LEFT_UNREADY_PEER, bytes, NEXT);
	/* All fragments of a packet must take the same path. Otherwise the receiver's connection tracking cannot
	 * reassemble the packet. */
	if (ip->frag_off & bpf_htons(FRAGMENT))
		return count(LEFT_FRAGMENT, bytes, NEXT);
	if (ip->ttl <= 1)
		return count(LEFT_EXPIRED, bytes, NEXT);
	/* The kernel cannot segment UDP inside UDP; it can segment TCP inside UDP. */
	if (skb->gso_size && ip->protocol != IPPROTO_TCP)
		return count(LEFT_SEGMENTED, bytes, NEXT);
	if (bytes > LONGEST - TUNNEL_BYTES)
		return count(LEFT_LONG, bytes, NEXT);
	if (lacks_underlay(skb, peer))
		return count(LEFT_NO_DEVICE, bytes, NEXT);
	if (settings.caches_flows)
		open_bypass(skb, ip, NULL, NULL);
	outcome = encapsulate(skb, peer, 0, bytes);
	if (outcome)
		return fail(outcome, bytes);

	/* A packet of a TUN device has no Ethernet header, so the program adds one. */
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return count(DROPPED_UNFINISHED, bytes, DROP);
	ethernet = (void *)(long)skb->data;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return count(DROPPED_UNFINISHED, bytes, DROP);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
	return count(ENCAPSULATED, bytes, send_to_underlay(skb, peer));
}

/* Egress of the underlay: store the Ethernet header that the kernel wrote for send_to_underlay(). */
SEC("tc")
int flannel_nexthop(struct __sk_buff *skb)
{
	struct ethhdr *ethernet;
	struct iphdr *outer, *inner;
	struct peer *peer;

	if (settings.is_vxlan)
		return learn_vxlan_frame(skb);
	if (skb->tc_index != LOOKED_UP)
		return NEXT;
	skb->tc_index = 0;
	if (skb->mark || skb->protocol != bpf_htons(ETH_P_IP) ||
	    is_short(skb, ETH_HLEN + TUNNEL_BYTES + IP_BYTES))
		return NEXT;
	ethernet = (void *)(long)skb->data;
	outer = (void *)(ethernet + 1);
	inner = (void *)outer + TUNNEL_BYTES;
	if ((void *)(inner + 1) > (void *)(long)skb->data_end || ethernet->h_proto != bpf_htons(ETH_P_IP))
		return NEXT;
	/* On an underlay without Ethernet headers, a packet fails the checks above or the check below. */
	peer = find_peer(inner->daddr);
	if (!peer || peer->address != outer->daddr || outer->saddr != settings.address)
		return NEXT;
	peer->period = 0;
	__builtin_memcpy(peer->macs, ethernet, sizeof(peer->macs));
	peer->link = skb->ifindex;
	peer->period = current_period();
	return NEXT;
}

/* Ingress of the underlay: decapsulate the datagram of a peer, and pass the inner packet to flannel0. */
SEC("tc")
int flannel_decap(struct __sk_buff *skb)
{
	__u32 bytes = skb->len - ETH_HLEN - TUNNEL_BYTES;
	struct iphdr *outer, *inner;
	struct udphdr *udp;
	struct peer *peer;
	__u32 outer_bytes, inner_bytes;
	__be32 source;
	int is_segment, verdict;

	if (settings.is_vxlan)
		return receive_from_vxlan(skb);
	if (skb->protocol != bpf_htons(ETH_P_IP) || is_of_others(skb) ||
	    is_short(skb, ETH_HLEN + TUNNEL_BYTES + IP_BYTES))
		return NEXT;
	outer = (void *)(long)skb->data + ETH_HLEN;
	udp = (void *)(outer + 1);
	inner = (void *)(udp + 1);
	if ((void *)(inner + 1) > (void *)(long)skb->data_end)
		return NEXT;
	if (outer->protocol != IPPROTO_UDP || outer->version != 4 || outer->ihl != IP_BYTES / 4 ||
	    outer->daddr != settings.address)
		return NEXT;
	/* Leave a fragment of a datagram to the kernel, which reassembles the datagram for the socket. Only the first
	 * fragment contains the ports. */
	if ((outer->frag_off & bpf_htons(FRAGMENT)) || udp->dest != settings.port)
		return NEXT;

	if (is_gone(settings.device_index))
		return count(LEFT_NO_DEVICE, bytes, NEXT);
	if (inner->version != 4)
		return count(LEFT_NOT_IPV4, bytes, NEXT);
	if (inner->ihl != IP_BYTES / 4)
		return count(LEFT_OPTIONS, bytes, NEXT);
	/* A datagram must contain exactly one packet. The program leaves all others to the forwarder, whose socket
	 * separates datagrams that the kernel coalesced. If the lengths of a packet contradict each other, the kernel
	 * or the forwarder drops it. */
	outer_bytes = bpf_ntohs(outer->tot_len);
	inner_bytes = bpf_ntohs(inner->tot_len);
	if (outer_bytes != inner_bytes + TUNNEL_BYTES || inner_bytes < IP_BYTES ||
	    bpf_ntohs(udp->len) != inner_bytes + sizeof(*udp) || skb->len < ETH_HLEN + outer_bytes ||
	    checksum(outer))
		return count(LEFT_INCONSISTENT, bytes, NEXT);
	/* A packet that the kernel will segment later may be longer than the MTU. The MTU limits each segment. */
	if (inner_bytes > settings.mtu && !skb->gso_size)
		return count(LEFT_LONG, bytes, NEXT);
	peer = find_peer(inner->saddr);
	/* Leave a packet of an unknown sender to the forwarder. It drops the packet if its own table does not contain
	 * the sender either. */
	if (!peer)
		return count(LEFT_STRANGER, bytes, NEXT);
	if (peer->address != outer->saddr)
		return turn_away(DROPPED_IMPOSTOR, outer, inner, bytes);
	if ((inner->daddr & settings.subnet_mask) != settings.subnet)
		return turn_away(DROPPED_NOT_OURS, outer, inner, bytes);
	if (inner->frag_off & bpf_htons(FRAGMENT))
		return count(LEFT_FRAGMENT, bytes, NEXT);
	if (inner->ttl <= 1)
		return count(LEFT_EXPIRED, bytes, NEXT);

	/* After decapsulation, the kernel would assume that the checksum of the inner packet is unfinished. NAT would
	 * then write a wrong checksum. */
	if (has_unfinished_checksum(outer, udp))
		return count(LEFT_UNREADY_PEER, bytes, NEXT);

	/* All packets of a connection must take the same path. Otherwise later packets could overtake earlier ones. */
	is_segment = settings.gro_index && inner->protocol == IPPROTO_TCP && !skb->gso_size;
	source = inner->saddr;
	decrement_ttl(inner);
	if (bpf_skb_adjust_room(skb, -TUNNEL_BYTES, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return count(DROPPED_UNFINISHED, bytes, DROP);
	count(DECAPSULATED, bytes, 0);
	count_from(peer->address, source, bytes + TUNNEL_BYTES);
	if (is_segment && !is_gone(settings.gro_index))
		return bpf_redirect(settings.gro_index, 0);
	if (settings.caches_flows) {
		verdict = deliver_cached(skb);
		if (verdict != NEXT)
			return verdict;
	}
	return bpf_redirect(settings.device_index, BPF_F_INGRESS);
}

/* Ingress of the far end of the veth pair: pass the TCP segments that GRO coalesced to flannel0. The frames still have
 * the destination MAC address of the underlay. The program marks them as frames for this host, because the kernel would
 * drop them otherwise. */
SEC("tc")
int flannel_join(struct __sk_buff *skb)
{
	int verdict;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_gone(settings.device_index) ||
	    bpf_skb_change_type(skb, PACKET_HOST))
		return DROP; /* only flannel_decap sends packets to this veth */
	if (settings.caches_flows) {
		verdict = deliver_cached(skb);
		if (verdict != NEXT)
			return verdict;
	}
	return count(REJOINED, skb->len - ETH_HLEN, bpf_redirect(settings.device_index, BPF_F_INGRESS));
}

/* Egress of the bridge: send packets from the tunnel directly to the container's veth.
 *
 * At this hook, routing, netfilter and the look-up of the neighbour are finished. The kernel still treats a packet that
 * was decapsulated as a tunnel packet. A bridge has no offloads for tunnel packets, so the kernel would segment each of
 * them in software. A veth has these offloads.
 */
SEC("tc")
int flannel_hop(struct __sk_buff *skb)
{
	struct ethhdr *ethernet;
	struct iphdr *ip;
	struct mac *mac;
	__u32 *port;

	if (skb->ingress_ifindex != settings.device_index || skb->protocol != bpf_htons(ETH_P_IP) ||
	    is_short(skb, ETH_HLEN + IP_BYTES))
		return NEXT;
	ethernet = (void *)(long)skb->data;
	ip = (void *)(ethernet + 1);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return NEXT;
	port = find_port(ip->daddr, &mac);
	if (!port || !is_same_mac(ethernet->h_dest, mac->bytes))
		return NEXT;
	if (settings.caches_flows)
		open_bypass(skb, ip, ethernet->h_source, NULL);
	if (settings.is_vxlan)
		return NEXT;
	return count(DELIVERED, skb->len - ETH_HLEN, bpf_redirect(*port, 0));
}

/* The programs call no helper that requires a program under the GPL. */
char terms[] SEC("license") = "Apache-2.0";
