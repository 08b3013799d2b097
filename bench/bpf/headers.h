/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Headers of the frames that the harness sends, and their checksums. All of a frame is written each time: pages come
 * back as the stack left them.
 */
#ifndef SPILLWAY_BENCH_HEADERS_H
#define SPILLWAY_BENCH_HEADERS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Ethernet's fourteen bytes leave the headers after them unaligned, which the kernels that run this can read. */
#pragma clang diagnostic ignored "-Waddress-of-packed-member"

/* What a datagram carries: the rest of the smallest frame. */
struct payload {
	__be32 number;
	__u32 unused;
	__u64 sent_at;
	__u16 padding;
} __attribute__((packed));

struct datagram {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct payload payload;
} __attribute__((packed));

struct segment {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

struct flow {
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
};

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

/* Sums up memory as it lies; `bytes` is even and known when this is compiled. */
static __always_inline __u32 sum_of(const void *data, int bytes)
{
	const __u16 *word = data;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		sum += bpf_ntohs(word[i]);
	return sum;
}

static __always_inline void write_mac(__u8 *to, __u64 mac)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		to[i] = mac >> (8 * (ETH_ALEN - 1 - i));
}

static __always_inline void write_ethernet(struct ethhdr *ethernet, __u64 to, __u64 from)
{
	write_mac(ethernet->h_dest, to);
	write_mac(ethernet->h_source, from);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
}

static __always_inline void write_ip(struct iphdr *ip, __u8 protocol, __u16 length, const struct flow *flow)
{
	__u32 sum = 0x4500 + length + 0x4000 + (64 << 8 | protocol) + words(flow->source) + words(flow->destination);

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = protocol;
	ip->check = bpf_htons(fold(sum));
	ip->saddr = bpf_htonl(flow->source);
	ip->daddr = bpf_htonl(flow->destination);
}

static __always_inline __u32 pseudo_header(const struct iphdr *ip, __u16 length)
{
	return words(bpf_ntohl(ip->saddr)) + words(bpf_ntohl(ip->daddr)) + ip->protocol + length;
}

/* Writes everything above Ethernet of a datagram with this payload. */
static __always_inline void write_datagram(struct datagram *datagram, const struct flow *flow, __u32 number,
					   __u64 sent_at)
{
	struct udphdr *udp = &datagram->udp;
	__u16 length = sizeof(*udp) + sizeof(datagram->payload);

	write_ip(&datagram->ip, IPPROTO_UDP, sizeof(datagram->ip) + length, flow);
	datagram->payload = (struct payload){ .number = bpf_htonl(number), .sent_at = sent_at };
	udp->source = bpf_htons(flow->source_port);
	udp->dest = bpf_htons(flow->destination_port);
	udp->len = bpf_htons(length);
	udp->check = 0;

	__u32 sum = pseudo_header(&datagram->ip, length) + sum_of(udp, sizeof(*udp) + sizeof(datagram->payload));
	__u16 check = fold(sum);

	udp->check = bpf_htons(check ? check : 0xffff);
}

/* Writes everything above Ethernet of a segment without data. */
static __always_inline void write_segment(struct segment *segment, const struct flow *flow, __u32 sequence,
					  __u32 acknowledged, int is_syn)
{
	struct tcphdr *tcp = &segment->tcp;

	write_ip(&segment->ip, IPPROTO_TCP, sizeof(segment->ip) + sizeof(*tcp), flow);
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = bpf_htons(flow->source_port);
	tcp->dest = bpf_htons(flow->destination_port);
	tcp->seq = bpf_htonl(sequence);
	tcp->ack_seq = bpf_htonl(acknowledged);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->syn = is_syn;
	tcp->ack = acknowledged != 0;
	tcp->window = bpf_htons(0xffff);
	tcp->check = bpf_htons(fold(pseudo_header(&segment->ip, sizeof(*tcp)) + sum_of(tcp, sizeof(*tcp))));
}

/* Tells whether a segment without options or data arrived as it was sent. */
static __always_inline int is_intact(const struct segment *segment)
{
	const struct tcphdr *tcp = &segment->tcp;

	return fold(pseudo_header(&segment->ip, sizeof(*tcp)) + sum_of(tcp, sizeof(*tcp))) == 0;
}

/* Returns the flow of the answer to a segment. */
static __always_inline struct flow answer_to(const struct segment *segment)
{
	return (struct flow){
		.source = bpf_ntohl(segment->ip.daddr),
		.destination = bpf_ntohl(segment->ip.saddr),
		.source_port = bpf_ntohs(segment->tcp.dest),
		.destination_port = bpf_ntohs(segment->tcp.source),
	};
}

static __always_inline void swap_macs(struct ethhdr *ethernet)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, mac, ETH_ALEN);
}

#endif
