// SPDX-License-Identifier: Apache-2.0
//
// Both ends of traffic through a gateway, in three programs that share a plan.
//
//   send: turns each live frame of a test run into the next frame that is due, or drops it when none is. So it keeps
//         a rate to the length of a batch, and a number of handshakes that are open at the same time.
//   near: on the sender's link; times the probes that come back, completes handshakes, counts refusals.
//   far:  on the server's link; sends probes back, answers SYNs, counts the rest.
//
// bench/src/traffic.rs is the other half of the maps.
#include "headers.h"

// How a flow number becomes a five-tuple. bench/src/flows.rs says why.
#define PORT_BITS 15
#define POD_BITS 12

// RFC 792
#define ICMP_DEST_UNREACH 3

#define NEVER (~0ULL)
// The plan's intervals are in 256ths of a nanosecond.
#define FRACTION_BITS 8
// Frames that may be sent at once when the sender was held up.
#define BURST 16
#define SAMPLES 131072
#define SERVER_SEQUENCE 0x5e12e12e

volatile const __u32 out_ifindex = 0;
volatile const __u32 flow_count = 1;
volatile const __u32 flow_stride = 1;
volatile const __u32 first_pod = 0;
volatile const __u32 first_destination = 0;
volatile const __u16 first_source_port = 0;
volatile const __u16 destination_port = 0;
volatile const __u64 node_mac = 0;
volatile const __u32 egress_address = 0;
volatile const __u32 pod_network = 0;
volatile const __u32 pod_mask = 0;
volatile const __u8 is_tcp = 0;
volatile const __u32 probe_source = 0;
volatile const __u32 probe_destination = 0;
volatile const __u16 probe_port = 0;

struct plan {
	__u64 interval; // between frames; 0: as fast as can be, NEVER: none
	__u64 probe_interval;
	__u64 last; // frames to send in all
	__u64 window; // frames that may wait for their answer; 0: any number
	__u64 forgiven; // frames that no answer is expected to any more
	__u64 gateway_mac;
	__u64 wanted_source; // the first datagram like this is noted; 0: any
	__u64 wanted_destination;
	__u64 destination; // where all flows go; 0: as their number says
	__u64 probe_mac; // whose gateway probes go by; 0: as all others
	__u64 flood; // what frames are in place of those of the kind
};

// What a flood is of.
enum {
	NO_FLOOD,
	SYNS, // that nobody answers
	FRAGMENTS, // of datagrams that never become whole, every other one the first
	NOT_IPV4,
};

struct progress {
	__u64 sent;
	__u64 flow;
	__u64 due;
	__u64 probes;
	__u64 probe_due;
	__u64 waits; // turns in which a frame was due and the window was full
};

// Index of a counter.
enum {
	TRANSLATED, // datagrams whose source is the egress address
	UNTRANSLATED, // datagrams and segments with a pod's address
	OTHER, // datagrams with another source
	ASKED, // SYNs that reached the server
	COMPLETED, // handshakes whose last segment reached the server
	REFUSED, // RSTs and ICMP errors
	DAMAGED, // segments with a wrong checksum or an unexpected number
	COUNTERS
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plan SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} progress SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

// Round trips of probes by number, in nanoseconds; 0: not back yet.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SAMPLES);
	__type(key, __u32);
	__type(value, __u64);
} round_trips SEC(".maps");

// When the first datagram came that the plan wants.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline struct plan *the_plan(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&plan, &key);
}

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &counter);

	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline __u64 counted(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &counter);

	return value ? *value : 0;
}

// Tells whether a frame is due, and says when the next one is.
static __always_inline int is_due(__u64 *due, __u64 interval, __u64 now)
{
	if (interval == 0)
		return 1;
	if (interval == NEVER || now < *due)
		return 0;

	__u64 earliest = now - interval * BURST;

	*due = (*due > earliest ? *due : earliest) + interval;
	return 1;
}

static __always_inline int has_room(const struct plan *plan, const struct progress *turn)
{
	if (turn->sent >= plan->last)
		return 0;
	if (!plan->window)
		return 1;
	return turn->sent < plan->window + plan->forgiven + counted(COMPLETED) + counted(REFUSED);
}

