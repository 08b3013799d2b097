//! Any bytes are parsed or refused, and what is parsed lies inside the frame.

use arbitrary::{Arbitrary, Result, Unstructured};

use super::choice::bits;
use super::frames::seal;
use crate::io::Frame;
use crate::parse::{Flow, IpHeader, Packet, Transport, parse};
use crate::verdict::DropReason;

/// A frame of any bytes, perhaps with its IPv4 length and checksums made right.
#[derive(Clone, Debug)]
pub struct Input {
    frame: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let [is_fitted, is_sealed, ..] = bits(u)?;
        let mut frame = u.bytes(u.len().min(Frame::CAPACITY))?.to_vec();
        if is_fitted && frame.len() >= 34 {
            frame[12..14].copy_from_slice(&[8, 0]);
            let total = u16::try_from(frame.len() - 14).unwrap();
            frame[16..18].copy_from_slice(&total.to_be_bytes());
        }
        if is_sealed {
            seal(&mut frame);
        }
        Ok(Self { frame })
    }
}

impl Input {
    /// Parses the frame; returns why it was refused, if it was.
    ///
    /// # Panics
    /// When a field that was parsed is not inside the frame.
    pub fn parse(&self) -> Option<DropReason> {
        match parse(&self.frame) {
            Ok(packet) => check(&packet, &self.frame),
            Err(reason) => return Some(reason),
        }
        None
    }
}

fn check(packet: &Packet, frame: &[u8]) {
    let end = packet.frame_bytes;
    assert!(end <= frame.len(), "the packet is inside the frame");
    check_header(&packet.ip, end);
    assert_eq!(packet.ip.at + usize::from(packet.ip.total_bytes), end);
    match packet.transport {
        Transport::Flow(flow) => check_flow(&flow, end),
        Transport::Fragment(_) => assert!(packet.ip.payload_at < end, "a fragment has a payload"),
        Transport::Error(quoted) => {
            assert!(packet.ip.payload_at <= quoted.icmp_at && quoted.icmp_at + 8 <= quoted.ip.at);
            check_header(&quoted.ip, end);
            check_flow(&quoted.flow, end);
        }
    }
}

fn check_header(ip: &IpHeader, end: usize) {
    assert!(ip.at + 20 <= ip.payload_at && ip.payload_at <= end, "{ip:?}");
}

fn check_flow(flow: &Flow, end: usize) {
    assert!(flow.at <= end, "{flow:?}");
    assert!(!flow.has_ports || flow.at + 8 <= end, "{flow:?}");
    assert!(flow.checksum_at.is_none_or(|at| flow.at < at && at + 2 <= end), "{flow:?}");
}
