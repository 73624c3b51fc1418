/* SPDX-License-Identifier: Apache-2.0
 *
 * The udp backend in the kernel: one inner IPv4 packet is one UDP datagram, without anything between.
 *
 *	container -> bridge -> routing, netfilter -> flannel0 [flannel_encap] -> underlay
 *	underlay [flannel_decap] -> flannel0 -> routing, netfilter -> bridge [flannel_hop] -> container
 *
 * and where the underlay is a network card, on the way to flannel0
 *
 *	underlay [flannel_decap] -> one end of a veth, GRO, the other [flannel_join] -> flannel0
 *
 * A program takes a packet whole or not at all. Whatever it does not understand goes on as if it were not
 * there: out of flannel0 into user space, or up to the socket of user space. There the packet is relayed, or
 * its sender gets the ICMP error that it deserves.
 *
 * They are attached at tcx, or as classifiers of a clsact qdisc with direct action: NEXT is what both call
 * "go on".
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

#define IP_OCTETS 20
#define TUNNEL_OCTETS 28	/* an IPv4 and a UDP header */
#define LONGEST 65535		/* what an IPv4 header can say */
#define OUTER_TTL 64
#define FRAGMENT 0x3fff		/* more fragments, or an offset */
#define DO_NOT_FRAGMENT 0x4000
#define VLAN 0x0fff		/* of a tag; 0 is that of none */

static __always_inline int count(enum outcome outcome, __u32 octets, int verdict)
{
	__u32 key = outcome;
	struct count *counted = bpf_map_lookup_elem(&flannel_counts, &key);

	if (counted) {
		counted->packets++;
		counted->octets += octets;
	}
	return verdict;
}

/* The guard's drop: counted, and remembered by whom it was. */
static __always_inline int turn_away(enum outcome outcome, const struct iphdr *outer, const struct iphdr *inner,
				     __u32 octets)
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
	return count(outcome, octets, DROP);
}

static __always_inline struct peer *find_peer(__be32 address)
{
	struct subnet key = { .prefix_length = 32, .base = address };

	return bpf_map_lookup_elem(&flannel_peers, &key);
}

/* Make the first octets of a packet readable, which may lie in pages of their own. Whoever reads them still
 * compares with data_end, as the verifier asks. */
static __always_inline int is_short(struct __sk_buff *skb, __u32 octets)
{
	if ((void *)(long)skb->data + octets <= (void *)(long)skb->data_end)
		return 0;
	return bpf_skb_pull_data(skb, octets);
}

static __always_inline int is_gone(__u32 device)
{
	return !bpf_map_lookup_elem(&flannel_devices, &device);
}

/* A network card at which somebody listens brings in others' frames too. */
static __always_inline int is_of_others(const struct __sk_buff *skb)
{
	return skb->pkt_type != PACKET_HOST || (skb->vlan_present && (skb->vlan_tci & VLAN));
}