static __always_inline void write_probe(void *data, const struct plan *plan, __u32 number)
{
	struct datagram *datagram = data;
	struct flow flow = {
		.source = probe_source,
		.destination = probe_destination,
		.source_port = probe_port,
		.destination_port = probe_port,
	};

	write_ethernet(&datagram->ethernet, plan->probe_mac ? plan->probe_mac : plan->gateway_mac, node_mac);
	write_datagram(datagram, &flow, number, bpf_ktime_get_ns());
}

// Cuts a datagram to a fragment, which is a multiple of eight bytes unless it is the last (RFC 791 section 3.2): more
// are said to follow.
static __always_inline void make_fragment(struct iphdr *ip, __u32 number)
{
	__u16 payload = (sizeof(struct udphdr) + sizeof(struct payload)) & ~7;
	__u16 place = 0x2000 | (number & 1 ? payload / 8 : 0);
	__u16 identification = number >> 1;

	ip->tot_len = bpf_htons(sizeof(*ip) + payload);
	ip->id = bpf_htons(identification);
	ip->frag_off = bpf_htons(place);
	ip->check = 0;
	ip->check = bpf_htons(fold(sum_of(ip, sizeof(*ip))));
}

static __always_inline void write_next(void *data, const struct plan *plan, __u32 number)
{
	struct datagram *datagram = data;
	struct flow flow = {
		.source = first_pod + (number & ((1 << POD_BITS) - 1)),
		.destination = plan->destination ? plan->destination : first_destination + (number >> PORT_BITS),
		.source_port = first_source_port + (number & ((1 << PORT_BITS) - 1)),
		.destination_port = destination_port,
	};

	write_ethernet(&datagram->ethernet, plan->gateway_mac, node_mac);
	if (is_tcp || plan->flood == SYNS)
		write_segment(data, &flow, number, 0, 1);
	else
		write_datagram(datagram, &flow, number, 0);
	if (plan->flood == FRAGMENTS)
		make_fragment(&datagram->ip, number);
	if (plan->flood == NOT_IPV4)
		datagram->ethernet.h_proto = bpf_htons(ETH_P_IPV6);
}

SEC("xdp")
int send(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct plan *plan = the_plan();
	__u32 key = 0;
	struct progress *turn = bpf_map_lookup_elem(&progress, &key);

	if (!plan || !turn || data + sizeof(struct datagram) > end)
		return XDP_ABORTED;

	__u64 now = bpf_ktime_get_ns() << FRACTION_BITS;

	if (is_due(&turn->probe_due, plan->probe_interval, now)) {
		write_probe(data, plan, turn->probes++);
		return bpf_redirect(out_ifindex, 0);
	}
	if (!has_room(plan, turn)) {
		turn->waits += turn->sent < plan->last;
		return XDP_DROP;
	}
	if (!is_due(&turn->due, plan->interval, now))
		return XDP_DROP;

	__u64 next = turn->flow + flow_stride;

	write_next(data, plan, turn->flow);
	turn->flow = next < flow_count ? next : next - flow_count;
	turn->sent++;
	return bpf_redirect(out_ifindex, 0);
}

// Notes how long a probe took.
static __always_inline int take_probe(const struct datagram *datagram)
{
	__u32 number = bpf_ntohl(datagram->payload.number);
	__u64 *round_trip = bpf_map_lookup_elem(&round_trips, &number);

	if (round_trip)
		*round_trip = bpf_ktime_get_ns() - datagram->payload.sent_at;
	return XDP_DROP;
}

// Sends a frame out of the link that it came by. XDP_TX would wake a veth's peer only if that has an XDP program,
// which a kernel gateway has not.
static __always_inline int send_back(const struct xdp_md *context)
{
	return bpf_redirect(context->ingress_ifindex, 0);
}

// Answers a SYN-ACK.
static __always_inline int complete(const struct xdp_md *context, struct segment *segment)
{
	struct plan *plan = the_plan();
	struct flow flow = answer_to(segment);
	__u32 acknowledged = bpf_ntohl(segment->tcp.ack_seq);

	if (segment->tcp.rst) {
		count(REFUSED);
		return XDP_DROP;
	}
	if (!plan || !segment->tcp.syn || !segment->tcp.ack || !is_intact(segment)) {
		count(DAMAGED);
		return XDP_DROP;
	}
	write_ethernet(&segment->ethernet, plan->gateway_mac, node_mac);
	write_segment(segment, &flow, acknowledged, bpf_ntohl(segment->tcp.seq) + 1, 0);
	return send_back(context);
}

