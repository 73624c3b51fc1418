/* SPDX-License-Identifier: Apache-2.0
 *
 * The settings and the maps of the eBPF programs. flanneld writes the settings into a program before it loads the
 * program. The programs and flanneld share the maps. layout.py describes the same data for flanneld: if you change this
 * file, also change layout.py.
 *
 * Addresses and ports are in network byte order, and all other values in the byte order of the host.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The settings of one program. They are read-only data. If a setting changes, flanneld loads a new program. */
struct settings {
	__u8 build[8];		/* digest of the compiled object, which distinguishes versions of the programs */
	char device[16];	/* name that the flanneld of this program claims */
	__u32 device_index;	/* index of the TUN device or the vxlan device */
	__u32 underlay_index;
	__be32 address;		/* address of this host on the underlay */
	__be32 subnet;		/* subnet of this host on the overlay */
	__be32 subnet_mask;
	__be16 port;		/* destination port of received datagrams, and source port of sent datagrams */
	__u16 mtu;		/* MTU of the TUN device; in the byte order of the host */
	__u32 gro_index;	/* near end of the veth pair whose far end coalesces TCP segments; 0 for none */
	__u32 caches_flows;	/* 1 in mode flow, 0 otherwise */
	__u32 is_vxlan;		/* 1 if the tunnel is a vxlan device of the kernel, 0 otherwise */
	__be32 vni;		/* VNI in the upper 24 bits, as in the VXLAN header */
};

/* The settings are volatile. Otherwise the compiler would use the zeroes below as their values. They have a separate
 * section, so that no other read-only data precedes them. */
SEC(".rodata.settings") const volatile struct settings settings = {};

struct subnet {
	__u32 prefix_length;
	__be32 base;
};

enum { PEER_READS_UNFINISHED = 1 };

/* A peer, and the Ethernet header of the latest packet to it. flanneld writes the first four fields, and sets the
 * others to zero. The programs store the Ethernet header in the other fields, so that not every packet needs a look-up
 * of its route and its neighbour. */
struct peer {
	__be32 address;
	__be16 port;
	__u8 flags;		/* without PEER_READS_UNFINISHED, the forwarder carries the packets to the peer */
	__u8 padding;
	__u64 period;		/* period in which the header was stored, and until whose end it is valid */
	__u32 link;		/* index of the link on which the header is valid */
	__u8 macs[12];		/* the MAC addresses in the header: destination, then source */
};

/* The peer of each subnet. The programs send packets for the subnet to this peer, and accept packets from the subnet
 * only from this peer. */
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

/* The MAC addresses of the containers of this host, by the IPv4 address of the container. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, struct mac);
} flannel_macs SEC(".maps");

/* The host's end of each container's veth, by the IPv4 address of the container. In a map of devices, the kernel
 * removes an entry when its device is deleted. This is necessary while flanneld does not run: a new container may get
 * the IPv4 address and the MAC address of a deleted container. The packets for the new container must not be lost. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __u32);
} flannel_ports SEC(".maps");

/* The devices on which the programs send, by index. In a map of devices, the kernel removes an entry when its device is
 * deleted. The programs then leave the packets to the kernel. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u32);
} flannel_devices SEC(".maps");

/* A flow: a TCP connection or a UDP exchange between a container of this host and a container of a peer. The source is
 * the container of this host, in both directions. */
struct flow_key {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

/* One direction of a flow. Its packets may bypass the firewall for a second after one of them passed the firewall
 * unchanged. That packet has the same proof in its tc_index before and after the firewall. The proof is the value of
 * `token`. For an inbound vxlan packet, the proof also depends on the origin of the packet. */
struct side {
	__u64 passed_at;	/* when a packet last passed the firewall unchanged; 0 for never */
	__u64 examined_at;	/* when a packet was last sent to the firewall */
	__u32 generation;	/* generation of the permit at that time */
	__u32 link;		/* index of the link on which the packets arrive */
	__u16 token;
	__u16 longest;		/* length in bytes of the longest packet or segment that passed the firewall */
	__u8 tos;
	__u8 padding;
	__u8 mac[6];		/* outbound: the destination of the frames; inbound: the source, which is the bridge */
	__u16 proof;		/* proof of the packet that passed */
	__u8 reserve[2];
};

/* The origin of a vxlan datagram: the outer addresses, the VXLAN header and the inner MAC addresses. */
struct origin {
	__u32 words[7];
};

#define FRAME_BYTES 64		/* length of all headers of a vxlan frame before the inner IP header */

struct flow {
	struct side outbound;	/* from the container */
	struct side inbound;	/* to the container */
	/* The other fields are used only for vxlan. */
	struct origin origin;	/* origin of inbound packets */
	__u32 frame[FRAME_BYTES / 4 + 1]; /* two bytes of padding, then the headers of outbound frames */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flannel_flows SEC(".maps");

enum { CACHES_UDP = 1, CACHES_TCP = 2 };

/* The permit to cache flows. flanneld renews the permit as long as each rule of the firewall decides only by the flow
 * of a packet. */
struct permit {
	__u64 until;		/* expiry, in nanoseconds of CLOCK_BOOTTIME */
	__u32 generation;	/* cached flows of another generation are not valid */
	__u32 protocols;	/* CACHES_UDP and CACHES_TCP */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct permit);
} flannel_permit SEC(".maps");

/* The veths that packets of cached flows may skip: such a packet arrives directly at the container's end. The key is
 * the index of the host's end, and the value is the expiry in nanoseconds of CLOCK_BOOTTIME. flanneld renews an entry
 * as long as the container's end is in another namespace and the veth has no queueing discipline. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} flannel_direct SEC(".maps");

/* The result of the work on a packet. The order must be the order in layout.py. */
enum outcome {
	/* The program carried the packet. */
	ENCAPSULATED,
	DECAPSULATED,
	DELIVERED,
	REJOINED,
	CACHED_OUT,
	CACHED_IN,
	/* The program left the packet to the forwarder, or to the usual path of the kernel. */
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
	/* The program dropped the packet. */
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

/* The origin of received datagrams: the source address of the outer header, and the inner source address without the
 * bits after the prefix length of this host's subnet. */
struct sender {
	__be32 address;
	__be32 subnet;
};

/* The bytes of the datagrams that the programs decapsulated, by their sender. The tunnel guard counts all other
 * datagrams. If the map is full, the kernel removes the least recently used entry. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct sender);
	__type(value, __u64);
} flannel_bytes SEC(".maps");

/* A sender of packets that the tunnel guard dropped, and the reason. */
struct stranger {
	__be32 address;		/* source address of the outer header */
	__u32 outcome;
};

struct sighting {
	__u64 packets;
	__u64 seen_at;		/* when the latest packet arrived, in nanoseconds of CLOCK_BOOTTIME */
	__be32 source;		/* inner source address of the latest packet */
	__be32 destination;	/* inner destination address of the latest packet */
};

/* The senders that the tunnel guard stopped. A sender can forge addresses, so the number of entries would be unlimited.
 * If the map is full, the kernel removes the least recently used entry. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct stranger);
	__type(value, struct sighting);
} flannel_dropped SEC(".maps");
