// SPDX-License-Identifier: Apache-2.0
//
// Decides which frames the workers get, which the kernel keeps, and which nobody may have.
//
// It fails closed: tenant traffic that no worker takes is dropped, also while no daemon runs. One program for
// each side, each loaded with maps of its own; the library that enters sockets looks for `xsks_map` by name.
//
// `guard_inside` and `guard_outside` are a second line: classifiers behind the XDP programs, which see only what those
// let pass. Where one is missing they keep from the kernel what it must not have.
//
// The rows of the decision table are counted in `verdicts`; `fastpath/src/steer/mod.rs` names them in the same order.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TENANTS 65536
#define MAX_ADDRESSES 262144
#define MAX_PREFIXES 65536
#define MAX_TAGS 2

enum row {
	IN_ARP,
	IN_GATEWAY_ADDRESS,
	IN_TENANT,
	IN_TENANT_NO_WORKER,
	IN_TENANT_NOT_IPV4,
	IN_LEAK,
	IN_LEAK_NO_WORKER,
	IN_LEAK_TAGGED,
	IN_EGRESS,
	IN_MANY_TAGS,
	IN_REST,
	OUT_EGRESS,
	OUT_EGRESS_NO_WORKER,
	OUT_EGRESS_TAGGED,
	OUT_MANY_TAGS,
	OUT_REST,
	IN_GUARDED,
	OUT_GUARDED,
	ROWS,
};

struct mac {
	__u8 bytes[ETH_ALEN];
};

struct prefix {
	__u32 bits;
	__be32 address;
};

struct vlan_header {
	__be16 tag;
	__be16 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

// Tenant MAC to the tenant's gateway address.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TENANTS);
	__type(key, struct mac);
	__type(value, __be32);
} tenant_macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ADDRESSES);
	__type(key, __be32);
	__type(value, __u8);
} egress_addresses SEC(".maps");

// The gateway's own addresses, which pods may talk to.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ADDRESSES);
	__type(key, __be32);
	__type(value, __u8);
} own_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__type(key, struct prefix);
	__type(value, __u8);
} pod_cidrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ROWS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

static __always_inline int count(enum row row, int action)
{
	__u32 key = row;
	__u64 *counter = bpf_map_lookup_elem(&verdicts, &key);

	if (counter)
		*counter += 1;
	return action;
}

// To the worker of the queue that the frame came by; dropped when there is none.
static __always_inline int to_worker(struct xdp_md *ctx, enum row redirected, enum row dropped)
{
	int action = bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_DROP);

	return count(action == XDP_REDIRECT ? redirected : dropped, action);
}

static __always_inline int is_tag(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

// Finds the IPv4 header behind up to MAX_TAGS VLAN tags; null when there is none or it is cut short. Where there
// are more tags, `tags` is more than MAX_TAGS.
static __always_inline struct iphdr *find_ipv4(struct xdp_md *ctx, int *tags)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *next = ethernet + 1;
	__be16 protocol;

	*tags = 0;
	if (next > end)
		return NULL;
	protocol = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		struct vlan_header *vlan = next;

		if (!is_tag(protocol))
			break;
		if ((void *)(vlan + 1) > end)
			return NULL;
		protocol = vlan->protocol;
		next = vlan + 1;
		*tags += 1;
	}
	if (is_tag(protocol))
		*tags = MAX_TAGS + 1;
	if (protocol != bpf_htons(ETH_P_IP) || next + sizeof(struct iphdr) > end)
		return NULL;
	return next;
}

static __always_inline int is_leak(struct iphdr *ip)
{
	struct prefix source = { .bits = 32, .address = ip->saddr };
	__be32 destination = ip->daddr;

	return bpf_map_lookup_elem(&pod_cidrs, &source) && !bpf_map_lookup_elem(&own_addresses, &destination);
}