SEC("xdp")
int near(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct datagram *datagram = data;
	struct segment *segment = data;

	// A kernel gateway takes off what pads a segment, so that it is shorter than a datagram.
	if ((void *)(segment + 1) > end || segment->ethernet.h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (segment->ip.protocol == IPPROTO_TCP && segment->tcp.source == bpf_htons(destination_port))
		return complete(context, segment);
	if ((void *)(datagram + 1) > end)
		return XDP_PASS;
	if (datagram->ip.protocol == IPPROTO_UDP && datagram->udp.source == bpf_htons(probe_port))
		return take_probe(datagram);
	if (datagram->ip.protocol == IPPROTO_ICMP) {
		__u8 *type = (void *)(&datagram->ip + 1);

		if (*type == ICMP_DEST_UNREACH) {
			count(REFUSED);
			return XDP_DROP;
		}
	}
	return XDP_PASS;
}

static __always_inline int is_pod(__be32 address)
{
	return (bpf_ntohl(address) & pod_mask) == pod_network;
}

static __always_inline void look(const struct iphdr *ip)
{
	struct plan *plan = the_plan();
	__u32 key = 0;
	__u64 *first = bpf_map_lookup_elem(&seen, &key);

	if (!plan || !first || *first || !(plan->wanted_source | plan->wanted_destination))
		return;
	if (plan->wanted_source && plan->wanted_source != bpf_ntohl(ip->saddr))
		return;
	if (plan->wanted_destination && plan->wanted_destination != bpf_ntohl(ip->daddr))
		return;
	*first = bpf_ktime_get_ns();
}

static __always_inline int take_datagram(const struct xdp_md *context, struct datagram *datagram)
{
	struct iphdr *ip = &datagram->ip;

	if (datagram->udp.dest == bpf_htons(probe_port)) {
		__be32 address = ip->saddr;
		__be16 port = datagram->udp.source;

		swap_macs(&datagram->ethernet);
		ip->saddr = ip->daddr;
		ip->daddr = address;
		datagram->udp.source = datagram->udp.dest;
		datagram->udp.dest = port;
		return send_back(context);
	}
	if (datagram->udp.dest != bpf_htons(destination_port))
		return XDP_PASS;
	look(ip);
	if (ip->saddr == bpf_htonl(egress_address))
		count(TRANSLATED);
	else
		count(is_pod(ip->saddr) ? UNTRANSLATED : OTHER);
	return XDP_DROP;
}

// Answers a SYN, and counts what completes a handshake.
static __always_inline int take_segment(const struct xdp_md *context, struct segment *segment)
{
	struct flow flow = answer_to(segment);
	__u32 sequence = bpf_ntohl(segment->tcp.seq);

	if (segment->tcp.dest != bpf_htons(destination_port))
		return XDP_PASS;
	if (is_pod(segment->ip.saddr))
		count(UNTRANSLATED);
	if (!is_intact(segment) || segment->tcp.rst) {
		count(DAMAGED);
		return XDP_DROP;
	}
	if (!segment->tcp.syn) {
		count(bpf_ntohl(segment->tcp.ack_seq) == SERVER_SEQUENCE + 1 ? COMPLETED : DAMAGED);
		return XDP_DROP;
	}
	count(ASKED);
	if (!is_tcp)
		return XDP_DROP;
	swap_macs(&segment->ethernet);
	write_segment(segment, &flow, SERVER_SEQUENCE, sequence + 1, 1);
	return send_back(context);
}

SEC("xdp")
int far(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct datagram *datagram = data;
	struct segment *segment = data;

	if ((void *)(segment + 1) > end || segment->ethernet.h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (segment->ip.protocol == IPPROTO_TCP)
		return take_segment(context, segment);
	if (segment->ip.protocol == IPPROTO_UDP && (void *)(datagram + 1) <= end)
		return take_datagram(context, datagram);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Apache-2.0";
