use crate::snapshot::Side;

/// Rows of the decision table and the side of each, in the order of `enum row` in `bpf/steer.bpf.c`.
pub const ROWS: [(Side, &str); 21] = [
    (Side::Inside, "arp_passed"),
    (Side::Inside, "gateway_address_passed"),
    (Side::Inside, "tenant_to_worker"),
    (Side::Inside, "tenant_without_worker_dropped"),
    (Side::Inside, "tenant_over_share_dropped"),
    (Side::Inside, "tenant_not_ipv4_dropped"),
    (Side::Inside, "leak_to_worker"),
    (Side::Inside, "leak_without_worker_dropped"),
    (Side::Inside, "leak_over_share_dropped"),
    (Side::Inside, "leak_tagged_dropped"),
    (Side::Inside, "egress_address_dropped"),
    (Side::Inside, "many_tags_dropped"),
    (Side::Inside, "rest_passed"),
    (Side::Outside, "egress_to_worker"),
    (Side::Outside, "egress_without_worker_dropped"),
    (Side::Outside, "egress_over_share_dropped"),
    (Side::Outside, "egress_tagged_dropped"),
    (Side::Outside, "many_tags_dropped"),
    (Side::Outside, "rest_passed"),
    (Side::Inside, "second_line_dropped"),
    (Side::Outside, "second_line_dropped"),
];
