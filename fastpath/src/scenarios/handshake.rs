//! What a gateway changes in a SYN.

use conntrack::TcpFlags;

use super::{SYN_ACK, come_back, ends, leave};
use crate::testing::rig::Rig;
use crate::testing::{gateway, tcp_frame_with_options};

/// Options of a SYN by default: maximum segment size 1,460, at an odd place here, and window scale.
const OPTIONS: [u8; 8] = [1, 2, 4, 5, 0xb4, 3, 3, 7];

fn announced(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[57], frame[58]])
}

#[test]
fn the_segment_size_of_a_tenant_with_a_clamp_is_lowered_both_ways() {
    for (clamp, expected) in [(1360, 1360), (0, 1460), (1460, 1460)] {
        let mut rig = Rig::new(gateway().change(|spec| spec.tenants[0].mss_clamp = clamp).spec());
        let pod = |flags| tcp_frame_with_options("10.132.0.5:40000", "192.168.55.13:80", flags, &OPTIONS);
        let out = leave(&mut rig, &pod(TcpFlags::SYN));
        assert_eq!(announced(&out), expected);

        let outside = format!("192.168.55.113:{}", ends(&out).source.1);
        let server = |flags| tcp_frame_with_options("192.168.55.13:80", &outside, flags, &OPTIONS);
        assert_eq!(announced(&come_back(&mut rig, &server(SYN_ACK))), expected);
        assert_eq!(announced(&leave(&mut rig, &pod(TcpFlags::ACK))), 1460, "it means nothing there");
    }
}
