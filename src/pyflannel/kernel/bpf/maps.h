/* SPDX-License-Identifier: Apache-2.0
 *
 * The data that the programs share with each other and with layout.py, which must be changed together with this file:
 * the settings that are written into a program before it is loaded, and the maps.
 *
 * Addresses and ports are in network byte order, and all other values in the byte order of the host.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The settings of one program. They are read-only data: for other settings, flanneld loads a new program. */
struct settings {
	__u8 build[8];		/* digest of this object, which distinguishes the programs of versions */
	char device[16];	/* name that the daemon of the program claims */
	__u32 device_index;	/* of the TUN device or the vxlan device */
	__u32 underlay_index;
	__be32 address;		/* of this host on the underlay */
	__be32 subnet;		/* of this host on the overlay */
	__be32 subnet_mask;
	__be16 port;		/* destination of the peers' datagrams, and source of this host's datagrams */
	__u16 mtu;		/* of the TUN device; in the byte order of the host */
	__u32 gro_index;	/* veth on whose other end GRO coalesces TCP segments; 0 for none */
	__u32 caches_flows;	/* 1 in mode flow */
	__u32 is_vxlan;		/* 1 if the tunnel is a vxlan device of the kernel */
	__be32 vni;		/* as in the header: the upper 24 bits */
};

/* The settings are volatile, otherwise the compiler would use the zeroes below as the values. They have a separate
 * section, so that no other read-only data precedes them. */
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
	__u8 flags;		/* without PEER_READS_UNFINISHED, user space carries the packets to the peer */
	__u8 padding;
	__u64 period;		/* in which the header was kept; it is valid until the end of the period */
	__u32 link;		/* of the header */
	__u8 macs[12];		/* destination and source */
};

/* The peer of each inner address: packets to the address are sent to this peer, and accepted only from it. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct subnet);
	__type(value, struct peer);
} flannel_peers SEC(".maps");

struct mac {
	__u8 bytes[6];
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

/* The host's end of the container's veth. The map is a map of devices, because the kernel removes an entry when its
 * device is deleted. Therefore, if no daemon runs, no packet is lost to a new container with the address and the MAC
 * address of a deleted container. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __u32);
} flannel_ports SEC(".maps");

/* The devices that programs send to, by their indexes. It is a map of devices for the same reason: if the device of a
 * program was deleted, the program leaves packets to the kernel. */
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
	__u16 longest;		/* bytes of the longest packet, or segment, that has passed */
	__u8 tos;
	__u8 padding;
	__u8 mac[6];		/* of the frame; outbound the destination, inbound the source, which is the bridge */
	__u8 reserve[4];
};

/* The sender of a datagram of vxlan, and its network: the addresses, the VXLAN header and the inner MAC addresses. */
struct origin {
	__u32 words[7];
};

#define FRAME_BYTES 64		/* the headers of a frame of vxlan before the inner IP header */

struct flow {
	struct side outbound;	/* from the container */
	struct side inbound;
	/* only for vxlan */
	struct origin origin;	/* of inbound packets */
	__u32 frame[FRAME_BYTES / 4 + 1]; /* the headers of an outbound packet, after two bytes of padding */
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

/* The results of packets, in the order of layout.py. */
enum outcome {
	/* carried */
	ENCAPSULATED,
	DECAPSULATED,
	DELIVERED,
	REJOINED,
	CACHED_OUT,
	CACHED_IN,
	/* left to user space, or to the kernel's usual path */
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
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, __u32);
	__type(value, struct count);
} flannel_counts SEC(".maps");

/* The sender of packets that the guard dropped, and their number. */
struct stranger {
	__be32 address;		/* on the underlay: source of the outer header */
	__u32 outcome;
};

struct sighting {
	__u64 packets;
	__u64 seen_at;		/* the latest, in nanoseconds of CLOCK_BOOTTIME */
	__be32 source;		/* its inner addresses */
	__be32 destination;
};

/* Addresses can be forged, so the number of senders is unlimited: the kernel removes the least recent sender. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct stranger);
	__type(value, struct sighting);
} flannel_dropped SEC(".maps");