SEC("xdp")
int steer_inside(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ip;
	struct mac mac;
	__be32 *gateway, destination;
	int tags;

	if ((void *)(ethernet + 1) > end)
		return count(IN_REST, XDP_PASS);
	if (ethernet->h_proto == bpf_htons(ETH_P_ARP))
		return count(IN_ARP, XDP_PASS);
	ip = find_ipv4(ctx, &tags);
	__builtin_memcpy(&mac, ethernet->h_dest, sizeof(mac));
	gateway = bpf_map_lookup_elem(&tenant_macs, &mac);
	if (gateway) {
		if (!ip || tags)
			return count(IN_TENANT_NOT_IPV4, XDP_DROP);
		if (ip->daddr == *gateway)
			return count(IN_GATEWAY_ADDRESS, XDP_PASS);
		return to_worker(ctx, IN_TENANT, IN_TENANT_NO_WORKER);
	}
	// The kernel treats priority tags (VLAN 0) as no tags, however many, so tags are no way around a row.
	if (tags > MAX_TAGS)
		return count(IN_MANY_TAGS, XDP_DROP);
	if (!ip)
		return count(IN_REST, XDP_PASS);
	if (is_leak(ip))
		return tags ? count(IN_LEAK_TAGGED, XDP_DROP) : to_worker(ctx, IN_LEAK, IN_LEAK_NO_WORKER);
	destination = ip->daddr;
	if (bpf_map_lookup_elem(&egress_addresses, &destination))
		return count(IN_EGRESS, XDP_DROP);
	return count(IN_REST, XDP_PASS);
}

SEC("xdp")
int steer_outside(struct xdp_md *ctx)
{
	struct iphdr *ip;
	__be32 destination;
	int tags;

	ip = find_ipv4(ctx, &tags);
	if (tags > MAX_TAGS)
		return count(OUT_MANY_TAGS, XDP_DROP);
	if (!ip)
		return count(OUT_REST, XDP_PASS);
	destination = ip->daddr;
	if (!bpf_map_lookup_elem(&egress_addresses, &destination))
		return count(OUT_REST, XDP_PASS);
	if (tags)
		return count(OUT_EGRESS_TAGGED, XDP_DROP);
	return to_worker(ctx, OUT_EGRESS, OUT_EGRESS_NO_WORKER);
}

// What the second line reads of a frame. The headers may lie anywhere, and one tag beside the frame.
struct guarded {
	struct ethhdr ethernet;
	struct iphdr ip;
	int tags;
	int is_ipv4;
};

// Tells whether there is an Ethernet header at all.
static __always_inline int read_frame(struct __sk_buff *skb, struct guarded *frame)
{
	__u32 offset = sizeof(frame->ethernet);
	struct vlan_header vlan;
	__be16 protocol;

	if (bpf_skb_load_bytes(skb, 0, &frame->ethernet, sizeof(frame->ethernet)))
		return 0;
	protocol = frame->ethernet.h_proto;
	frame->tags = skb->vlan_present ? 1 : 0;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		if (!is_tag(protocol))
			break;
		if (bpf_skb_load_bytes(skb, offset, &vlan, sizeof(vlan)))
			break;
		protocol = vlan.protocol;
		offset += sizeof(vlan);
		frame->tags += 1;
	}
	if (is_tag(protocol))
		frame->tags = MAX_TAGS + 1;
	frame->is_ipv4 = protocol == bpf_htons(ETH_P_IP) &&
			 !bpf_skb_load_bytes(skb, offset, &frame->ip, sizeof(frame->ip));
	return 1;
}

SEC("classifier")
int guard_inside(struct __sk_buff *skb)
{
	struct guarded frame = {};
	__be32 *gateway, destination;
	struct mac mac;

	if (!read_frame(skb, &frame))
		return TC_ACT_UNSPEC;
	if (frame.ethernet.h_proto == bpf_htons(ETH_P_ARP) && !frame.tags)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(&mac, frame.ethernet.h_dest, sizeof(mac));
	gateway = bpf_map_lookup_elem(&tenant_macs, &mac);
	if (gateway) {
		if (frame.is_ipv4 && !frame.tags && frame.ip.daddr == *gateway)
			return TC_ACT_UNSPEC;
		return count(IN_GUARDED, TC_ACT_SHOT);
	}
	if (frame.tags > MAX_TAGS)
		return count(IN_GUARDED, TC_ACT_SHOT);
	if (!frame.is_ipv4)
		return TC_ACT_UNSPEC;
	destination = frame.ip.daddr;
	if (is_leak(&frame.ip) || bpf_map_lookup_elem(&egress_addresses, &destination))
		return count(IN_GUARDED, TC_ACT_SHOT);
	return TC_ACT_UNSPEC;
}

SEC("classifier")
int guard_outside(struct __sk_buff *skb)
{
	struct guarded frame = {};
	__be32 destination;

	if (!read_frame(skb, &frame))
		return TC_ACT_UNSPEC;
	destination = frame.ip.daddr;
	if (frame.tags > MAX_TAGS ||
	    (frame.is_ipv4 && bpf_map_lookup_elem(&egress_addresses, &destination)))
		return count(OUT_GUARDED, TC_ACT_SHOT);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Apache-2.0";