static __always_inline int is_same_mac(const void *one, const void *other)
{
	const __u16 *a = one, *b = other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

/* One hop less to go; the checksum follows by RFC 1624 (TTL is the upper octet of its word). */
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
	for (int word = 0; word < IP_OCTETS / 2; word++)
		sum += words[word];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The headers that the socket of user space would write. Without UDP checksum (RFC 768): each inner packet has
 * its own, and hardware can finish that one only. */
static __always_inline void write_tunnel_header(struct iphdr *ip, const struct peer *peer, __u32 inner_octets)
{
	struct udphdr *udp = (void *)(ip + 1);

	ip->version = 4;
	ip->ihl = IP_OCTETS / 4;
	ip->tos = 0;
	ip->tot_len = bpf_htons(inner_octets + TUNNEL_OCTETS);
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
	udp->len = bpf_htons(inner_octets + sizeof(*udp));
	udp->check = 0;
}

/* Egress of flannel0: what the host routed to a peer's subnet leaves on the underlay, encapsulated. */
SEC("tc")
int flannel_encap(struct __sk_buff *skb)
{
	__u32 octets = skb->len;
	struct peer *peer, to;
	struct ethhdr *ethernet;
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_short(skb, IP_OCTETS))
		return count(LEFT_NOT_IPV4, octets, NEXT);
	ip = (void *)(long)skb->data;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return NEXT;
	if (ip->version != 4 || ip->ihl != IP_OCTETS / 4)
		return count(LEFT_OPTIONS, octets, NEXT);
	peer = find_peer(ip->daddr);
	if (!peer)
		return count(LEFT_NO_ROUTE, octets, NEXT);
	if (!(peer->flags & PEER_READS_UNFINISHED))
		return count(LEFT_UNREADY_PEER, octets, NEXT);
	/* All fragments of a packet take one way, or the receiver's connection tracking never sees it whole. */
	if (ip->frag_off & bpf_htons(FRAGMENT))
		return count(LEFT_FRAGMENT, octets, NEXT);
	if (ip->ttl <= 1)
		return count(LEFT_EXPIRED, octets, NEXT);
	/* UDP that is to be segmented cannot be, once it is inside of UDP; TCP can. */
	if (skb->gso_size && ip->protocol != IPPROTO_TCP)
		return count(LEFT_SEGMENTED, octets, NEXT);
	if (octets > LONGEST - TUNNEL_OCTETS)
		return count(LEFT_LONG, octets, NEXT);
	if (is_gone(settings.underlay_index))
		return count(LEFT_NO_DEVICE, octets, NEXT);
	to = *peer;

	/* FIXED_GSO: a segment stays as long as it was, as flannel0's MTU leaves room for the tunnel's header. */
	if (bpf_skb_adjust_room(skb, TUNNEL_OCTETS, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP))
		return count(LEFT_NO_ROOM, octets, NEXT);
	ip = (void *)(long)skb->data;
	if ((void *)ip + TUNNEL_OCTETS + IP_OCTETS > (void *)(long)skb->data_end)
		return count(DROPPED_UNFINISHED, octets, DROP);
	decrement_ttl((void *)ip + TUNNEL_OCTETS);
	write_tunnel_header(ip, &to, octets);

	/* A packet of a TUN device has no Ethernet header; the underlay's is filled in by redirect_neigh(), which
	 * looks route and neighbour up like the kernel does, and waits for an answer to its ARP. */
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return count(DROPPED_UNFINISHED, octets, DROP);
	ethernet = (void *)(long)skb->data;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return count(DROPPED_UNFINISHED, octets, DROP);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
	return count(ENCAPSULATED, octets, bpf_redirect_neigh(settings.underlay_index, NULL, 0, 0));
}

