/* SPDX-License-Identifier: Apache-2.0
 *
 * What the programs share with each other and with layout.py, which must be changed together with it: the
 * settings that are written into a program before it is loaded, and the maps.
 *
 * Addresses and ports are in network order, everything else is in the host's.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* One program has one: it is read-only data, so a change of it is a new program in the place of the old. */
struct settings {
	__u8 build[8];		/* of this object, so that a program can be told from that of another version */
	char device[16];	/* the TUN device's name: whose program this is */
	__u32 device_index;
	__u32 underlay_index;
	__be32 address;		/* ours on the underlay */
	__be32 subnet;		/* ours on the overlay */
	__be32 subnet_mask;
	__be16 port;		/* where our peers' datagrams arrive, and ours come from */
	__u16 mtu;		/* of the TUN device; in the host's order */
	__u32 gro_index;	/* veth on whose other end GRO coalesces TCP segments; 0 for none */
	__u32 caches_flows;	/* 1 in mode flow */
};

/* Volatile, or the compiler would take the zeroes below for the values. A section of its own, so that nothing
 * else the compiler puts among read-only data comes before it. */
SEC(".rodata.settings") const volatile struct settings settings = {};

struct subnet {
	__u32 prefix_length;
	__be32 base;
};

enum { PEER_READS_UNFINISHED = 1 };

/* The daemon writes the first four fields, and zeroes into the others. There the programs keep the Ethernet header of
 * the latest packet to the peer, so that not every packet needs a look-up of its route and its neighbour. */
struct peer {
	__be32 address;
	__be16 port;
	__u8 flags;		/* without PEER_READS_UNFINISHED its packets go through user space */
	__u8 padding;
	__u64 period;		/* in which the header was kept; it is valid until the end of the period */
	__u32 link;		/* of the header */
	__u8 macs[12];		/* destination and source */
};

/* Who has an inner address: where packets to it go, and from whom packets with it are taken. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct subnet);
	__type(value, struct peer);
} flannel_peers SEC(".maps");

struct mac {
	__u8 octets[6];
	__u8 padding[2];
};

/* The MAC address of a container of this host. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, struct mac);
} flannel_macs SEC(".maps");

/* The host's end of that container's veth. A map of devices, for one property: the kernel itself takes an
 * entry out when its device goes. So a container that starts while no daemon runs, with the address and the
 * MAC of one that ended, is not sent into nowhere. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __u32);
} flannel_ports SEC(".maps");

/* The devices that programs send to, by their own indexes. A map of devices for the same property: a program
 * that outlived its device leaves packets to whoever comes after it. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} flannel_devices SEC(".maps");

/* The flow cache. A flow is a TCP or UDP connection between a container and a peer's container, by its addresses and
 * ports as the container sends them. */
struct flow_key {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

/* One direction of a flow. It may bypass the firewall for a second after a packet of it passed the firewall
 * unchanged. The packet proves that with `token`, which it carries in its tc_index. */
struct side {
	__u64 passed_at;	/* 0 if no packet has passed */
	__u64 examined_at;	/* when a packet last went to the firewall */
	__u32 generation;	/* of the permit under which that was */
	__u32 link;		/* where its packets arrive */
	__u16 token;
	__u16 longest;		/* octets of the longest packet, or segment, that has passed */
	__u8 tos;
	__u8 padding;
	__u8 mac[6];		/* of the frame; outbound the destination, inbound the source, which is the bridge */
	__u8 reserve[4];
};

struct flow {
	struct side outbound;	/* from the container */
	struct side inbound;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flannel_flows SEC(".maps");

enum { CACHES_UDP = 1, CACHES_TCP = 2 };

/* Whether flows may be cached. The daemon renews it while each rule of the firewall decides by the flow alone.
 * Times are nanoseconds of CLOCK_BOOTTIME. */
struct permit {
	__u64 until;
	__u32 generation;	/* flows of another generation are not valid */
	__u32 protocols;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct permit);
} flannel_permit SEC(".maps");

/* Veths that packets of cached flows skip on the way into the container, by index: until when, in nanoseconds of
 * CLOCK_BOOTTIME. The daemon renews an entry while the veth's other end is in another namespace, and it has no queueing
 * discipline. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} flannel_direct SEC(".maps");

/* What became of packets; the order is that of layout.py. */
enum outcome {
	/* carried */
	ENCAPSULATED,
	DECAPSULATED,
	DELIVERED,
	REJOINED,
	CACHED_OUT,
	CACHED_IN,
	/* left to user space, or to the kernel's ordinary way */
	LEFT_NOT_IPV4,
	LEFT_OPTIONS,
	LEFT_FRAGMENT,
	LEFT_EXPIRED,
	LEFT_SEGMENTED,
	LEFT_LONG,
	LEFT_NO_ROUTE,
	LEFT_UNREADY_PEER,
	LEFT_INCONSISTENT,
	LEFT_NO_ROOM,
	LEFT_NO_DEVICE,
	LEFT_STRANGER,
	/* dropped */
	DROPPED_IMPOSTOR,
	DROPPED_NOT_OURS,
	DROPPED_UNFINISHED,
	OUTCOMES
};

struct count {
	__u64 packets;
	__u64 octets;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, struct count);
} flannel_counts SEC(".maps");

/* Who sent what the guard dropped, and how much. */
struct stranger {
	__be32 address;		/* on the underlay, as the outer header says */
	__u32 outcome;
};

struct sighting {
	__u64 packets;
	__u64 seen_at;		/* the latest, in nanoseconds of CLOCK_BOOTTIME */
	__be32 source;		/* its inner addresses */
	__be32 destination;
};

/* As an address is easily forged there may be any number: the kernel forgets whom it saw least recently. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct stranger);
	__type(value, struct sighting);
} flannel_dropped SEC(".maps");
