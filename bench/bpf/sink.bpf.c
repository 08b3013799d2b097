// SPDX-License-Identifier: Apache-2.0
//
// Counts and drops the measured datagrams at the far end; everything else goes to the kernel's stack.
//
// A classifier and not an XDP program: what an AF_XDP socket transmits in copy mode has less than the 256 bytes of
// headroom that XDP wants, so a veth with an XDP program copies every such frame first (veth_convert_skb_to_xdp_buff).
// That would be a cost of the measuring, and for AF_XDP gateways alone.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

volatile const __u32 egress_address = 0;
volatile const __u16 destination_port = 0;

// Index of a counter: datagrams whose source is the egress address, and those that came with another one.
enum { TRANSLATED, UNTRANSLATED, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} received SEC(".maps");

struct datagram {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

SEC("classifier")
int sink(struct __sk_buff *context)
{
	struct datagram *datagram = (void *)(long)context->data;

	if ((void *)(datagram + 1) > (void *)(long)context->data_end)
		return TC_ACT_OK;
	if (datagram->ethernet.h_proto != bpf_htons(ETH_P_IP) || datagram->ip.protocol != IPPROTO_UDP)
		return TC_ACT_OK;
	if (datagram->udp.dest != bpf_htons(destination_port))
		return TC_ACT_OK;

	__u32 key = datagram->ip.saddr == bpf_htonl(egress_address) ? TRANSLATED : UNTRANSLATED;
	__u64 *count = bpf_map_lookup_elem(&received, &key);

	if (count)
		(*count)++;
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
