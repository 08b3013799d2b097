//! Packets of ever other pods, ports and datagrams, as a node sends them for a tenant.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::Lab;
use control::demo::topology::Pod;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket,
    sockopt,
};

/// Says which packets are a flood's, and so whose gateway they go by.
const MARK: u32 = 77;
/// Packets that are sent together, and the pause after them: some 20,000 a second, which a debug build carries.
const TOGETHER: usize = 16;
const PAUSE: Duration = Duration::from_micros(1500);

const IP_BYTES: usize = 20;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Sends packets from a node, under addresses of its pods, by the gateway of one tenant.
#[derive(Debug)]
pub struct Flood {
    socket: OwnedFd,
    first_pod: Ipv4Addr,
}

/// What a flood is of. All go to port 9 of a server, or of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs of many pods and ports.
    Syns,
    /// Datagrams of many pods and ports.
    Datagrams,
    /// Fragments of datagrams that never become whole, every other one the first.
    Fragments,
}

impl Flood {
    /// Makes one that comes from the node of a pod, by the gateway of its tenant.
    ///
    /// # Errors
    /// When the node refuses the route or the socket.
    pub fn of(lab: &Lab, pod: &Pod) -> Result<Self> {
        let node = lab.namespace(pod.node.host);
        node.ip(&format!("rule add fwmark {MARK} lookup {}", pod.tenant.table))?;
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
            setsockopt(&socket, sockopt::Mark, &MARK)?;
            Ok(socket)
        };
        let socket = node.enter(open)?.context("a raw socket")?;
        Ok(Self { socket, first_pod: pod.node.pod_gateway })
    }

    /// Sends so many packets to a server, each of another flow or datagram, at a pace.
    ///
    /// # Errors
    /// When the node does not send one.
    pub fn send(&self, kind: Kind, packets: u32, server: Ipv4Addr) -> Result<()> {
        let to = SockaddrIn::from(SocketAddrV4::new(server, 0));
        for number in 0..packets {
            let packet = self.packet(kind, number, server);
            while let Err(errno) = sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                let is_full = errno == nix::errno::Errno::ENOBUFS;
                anyhow::ensure!(is_full, "packet {number}: {}", io::Error::from(errno));
                std::thread::sleep(PAUSE);
            }
            if (number as usize + 1).is_multiple_of(TOGETHER) {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Returns the packet with this number; 200 pods have a port in turn.
    fn packet(&self, kind: Kind, number: u32, server: Ipv4Addr) -> Vec<u8> {
        let (pod, port) = (20 + number % 200, 1024 + number / 200);
        let source = Ipv4Addr::from_bits(self.first_pod.to_bits() - 1 + pod);
        let (protocol, transport_bytes) = if kind == Kind::Syns { (TCP, 20) } else { (UDP, 24) };
        let mut packet = vec![0; IP_BYTES + transport_bytes];
        // The kernel fills in length and checksum.
        (packet[0], packet[8], packet[9]) = (0x45, 64, protocol);
        packet[12..16].copy_from_slice(&source.octets());
        packet[16..20].copy_from_slice(&server.octets());
        let transport = &mut packet[IP_BYTES..];
        transport[..2].copy_from_slice(&u16::try_from(port).unwrap_or(u16::MAX).to_be_bytes());
        transport[2..4].copy_from_slice(&9u16.to_be_bytes());
        if kind == Kind::Syns {
            (transport[12], transport[13]) = (5 << 4, 0x02);
        } else {
            // Without a checksum (RFC 768).
            transport[4..6].copy_from_slice(&24u16.to_be_bytes());
        }
        if kind == Kind::Fragments {
            let [high, low] = (1 + number % 0xfffe).to_be_bytes()[2..] else {
                unreachable!("two bytes are left")
            };
            (packet[4], packet[5]) = (high, low);
            (packet[6], packet[7]) = (0x20, if number.is_multiple_of(2) { 0 } else { 3 });
        }
        packet
    }
}
