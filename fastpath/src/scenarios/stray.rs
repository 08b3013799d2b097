//! Packets that belong to no session and may not open one.

use conntrack::TcpFlags;

use super::{SYN_ACK, only};
use crate::snapshot::MidStream;
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{echo_frame, gateway, tcp_frame};
use crate::verdict::DropReason;

#[test]
fn a_pod_in_the_middle_of_an_unknown_connection_is_reset_or_hears_nothing() {
    for flags in [TcpFlags::ACK, SYN_ACK, TcpFlags(0x11)] {
        let segment = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", flags);
        let mut rig = Rig::new(gateway().spec());
        let rst = only(rig.send(Inside, &segment, Inside));
        check_sent(Inside, &rst, &[]);
        assert_eq!((rst[23], rst[47] & TcpFlags::RST.0), (6, TcpFlags::RST.0));

        let silent = gateway().change(|spec| spec.tcp.mid_stream = MidStream::Drop);
        let mut rig = Rig::new(silent.spec());
        assert!(rig.send(Inside, &segment, Inside).is_empty());
        assert!(rig.take(Outside).is_empty());
        assert_eq!(rig.blue().drops, [(DropReason::NoSession, 1)]);
        assert_eq!(rig.sessions(), 0);
    }
}

#[test]
fn silence_in_the_middle_of_connections_is_for_tcp_alone() {
    let silent = gateway().change(|spec| spec.tcp.mid_stream = MidStream::Drop);
    let mut rig = Rig::new(silent.spec());
    let reply = echo_frame("10.132.0.5", "192.168.55.13", 4711, true);
    let error = only(rig.send(Inside, &reply, Inside));
    assert_eq!((error[34], error[35]), (3, 13));
}
