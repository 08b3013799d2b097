//! IPFIX: records as NAT events (RFC 7011, RFC 8158).
//!
//! | template | records                        | information elements                                                    |
//! |----------|--------------------------------|-------------------------------------------------------------------------|
//! | 256      | NAT44 session create, delete   | time, natEvent, inside and outside address and port, protocol           |
//! | 257      | the same, with destinations    | and the destination's address and port                                  |
//! | 258      | port block taken, returned     | time, natEvent, outside address, first and last port                    |
//!
//! A block is an egress address's, and not a pod's, so its records have no inside address. What is said of the log itself
//! has no NAT event; the file and syslog have it.

use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::entry::{BlockEntry, Entry, SessionEntry, What, protocol_number};
use super::outlet::{Sink, Unwritten};
use super::place::{Line, Place};

/// Bytes of a message that fits into any packet (RFC 7011 section 10.3.3).
const MOST_BYTES: usize = 1400;
const VERSION: u16 = 10;
const HEADER_BYTES: usize = 16;
const SET_HEADER_BYTES: usize = 4;
const TEMPLATE_SET: u16 = 2;

/// How often a collector of datagrams, which may have missed them, is sent the templates.
const TEMPLATES_AGAIN: Duration = Duration::from_secs(60);

/// An information element, and its bytes.
type Element = (u16, u16);

const TIME: Element = (323, 8); // observationTimeMilliseconds
const NAT_EVENT: Element = (230, 1);
const SOURCE_ADDRESS: Element = (8, 4);
const SOURCE_PORT: Element = (7, 2);
const POST_NAT_SOURCE_ADDRESS: Element = (225, 4);
const POST_NAPT_SOURCE_PORT: Element = (227, 2);
const PROTOCOL: Element = (4, 1);
const DESTINATION_ADDRESS: Element = (12, 4);
const DESTINATION_PORT: Element = (11, 2);
const PORT_RANGE_START: Element = (361, 2);
const PORT_RANGE_END: Element = (362, 2);

const SESSION: [Element; 7] =
    [TIME, NAT_EVENT, SOURCE_ADDRESS, SOURCE_PORT, POST_NAT_SOURCE_ADDRESS, POST_NAPT_SOURCE_PORT, PROTOCOL];
const DESTINATION: [Element; 2] = [DESTINATION_ADDRESS, DESTINATION_PORT];
const BLOCK: [Element; 5] = [TIME, NAT_EVENT, POST_NAT_SOURCE_ADDRESS, PORT_RANGE_START, PORT_RANGE_END];

/// Values of natEvent.
const SESSION_CREATE: u8 = 4;
const SESSION_DELETE: u8 = 5;
const BLOCK_ALLOCATION: u8 = 16;
const BLOCK_DEALLOCATION: u8 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Template {
    Session = 256,
    SessionWithDestination = 257,
    Block = 258,
}

impl Template {
    const ALL: [Self; 3] = [Self::Session, Self::SessionWithDestination, Self::Block];

    fn elements(self) -> Vec<Element> {
        match self {
            Self::Session => SESSION.to_vec(),
            Self::SessionWithDestination => SESSION.iter().chain(&DESTINATION).copied().collect(),
            Self::Block => BLOCK.to_vec(),
        }
    }
}

/// A collector of IPFIX.
#[derive(Debug)]
pub(super) struct IpfixSink {
    place: Place,
    line: Option<Line>,
    domain: u32,
    /// Records that were sent before, in all.
    sequence: u32,
    templates_sent: Option<Instant>,
}

impl IpfixSink {
    pub(super) fn new(place: Place, domain: u32) -> Self {
        Self { place, line: None, domain, sequence: 0, templates_sent: None }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let line = match self.line.take() {
            Some(line) => line,
            None => Line::open(&self.place)?,
        };
        self.line.insert(line).send(message)
    }

    fn send_templates(&mut self) -> io::Result<()> {
        let is_due = match (self.templates_sent, &self.line) {
            (Some(_), Some(Line::Tcp(_))) => false,
            (Some(sent), Some(Line::Udp(_) | Line::Unix(_))) => sent.elapsed() >= TEMPLATES_AGAIN,
            (None, _) | (_, None) => true,
        };
        if is_due {
            let message = self.message(&templates());
            self.send(&message)?;
            self.templates_sent = Some(Instant::now());
        }
        Ok(())
    }

