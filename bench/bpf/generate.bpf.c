// SPDX-License-Identifier: Apache-2.0
//
// Turns each live frame of a test run into the next flow's UDP datagram and sends it out of one link.
// Every header field is written every time: pages come back as the stack left them.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// How a flow number becomes a five-tuple. bench/src/flows.rs says why.
#define PORT_BITS 15
#define POD_BITS 12

volatile const __u32 out_ifindex = 0;
volatile const __u32 flow_count = 1;
volatile const __u32 flow_stride = 1;
volatile const __u32 first_pod = 0;
volatile const __u32 first_destination = 0;
volatile const __u16 first_source_port = 0;
volatile const __u16 destination_port = 0;
volatile const __u8 source_mac[ETH_ALEN] = {};
volatile const __u8 gateway_mac[ETH_ALEN] = {};

struct progress {
	__u64 sent;
	__u64 flow;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progress);
} progress SEC(".maps");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 words(__u32 address)
{
	return (address >> 16) + (address & 0xffff);
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

static __always_inline void write_ip(struct iphdr *ip, __u16 length, __u32 source, __u32 destination)
{
	__u32 sum = 0x4500 + length + 0x4000 + (64 << 8 | IPPROTO_UDP) + words(source) + words(destination);

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->check = bpf_htons(fold(sum));
	ip->saddr = bpf_htonl(source);
	ip->daddr = bpf_htonl(destination);
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
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 key = 0;
	struct progress *turn = bpf_map_lookup_elem(&progress, &key);

	if (!turn || (void *)(udp + 1) > end)
		return XDP_ABORTED;

	__u32 flow = turn->flow;
	__u64 next = (__u64)flow + flow_stride;
	__u16 length = end - data - sizeof(*ethernet);
	__u32 source = first_pod + (flow & ((1 << POD_BITS) - 1));
	__u32 destination = first_destination + (flow >> PORT_BITS);
	__u16 port = first_source_port + (flow & ((1 << PORT_BITS) - 1));

	turn->flow = next < flow_count ? next : next - flow_count;
	turn->sent++;
	write_addresses(ethernet);
	write_ip(ip, length, source, destination);
	write_udp(udp, length - sizeof(*ip), port, words(source) + words(destination));
	return bpf_redirect(out_ifindex, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";
