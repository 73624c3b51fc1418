/* SPDX-License-Identifier: Apache-2.0
 *
 * Mode flow over a vxlan device of the kernel. The kernel carries all packets whose flow is not cached:
 *
 *	container's veth [flannel_short] -> bridge -> routing, netfilter -> flannel.1 -> underlay [flannel_nexthop]
 *	underlay [flannel_decap] -> vxlan -> flannel.1 -> routing, netfilter -> bridge [flannel_hop] -> container
 *
 * A packet on this path shows how the kernel handles its flow. flannel_nexthop stores the headers from the kernel.
 * flannel_decap stores the origin of the packet. For the next second, the packets of the flow take these paths:
 *
 *	container's veth [flannel_short] -> underlay
 *	underlay [flannel_decap] -> container's veth
 *
 * A sent packet gets the stored headers, with its own lengths and identification, and without a UDP checksum. RFC 7348
 * (section 4.1) recommends this. A received packet must have the stored origin. Other packets pass the tunnel guard.
 */
#pragma once

#define CONGESTED 3		/* value of the ECN bits if the packet passed a congested router */
#define ECN 3			/* the bits of the TOS byte that contain the ECN value */
#define INNER_AT (ETH_HLEN + VXLAN_BYTES)	/* offset of the inner IP header */

static __always_inline struct iphdr *outer_of(struct __sk_buff *skb)
{
	return (void *)(long)skb->data + ETH_HLEN;
}

/* Whether a datagram contains an IPv4 packet of the VXLAN network of this tunnel. All headers must be readable. */
static __always_inline int is_of_vxlan(const struct iphdr *outer)
{
	const struct udphdr *udp = (const void *)(outer + 1);
	const __be32 *vxlan = (const void *)(udp + 1);
	const struct ethhdr *inner = (const void *)(vxlan + 2);

	return outer->version == 4 && outer->ihl == IP_BYTES / 4 && outer->protocol == IPPROTO_UDP &&
	       !(outer->frag_off & bpf_htons(FRAGMENT)) && udp->dest == settings.port && vxlan[1] == settings.vni &&
	       inner->h_proto == bpf_htons(ETH_P_IP);
}

/* Ingress of a container's veth: send a packet of a cached flow with the headers of an earlier packet. */
static __always_inline int send_in_vxlan(struct __sk_buff *skb, struct flow *flow)
{
	__u32 bytes = skb->len - ETH_HLEN, segments = skb->gso_segs;
	struct udphdr *udp;
	struct iphdr *ip;

	/* If the kernel must segment the packet, these flags let it copy the inner Ethernet header to each segment. */
	if (bpf_skb_adjust_room(skb, VXLAN_BYTES, BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
				BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
				BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN)))
		return fail(LEFT_NO_ROOM, bytes);
	ip = outer_of(skb);
	if ((void *)ip + VXLAN_BYTES + IP_BYTES > (void *)(long)skb->data_end)
		return fail(DROPPED_UNFINISHED, bytes);
	decrement_ttl((void *)ip + VXLAN_BYTES);	/* the packet skips the routing of this host */
	write_frame((void *)ip - ETH_HLEN, flow);
	udp = (void *)(ip + 1);
	ip->tot_len = bpf_htons(bytes + VXLAN_BYTES);
	ip->check = 0;
	ip->check = checksum(ip);
	udp->len = bpf_htons(bytes + VXLAN_BYTES - IP_BYTES);
	udp->check = 0;
	/* Each segment has the next identification, so that the receiver can coalesce the segments. */
	((struct iphdr *)((void *)flow->frame + 2 + ETH_HLEN))->id = bpf_htons(bpf_ntohs(ip->id) + (segments ?: 1));
	return count(CACHED_OUT, bytes, bpf_redirect(settings.underlay_index, 0));
}

/* Egress of the underlay: store the headers of a packet that passed the firewall. */
static __always_inline int learn_vxlan_frame(struct __sk_buff *skb)
{
	struct iphdr *ip;

	if (!skb->tc_index || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return NEXT;
	pull_headers(skb, INNER_AT);
	ip = outer_of(skb);
	if ((void *)ip + VXLAN_BYTES + IP_BYTES > (void *)(long)skb->data_end || !is_of_vxlan(ip))
		return NEXT;
	open_bypass(skb, (void *)ip + VXLAN_BYTES, NULL, (void *)ip - ETH_HLEN);
	return NEXT;
}

/* Ingress of the underlay: deliver a packet of a cached flow. Leave all other packets to the vxlan device of the
 * kernel. */
static __always_inline int receive_from_vxlan(struct __sk_buff *skb)
{
	__u32 bytes = skb->len - ETH_HLEN;
	struct origin origin;
	struct iphdr *ip;
	struct udphdr *udp;
	struct flow_key key;
	struct side *side;
	struct mac *mac;
	__u32 *port, *words;
	__u64 now;

	if (skb->protocol != bpf_htons(ETH_P_IP) || is_of_others(skb) || is_short(skb, INNER_AT + IP_BYTES))
		return NEXT;
	ip = outer_of(skb);
	if ((void *)ip + VXLAN_BYTES + IP_BYTES > (void *)(long)skb->data_end || !is_of_vxlan(ip))
		return NEXT;
	skb->tc_index = 0;
	pull_headers(skb, INNER_AT);
	ip = outer_of(skb);
	if ((void *)ip + VXLAN_BYTES + IP_BYTES > (void *)(long)skb->data_end)
		return NEXT;
	udp = (void *)(ip + 1);
	/* Leave a packet from a congested router to the kernel, which copies the congestion mark to the inner packet or
	 * drops it. */
	if (ip->daddr != settings.address || (ip->tos & ECN) == CONGESTED ||
	    bpf_ntohs(ip->tot_len) != bytes || bpf_ntohs(udp->len) != bytes - IP_BYTES || checksum(ip))
		return NEXT;
	words = (void *)ip;
	origin.words[0] = ip->saddr;
	origin.words[1] = ip->daddr;
#pragma unroll
	for (int word = 2; word < 7; word++)
		origin.words[word] = words[word + 5];
	side = find_bypass(skb, 1, INNER_AT, &origin, &key, &now);
	if (!side)
		return NEXT;
	port = find_port(key.source, &mac);
	if (!port)
		return NEXT;
	if (bpf_skb_adjust_room(skb, -VXLAN_BYTES, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return count(DROPPED_UNFINISHED, skb->len, DROP);
	count(DECAPSULATED, skb->len - ETH_HLEN, 0);
	count_from(origin.words[0], key.destination, bytes);
	return deliver(skb, side, mac, port, now);
}