    /// Makes a message of sets.
    fn message(&self, sets: &[u8]) -> Vec<u8> {
        let length = u16::try_from(HEADER_BYTES + sets.len()).expect("messages are short");
        let exported = u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(usize::from(length));
        message.extend(VERSION.to_be_bytes());
        message.extend(length.to_be_bytes());
        message.extend(exported.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(self.domain.to_be_bytes());
        message.extend(sets);
        message
    }

    /// Sends records that are all of one template, and fit in one message.
    fn send_records(&mut self, template: Template, records: &[Vec<u8>]) -> io::Result<()> {
        let message = self.message(&set(template as u16, &records.concat()));
        self.send(&message)?;
        self.sequence = self.sequence.wrapping_add(u32::try_from(records.len()).unwrap_or(u32::MAX));
        Ok(())
    }
}

impl Sink for IpfixSink {
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unwritten> {
        self.send_templates()?;
        let mut written = 0;
        while written < entries.len() {
            let (count, template, records) = gather(&entries[written..]);
            if let Some(template) = template {
                let sent = self.send_records(template, &records);
                sent.map_err(|source| Unwritten { written, source })?;
            }
            written += count;
        }
        Ok(())
    }

    fn reopen(&mut self) {
        (self.line, self.templates_sent) = (None, None);
    }
}

/// Returns as many records as are of one template and fit in one message, and how many entries these were.
fn gather(entries: &[Entry]) -> (usize, Option<Template>, Vec<Vec<u8>>) {
    let (mut template, mut records) = (None, Vec::new());
    let mut bytes = HEADER_BYTES + SET_HEADER_BYTES;
    for (count, entry) in entries.iter().enumerate() {
        let Some((of, record)) = encode(entry) else { continue };
        if template.is_some_and(|template| template != of) || bytes + record.len() > MOST_BYTES {
            return (count, template, records);
        }
        bytes += record.len();
        template = Some(of);
        records.push(record);
    }
    (entries.len(), template, records)
}

fn encode(entry: &Entry) -> Option<(Template, Vec<u8>)> {
    let time = u64::try_from(entry.time.as_millisecond()).unwrap_or_default();
    let record = |event: u8| {
        let mut record = time.to_be_bytes().to_vec();
        record.push(event);
        record
    };
    match &entry.what {
        What::SessionBegin(session) => Some(encode_session(record(SESSION_CREATE), session)),
        What::SessionEnd(session) => Some(encode_session(record(SESSION_DELETE), session)),
        What::BlockBegin(block) => Some((Template::Block, encode_block(record(BLOCK_ALLOCATION), block))),
        What::BlockEnd(block) => Some((Template::Block, encode_block(record(BLOCK_DEALLOCATION), block))),
        What::LogBegin(_) | What::NotWritten(_) => None,
    }
}

fn encode_session(mut record: Vec<u8>, session: &SessionEntry) -> (Template, Vec<u8>) {
    record.extend(session.inside_address.octets());
    record.extend(session.inside_port.to_be_bytes());
    record.extend(session.outside_address.octets());
    record.extend(session.outside_port.to_be_bytes());
    record.push(protocol_number(&session.protocol).unwrap_or_default());
    match session.remote_address.zip(session.remote_port) {
        None => (Template::Session, record),
        Some((address, port)) => {
            record.extend(address.octets());
            record.extend(port.to_be_bytes());
            (Template::SessionWithDestination, record)
        }
    }
}

fn encode_block(mut record: Vec<u8>, block: &BlockEntry) -> Vec<u8> {
    record.extend(block.outside_address.octets());
    record.extend(block.first_port.to_be_bytes());
    record.extend(block.last_port.to_be_bytes());
    record
}

/// Returns the set of all templates.
fn templates() -> Vec<u8> {
    let mut records = Vec::new();
    for template in Template::ALL {
        let elements = template.elements();
        let count = u16::try_from(elements.len()).expect("a template has a few elements");
        records.extend((template as u16).to_be_bytes());
        records.extend(count.to_be_bytes());
        for (element, bytes) in elements {
            records.extend(element.to_be_bytes());
            records.extend(bytes.to_be_bytes());
        }
    }
    set(TEMPLATE_SET, &records)
}

fn set(id: u16, records: &[u8]) -> Vec<u8> {
    let length = u16::try_from(SET_HEADER_BYTES + records.len()).expect("sets are short");
    let mut set = id.to_be_bytes().to_vec();
    set.extend(length.to_be_bytes());
    set.extend(records);
    set
}

#[cfg(test)]
#[path = "ipfix_tests.rs"]
mod tests;
