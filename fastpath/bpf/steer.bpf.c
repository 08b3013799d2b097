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
// What goes to a worker waits in the rx ring of a queue, which all tenants share. A tenant has a share of it while
// others come by the same queue; what is over that is dropped here, before it is copied (see `may_enter`).
//
// The rows of the decision table are counted in `verdicts`; `fastpath/src/steer/mod.rs` names them in the same order.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TENANTS 65536
#define MAX_ADDRESSES 65536
#define MAX_PREFIXES 65536
#define MAX_TAGS 2

#define SECOND 1000000000ULL
// Tenants that are told apart at a queue, and what is no tenant's. More than that share what they have.
#define SHARES 16384
#define NOBODY (SHARES - 1)

// Frames that an rx ring holds; `fastpath/src/steer/mod.rs` has a check.
#define RING_FRAMES 2048

enum row {
	IN_ARP,
	IN_GATEWAY_ADDRESS,
	IN_TENANT,
	IN_TENANT_NO_WORKER,
	IN_TENANT_OVER_SHARE,
	IN_TENANT_NOT_IPV4,
	IN_LEAK,
	IN_LEAK_NO_WORKER,
	IN_LEAK_OVER_SHARE,
	IN_LEAK_TAGGED,
	IN_EGRESS,
	IN_MANY_TAGS,
	IN_REST,
	OUT_EGRESS,
	OUT_EGRESS_NO_WORKER,
	OUT_EGRESS_OVER_SHARE,
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

struct tenant {
	__be32 gateway;
	__u32 number;
};

// One rx ring. The worker writes the first line, this program the second.
struct ring {
	__u64 taken;   // frames that left the ring, of those that were let in
	__u64 bound;   // frames of one tenant that may wait, beside those of others; 0: no bound but its share
	__u64 padding[6];
	__u64 admitted;	  // frames that were let in
	__u64 shared_at;  // when a frame was another tenant's than the one before
	__u64 taken_then; // `taken` when somebody was last refused, and when that changed
	__u64 taken_at;
	__u64 tenant; // whose the last frame was
	__u64 core;   // where it was received
	__u64 more_padding[2];
};

// What a tenant has in one rx ring, counted by two spans of what was let in: of the older all has left the ring when
// `taken` reaches the mark between them.
struct share {
	__u64 mark;
	__u64 last; // `admitted` when its last frame was let in
	__u64 refused;
	__u32 older;
	__u32 newer;
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

// By queue.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct ring);
} rings SEC(".maps");

// By queue, and within that by tenant.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SHARES);
	__type(key, __u32);
	__type(value, struct share);
} shares SEC(".maps");

// Tenant MAC to the tenant's gateway address and number.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TENANTS);
	__type(key, struct mac);
	__type(value, struct tenant);
} tenant_macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ADDRESSES);
	__type(key, __be32);
	__type(value, __u32);
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

// Whether a frame of a tenant may enter the rx ring of a queue. Who comes by it alone may fill the ring. Where another
// came within a second, nobody has more frames in it than are free (Choudhury and Hahne 1998), so that there is room for
// whoever comes next; and while the worker does not keep up, no more than it says, which is what the next one waits for.
static __always_inline int may_enter(__u32 queue, __u32 tenant)
{
	__u32 place = queue * SHARES + tenant;
	struct ring *ring = bpf_map_lookup_elem(&rings, &queue);
	struct share *share = bpf_map_lookup_elem(&shares, &place);
	__u64 taken, bound, now;
	__s64 waiting, room;
	__u32 held;

	if (!ring || !share)
		return 1;
	taken = *(volatile __u64 *)&ring->taken;
	bound = *(volatile __u64 *)&ring->bound;
	waiting = ring->admitted - taken;
	room = RING_FRAMES - waiting;
	ring->core = bpf_get_smp_processor_id();
	if ((__s64)(taken - share->mark) >= 0) {
		share->older = (__s64)(taken - share->last) >= 0 ? 0 : share->newer;
		share->newer = 0;
		share->mark = ring->admitted;
	}
	if (tenant != ring->tenant) {
		ring->tenant = tenant;
		ring->shared_at = bpf_ktime_get_coarse_ns();
	}
	held = share->older + share->newer;
	if (held < room && (held < bound || !bound))
		goto enter;
	now = bpf_ktime_get_coarse_ns();
	if (room > 0 && now - ring->shared_at > SECOND)
		goto enter;
	// A worker that takes nothing for so long does not say what it takes, and the ring itself is the only bound.
	if (taken != ring->taken_then) {
		ring->taken_then = taken;
		ring->taken_at = now;
	} else if (now - ring->taken_at > SECOND) {
		goto enter;
	}
	share->refused += 1;
	return 0;
enter:
	share->newer += 1;
	ring->admitted += 1;
	share->last = ring->admitted;
	return 1;
}

