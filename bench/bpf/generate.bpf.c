// SPDX-License-Identifier: Apache-2.0
//
// Turns each live frame of a test run into the next flow's UDP datagram and sends it out of one link. Where a pace is
// set, frames before their time are dropped, so that one endless run keeps a rate: a run's set-up takes 20 ms.
// Every header field is written every time: pages come back as the stack left them.
#include "headers.h"

// How a flow number becomes a five-tuple. bench/src/flows.rs says why.
#define PORT_BITS 15
#define POD_BITS 12

// Frames after which the sizes start again. bench/src/frames.rs has them.
#define SIZES 12

// bench/src/pacer.rs has the same number.
#define LATENESSES 32
#define FORGIVEN_NS 500000

volatile const __u32 out_ifindex = 0;
volatile const __u32 flow_count = 1;
volatile const __u32 flow_stride = 1;
// So many frames visit the flows in turn, so that each has its session; those that follow are drawn at random.
volatile const __u64 frames_in_turn = 0;
volatile const __u64 seed = 1;
volatile const __u8 one_destination = 0;
volatile const __u16 frame_bytes[SIZES] = {};
volatile const __u32 first_pod = 0;
volatile const __u32 first_destination = 0;
volatile const __u16 first_source_port = 0;
volatile const __u16 destination_port = 0;
volatile const __u8 source_mac[ETH_ALEN] = {};
volatile const __u8 gateway_mac[ETH_ALEN] = {};

struct progress {
	__u64 sent;
	__u64 flow;
	__u64 size;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} progress SEC(".maps");

// Times are in 1/1024 ns, so that an interval is exact enough. bench/src/pacer.rs reads and writes this.
struct pacing {
	// Between two frames; 0: none.
	__u64 interval;
	// When the next frame is; 0: now.
	__u64 due;
	// Time that was not made up for, in ns.
	__u64 given_up;
	// Frames by the binary logarithm of how many ns they were late.
	__u64 late[LATENESSES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pacing);
} pacing SEC(".maps");

static __always_inline __u32 binary_logarithm(__u64 value)
{
	__u32 result = 0;

#pragma unroll
	for (__u32 bits = 16; bits > 0; bits /= 2) {
		if (value >> bits) {
			value >>= bits;
			result += bits;
		}
	}
	return result;
}

static __always_inline int is_due(struct pacing *pacing)
{
	__u64 now, late;
	__u32 index;

	if (!pacing->interval)
		return 1;
	now = bpf_ktime_get_ns() << 10;
	if (now < pacing->due)
		return 0;
	if (!pacing->due)
		pacing->due = now;
	late = (now - pacing->due) >> 10;
	index = binary_logarithm(late);
	if (index < LATENESSES)
		pacing->late[index]++;
	// A burst that makes up for more would be a load of its own.
	if (late > FORGIVEN_NS) {
		pacing->given_up += late;
		pacing->due = now;
	}
	pacing->due += pacing->interval;
	return 1;
}

// SplitMix64, which needs no state but a count.
static __always_inline __u32 draw_flow(__u64 count)
{
	__u64 z = seed + (count + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	z ^= z >> 31;
	return ((z >> 32) * flow_count) >> 32;
}

static __always_inline __u32 next_flow(struct progress *turn)
{
	__u32 flow = turn->flow;
	__u64 next = (__u64)flow + flow_stride;

	if (turn->sent >= frames_in_turn)
		return draw_flow(turn->sent);
	turn->flow = next < flow_count ? next : next - flow_count;
	return flow;
}

static __always_inline void write_addresses(struct ethhdr *ethernet)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++) {
		ethernet->h_dest[i] = gateway_mac[i];
		ethernet->h_source[i] = source_mac[i];
	}
	ethernet->h_proto = bpf_htons(ETH_P_IP);
}

// The payload is zeros, so that only the headers count in the checksum.
static __always_inline void write_udp(struct udphdr *udp, __u16 length, __u16 port, __u32 pseudo)
{
	__u16 check = fold(pseudo + IPPROTO_UDP + length + port + destination_port + length);

	udp->source = bpf_htons(port);
	udp->dest = bpf_htons(destination_port);
	udp->len = bpf_htons(length);
	udp->check = bpf_htons(check ? check : 0xffff);
}

SEC("xdp")
int generate(struct xdp_md *context)
{
	__u32 key = 0;
	struct progress *turn = bpf_map_lookup_elem(&progress, &key);
	struct pacing *pace = bpf_map_lookup_elem(&pacing, &key);

	if (!turn || !pace)
		return XDP_ABORTED;
	if (!is_due(pace))
		return XDP_DROP;

	__u64 size = turn->size;

	if (size >= SIZES)
		size = 0;
	turn->size = size + 1;

	__u16 bytes = frame_bytes[size];
	__u16 longest = context->data_end - context->data;

	// The frame is made as long as the longest anew each time.
	if (bytes < longest && bpf_xdp_adjust_tail(context, (int)bytes - longest))
		return XDP_ABORTED;

	struct ethhdr *ethernet = (void *)(long)context->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > (void *)(long)context->data_end)
		return XDP_ABORTED;

	__u32 flow = next_flow(turn);
	__u16 length = bytes - sizeof(*ethernet);
	__u32 high = flow >> PORT_BITS;
	struct flow ends = {
		.source = first_pod + (flow & ((1 << POD_BITS) - 1)),
		.destination = first_destination,
		.source_port = first_source_port + (flow & ((1 << PORT_BITS) - 1)),
		.destination_port = destination_port,
	};

	if (one_destination)
		ends.source += high << POD_BITS;
	else
		ends.destination += high;
	turn->sent++;
	write_addresses(ethernet);
	write_ip(ip, IPPROTO_UDP, length, &ends);
	write_udp(udp, length - sizeof(*ip), ends.source_port, words(ends.source) + words(ends.destination));
	return bpf_redirect(out_ifindex, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";