/* Ingress of the underlay: a peer's datagram becomes a packet that comes out of flannel0. */
SEC("tc")
int flannel_decap(struct __sk_buff *skb)
{
	__u32 octets = skb->len - ETH_HLEN - TUNNEL_OCTETS;
	struct iphdr *outer, *inner;
	struct udphdr *udp;
	struct peer *peer;
	__u32 outer_octets, inner_octets;
	int is_segment;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_of_others(skb) ||
	    is_short(skb, ETH_HLEN + TUNNEL_OCTETS + IP_OCTETS))
		return NEXT;
	outer = (void *)(long)skb->data + ETH_HLEN;
	udp = (void *)(outer + 1);
	inner = (void *)(udp + 1);
	if ((void *)(inner + 1) > (void *)(long)skb->data_end)
		return NEXT;
	if (outer->protocol != IPPROTO_UDP || outer->version != 4 || outer->ihl != IP_OCTETS / 4 ||
	    outer->daddr != settings.address)
		return NEXT;
	/* Of an outer fragment only the first has ports; the kernel puts it together for the socket. */
	if ((outer->frag_off & bpf_htons(FRAGMENT)) || udp->dest != settings.port)
		return NEXT;

	if (is_gone(settings.device_index))
		return count(LEFT_NO_DEVICE, octets, NEXT);
	if (inner->version != 4)
		return count(LEFT_NOT_IPV4, octets, NEXT);
	if (inner->ihl != IP_OCTETS / 4)
		return count(LEFT_OPTIONS, octets, NEXT);
	/* Exactly one packet: several that the kernel joined for the socket are taken apart there. The kernel and
	 * the forwarder drop the packets that contradict themselves. */
	outer_octets = bpf_ntohs(outer->tot_len);
	inner_octets = bpf_ntohs(inner->tot_len);
	if (outer_octets != inner_octets + TUNNEL_OCTETS || inner_octets < IP_OCTETS ||
	    bpf_ntohs(udp->len) != inner_octets + sizeof(*udp) || skb->len < ETH_HLEN + outer_octets ||
	    checksum(outer))
		return count(LEFT_INCONSISTENT, octets, NEXT);
	/* A packet that is to be segmented is as long as its segments together. */
	if (inner_octets > settings.mtu && !skb->gso_size)
		return count(LEFT_LONG, octets, NEXT);
	peer = find_peer(inner->saddr);
	/* Nobody of the table; the forwarder has one of its own, and drops whom that does not have either. */
	if (!peer)
		return count(LEFT_STRANGER, octets, NEXT);
	if (peer->address != outer->saddr)
		return turn_away(DROPPED_IMPOSTOR, outer, inner, octets);
	if ((inner->daddr & settings.subnet_mask) != settings.subnet)
		return turn_away(DROPPED_NOT_OURS, outer, inner, octets);
	if (inner->frag_off & bpf_htons(FRAGMENT))
		return count(LEFT_FRAGMENT, octets, NEXT);
	if (inner->ttl <= 1)
		return count(LEFT_EXPIRED, octets, NEXT);

	/* All of a connection takes one way, or its packets would overtake each other. */
	is_segment = settings.gro_index && inner->protocol == IPPROTO_TCP && !skb->gso_size;
	decrement_ttl(inner);
	if (bpf_skb_adjust_room(skb, -TUNNEL_OCTETS, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return count(DROPPED_UNFINISHED, octets, DROP);
	if (is_segment && !is_gone(settings.gro_index))
		return count(DECAPSULATED, octets, bpf_redirect(settings.gro_index, 0));
	return count(DECAPSULATED, octets, bpf_redirect(settings.device_index, BPF_F_INGRESS));
}

/* Ingress of the far end of the veth pair with GRO: TCP segments from a network card, coalesced there. The frames
 * still have the MAC address of the underlay, so the kernel would take them for frames of another host. */
SEC("tc")
int flannel_join(struct __sk_buff *skb)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) || is_gone(settings.device_index) ||
	    bpf_skb_change_type(skb, PACKET_HOST))
		return DROP; /* nobody else sends here */
	return count(REJOINED, skb->len - ETH_HLEN, bpf_redirect(settings.device_index, BPF_F_INGRESS));
}

/* Egress of the bridge: what came through the tunnel goes straight into the container's veth.
 *
 * Routing, netfilter and the neighbour's address are done. A packet that was decapsulated here still counts as
 * one that a tunnel carries, and a bridge cannot pass such packets on as they are: it would cut each into
 * segments, in software. A veth can.
 */
SEC("tc")
int flannel_hop(struct __sk_buff *skb)
{
	struct ethhdr *ethernet;
	struct iphdr *ip;
	struct mac *mac;
	__u32 *port;

	if (skb->ingress_ifindex != settings.device_index || skb->protocol != bpf_htons(ETH_P_IP) ||
	    is_short(skb, ETH_HLEN + IP_OCTETS))
		return NEXT;
	ethernet = (void *)(long)skb->data;
	ip = (void *)(ethernet + 1);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return NEXT;
	mac = bpf_map_lookup_elem(&flannel_macs, &ip->daddr);
	port = bpf_map_lookup_elem(&flannel_ports, &ip->daddr);
	if (!mac || !port || !is_same_mac(ethernet->h_dest, mac->octets))
		return NEXT;
	return count(DELIVERED, skb->len - ETH_HLEN, bpf_redirect(*port, 0));
}

/* No helper used here is reserved for programs under the GPL. */
char terms[] SEC("license") = "Apache-2.0";