// To the worker of the queue that the frame came by; dropped when there is none, and what is over the tenant's share.
static __always_inline int to_worker(struct xdp_md *ctx, __u32 tenant, enum row redirected, enum row dropped,
				     enum row refused)
{
	__u32 queue = ctx->rx_queue_index;

	if (bpf_redirect_map(&xsks_map, queue, XDP_DROP) != XDP_REDIRECT)
		return count(dropped, XDP_DROP);
	if (!may_enter(queue, tenant))
		return count(refused, XDP_DROP);
	return count(redirected, XDP_REDIRECT);
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
	struct tenant *tenant;
	__be32 destination;
	int tags;

	if ((void *)(ethernet + 1) > end)
		return count(IN_REST, XDP_PASS);
	if (ethernet->h_proto == bpf_htons(ETH_P_ARP))
		return count(IN_ARP, XDP_PASS);
	ip = find_ipv4(ctx, &tags);
	__builtin_memcpy(&mac, ethernet->h_dest, sizeof(mac));
	tenant = bpf_map_lookup_elem(&tenant_macs, &mac);
	if (tenant) {
		if (!ip || tags)
			return count(IN_TENANT_NOT_IPV4, XDP_DROP);
		if (ip->daddr == tenant->gateway)
			return count(IN_GATEWAY_ADDRESS, XDP_PASS);
		return to_worker(ctx, tenant->number % NOBODY, IN_TENANT, IN_TENANT_NO_WORKER,
				 IN_TENANT_OVER_SHARE);
	}
	// The kernel treats priority tags (VLAN 0) as no tags, however many, so tags are no way around a row.
	if (tags > MAX_TAGS)
		return count(IN_MANY_TAGS, XDP_DROP);
	if (!ip)
		return count(IN_REST, XDP_PASS);
	if (is_leak(ip)) {
		if (tags)
			return count(IN_LEAK_TAGGED, XDP_DROP);
		return to_worker(ctx, NOBODY, IN_LEAK, IN_LEAK_NO_WORKER, IN_LEAK_OVER_SHARE);
	}
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
	__u32 *tenant;
	int tags;

	ip = find_ipv4(ctx, &tags);
	if (tags > MAX_TAGS)
		return count(OUT_MANY_TAGS, XDP_DROP);
	if (!ip)
		return count(OUT_REST, XDP_PASS);
	destination = ip->daddr;
	tenant = bpf_map_lookup_elem(&egress_addresses, &destination);
	if (!tenant)
		return count(OUT_REST, XDP_PASS);
	if (tags)
		return count(OUT_EGRESS_TAGGED, XDP_DROP);
	return to_worker(ctx, *tenant % NOBODY, OUT_EGRESS, OUT_EGRESS_NO_WORKER, OUT_EGRESS_OVER_SHARE);
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
	struct tenant *tenant;
	__be32 destination;
	struct mac mac;

	if (!read_frame(skb, &frame))
		return TC_ACT_UNSPEC;
	if (frame.ethernet.h_proto == bpf_htons(ETH_P_ARP) && !frame.tags)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(&mac, frame.ethernet.h_dest, sizeof(mac));
	tenant = bpf_map_lookup_elem(&tenant_macs, &mac);
	if (tenant) {
		if (frame.is_ipv4 && !frame.tags && frame.ip.daddr == tenant->gateway)
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
