//! The whole pipeline on simulated wires: what goes in, what comes out, and that nothing is lost between.
//!
//! - [`anything`]: frames of every kind at once
//! - [`express`]: the express lane comes to the same as the whole way
//! - [`extensions`]: ICMP errors with extensions, and with little of the packet that they are about
//! - [`forwarding`]: what passes is translated, both ways
//! - [`refusing`]: what may not pass is refused, counted, and leaves nothing behind
//! - [`fragments`]: datagrams in fragments pass both ways, in any order
//! - [`neighbours`]: one tenant floods, and the other loses nothing
//! - [`oversize`]: packets that are too large for the outgoing link leave in fragments
//! - [`changing`]: neighbours and policies change while packets come
//! - [`counting`]: what is counted, and for whom
//! - [`draining`]: a tenant that is being removed keeps its sessions and gets no new ones
//! - [`hairpin`]: pods that talk to egress addresses of the gateway
//! - [`handshake`]: what a gateway changes in a SYN
//! - [`lending`]: outside ports at several workers
//! - [`limits`]: how much a tenant and a pod may have
//! - [`mapping`]: which outside address and port stand for a pod's, and who may use them
//! - [`port_surveys`]: the ports that are taken are found
//! - [`portless`]: protocols without ports are translated by address
//! - [`queues`]: workers with any number of queues on each side, and queues that change
//! - [`rehearsals`]: what is decided on a copy is what happens
//! - [`sources`]: whom a tenant's packets may come from, and what others hear
//! - [`stray`]: packets that belong to no session and may not open one
//! - [`survey_turns`]: who asks does not wait long for others who ask, and the worker for nobody
//! - [`surveys`]: sessions are listed and ended
//! - [`taps`]: what is shown of frames
//! - [`workers`]: several workers, panics, and what every frame comes to

mod anything;
mod changing;
mod counting;
mod draining;
mod express;
mod extensions;
mod forwarding;
mod fragments;
mod hairpin;
mod handshake;
mod lending;
mod limits;
mod mapping;
mod neighbours;
mod oversize;
mod port_surveys;
mod portless;
mod queues;
mod refusing;
mod rehearsals;
mod sources;
mod stray;
mod survey_turns;
mod surveys;
mod taps;
mod workers;

use std::net::Ipv4Addr;

use conntrack::TcpFlags;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{OUTSIDE_MAC, SERVER_MAC, tcp_frame, udp_frame};

const POD: &str = "10.132.0.5";
const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const RED_EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 114);
const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);

/// Ends of a packet: source and destination address and port.
#[derive(Clone, Debug, PartialEq)]
struct Ends {
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
}

fn ends(frame: &[u8]) -> Ends {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let (source_port, destination_port) = match packet.transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        _ => (0, 0),
    };
    Ends {
        source: (ip.header().source_addr(), source_port),
        destination: (ip.header().destination_addr(), destination_port),
    }
}

/// Returns the frame that answers one that left the gateway outside.
fn answer(frame: &[u8], flags: TcpFlags) -> Vec<u8> {
    let Ends { source, destination } = ends(frame);
    let (from, to) = (format!("{}:{}", destination.0, destination.1), format!("{}:{}", source.0, source.1));
    let mut reply = match frame[23] {
        6 => tcp_frame(&from, &to, flags),
        _ => udp_frame(&from, &to, b"reply"),
    };
    reply[..6].copy_from_slice(OUTSIDE_MAC.as_bytes());
    reply[6..12].copy_from_slice(SERVER_MAC.as_bytes());
    reply
}

fn only(mut frames: Vec<Vec<u8>>) -> Vec<u8> {
    assert_eq!(frames.len(), 1, "exactly one frame leaves");
    frames.remove(0)
}

fn leave(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    leave_by(rig, frame, &[EGRESS])
}

fn leave_by(rig: &mut Rig, frame: &[u8], egress_addresses: &[Ipv4Addr]) -> Vec<u8> {
    let sent = only(rig.send(Inside, frame, Outside));
    check_sent(Outside, &sent, egress_addresses);
    sent
}

fn come_back(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    let sent = only(rig.send(Outside, frame, Inside));
    check_sent(Inside, &sent, &[]);
    sent
}

/// Returns a frame with another time to live and the header checksum that this and other changes ask for.
fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    frame[22] = ttl;
    frame[24..26].fill(0);
    let sum = conntrack::checksum::checksum(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
