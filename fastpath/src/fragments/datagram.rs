//! One datagram: its key, and which parts of it were seen.

use std::net::Ipv4Addr;

use conntrack::{Direction, Protocol, TenantId, Tick};

use super::Head;
use super::held::HeldQueue;
use crate::classify::Class;
use crate::parse::IpHeader;

/// Spans that are kept apart: of the 45 fragments of a 64 KiB datagram on a link of 1,500 bytes, the worst
/// order leaves 23 without a neighbour.
pub(super) const SPANS: usize = 24;

/// What all fragments of a datagram have in common (RFC 791 section 3.2), and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    /// Tenant.
    pub tenant: TenantId,
    /// Direction.
    pub direction: Direction,
    /// Source address, as it came.
    pub source: Ipv4Addr,
    /// Destination address, as it came.
    pub destination: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Identification, as it came.
    pub identification: u16,
}

impl DatagramKey {
    /// Returns the key of the datagram that a fragment belongs to.
    pub fn new(class: Class, ip: &IpHeader, protocol: Protocol) -> Self {
        Self {
            tenant: class.tenant,
            direction: class.direction,
            source: ip.source,
            destination: ip.destination,
            protocol,
            identification: ip.identification,
        }
    }
}

/// Part of a datagram, in units of 8 bytes as fragments count; an incomplete last unit counts whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First unit.
    pub start: u16,
    /// Unit after the last.
    pub end: u16,
    /// Whether the datagram ends with it.
    pub is_last: bool,
}

impl Part {
    /// Returns the part that a fragment is, which [`mod@crate::parse`] has checked.
    pub fn of(ip: &IpHeader) -> Self {
        let unit = |bytes: usize| u16::try_from(bytes).expect("a datagram is shorter than 64 KiB");
        let end = usize::from(ip.fragment_offset) + ip.payload_bytes();
        Self { start: ip.fragment_offset / 8, end: unit(end.div_ceil(8)), is_last: !ip.more_fragments }
    }
}

/// What a datagram says about a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is new.
    Anew,
    /// It was seen before, all of it.
    Before,
    /// Some of it was seen before, or it contradicts where the datagram ends. No part of the datagram counts
    /// any more.
    InPart,
    /// The datagram lies in too many pieces to keep track of one more.
    InPieces,
}

/// A datagram of which fragments have come.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Its key.
    pub key: DatagramKey,
    /// What its first fragment told, if that has come.
    pub head: Option<Head>,
    /// Frames that wait for the first fragment.
    pub held: HeldQueue,
    /// When it is forgotten.
    pub deadline: Tick,
    spans: [(u16, u16); SPANS],
    span_count: u8,
    end: Option<u16>,
    is_spoiled: bool,
}

impl Datagram {
    /// Makes a datagram of which nothing was seen.
    pub fn new(key: DatagramKey, deadline: Tick) -> Self {
        Self {
            key,
            head: None,
            held: HeldQueue::default(),
            deadline,
            spans: [(0, 0); SPANS],
            span_count: 0,
            end: None,
            is_spoiled: false,
        }
    }

    /// Tells whether every part was seen.
    pub fn is_whole(&self) -> bool {
        !self.is_spoiled && self.end.is_some_and(|end| self.spans() == [(0, end)])
    }

    /// Notes a part.
    pub fn see(&mut self, part: Part) -> Seen {
        let seen = self.judge(part);
        match seen {
            Seen::Anew => self.end = if part.is_last { Some(part.end) } else { self.end },
            Seen::InPart => self.is_spoiled = true,
            Seen::Before | Seen::InPieces => {}
        }
        seen
    }

    fn judge(&mut self, part: Part) -> Seen {
        let contradicts = match self.end {
            Some(end) => part.end > end || part.is_last != (part.end == end),
            None => part.is_last && self.spans().iter().any(|span| span.1 > part.end),
        };
        if self.is_spoiled || contradicts {
            return Seen::InPart;
        }
        if self.spans().iter().any(|span| span.0 <= part.start && part.end <= span.1) {
            return Seen::Before;
        }
        if self.spans().iter().any(|span| span.0 < part.end && part.start < span.1) {
            return Seen::InPart;
        }
        self.add(part)
    }

    /// Adds a part that touches none, and joins it with its neighbours.
    fn add(&mut self, part: Part) -> Seen {
        let before = self.spans().iter().position(|span| span.1 == part.start);
        let after = self.spans().iter().position(|span| span.0 == part.end);
        let count = usize::from(self.span_count);
        match (before, after) {
            (Some(before), Some(after)) => {
                self.spans[before].1 = self.spans[after].1;
                self.spans[after] = self.spans[count - 1];
                self.span_count -= 1;
            }
            (Some(before), None) => self.spans[before].1 = part.end,
            (None, Some(after)) => self.spans[after].0 = part.start,
            (None, None) if count == SPANS => return Seen::InPieces,
            (None, None) => {
                self.spans[count] = (part.start, part.end);
                self.span_count += 1;
            }
        }
        Seen::Anew
    }

    fn spans(&self) -> &[(u16, u16)] {
        &self.spans[..usize::from(self.span_count)]
    }
}
