// SPDX-License-Identifier: Apache-2.0
//
// Gives every frame of a queue to the AF_XDP socket of that queue, if there is one, else to the kernel's stack.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// The library that enters sockets looks for this name.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks_map SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *context)
{
	return bpf_redirect_map(&xsks_map, context->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "Apache-2.0";
