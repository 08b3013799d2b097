use std::collections::HashMap;
use std::net::UdpSocket;

use conntrack::{Cause, Event};
use proptest::prelude::*;

use super::*;
use crate::nat_log::entry::tests::{time, translation};
use crate::nat_log::names::Names;

/// A collector that knows no more than what it is told.
#[derive(Debug, Default)]
struct Collector {
    templates: HashMap<u16, Vec<Element>>,
    records: Vec<(u16, HashMap<u16, Vec<u8>>)>,
}

impl Collector {
    /// Reads a message, and returns its sequence number.
    fn take(&mut self, message: &[u8]) -> u32 {
        assert!(message.len() <= MOST_BYTES);
        let half = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        assert_eq!((half(message), usize::from(half(&message[2..]))), (VERSION, message.len()));
        let mut sets = &message[HEADER_BYTES..];
        while !sets.is_empty() {
            let (id, length) = (half(sets), usize::from(half(&sets[2..])));
            let (set, rest) = sets.split_at(length);
            self.take_set(id, &set[SET_HEADER_BYTES..]);
            sets = rest;
        }
        u32::from_be_bytes(message[8..12].try_into().unwrap())
    }

    fn take_set(&mut self, id: u16, mut set: &[u8]) {
        let half = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        while !set.is_empty() {
            if id == TEMPLATE_SET {
                let (template, count) = (half(set), usize::from(half(&set[2..])));
                let (elements, rest) = set[4..].split_at(4 * count);
                let elements = elements.chunks(4).map(|element| (half(element), half(&element[2..])));
                self.templates.insert(template, elements.collect());
                set = rest;
            } else {
                let mut record = HashMap::new();
                for (element, bytes) in &self.templates[&id] {
                    let (value, rest) = set.split_at(usize::from(*bytes));
                    record.insert(*element, value.to_vec());
                    set = rest;
                }
                self.records.push((id, record));
            }
        }
    }
}

fn entry(event: &Event, has_destinations: bool) -> Entry {
    Entry::of(time(5), event, &Names::sample(), has_destinations)
}

fn exported(entries: &[Entry]) -> (Collector, Vec<u32>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut sink = IpfixSink::new(Place::Udp(socket.local_addr().unwrap()), 7);
    let (mut collector, mut sequences, mut buffer) = (Collector::default(), Vec::new(), [0; 2048]);
    // Some at a time, as the socket's buffer is small.
    for entries in entries.chunks(200) {
        sink.write(entries).unwrap();
        while let Ok(length) = socket.recv(&mut buffer) {
            sequences.push(collector.take(&buffer[..length]));
        }
    }
    (collector, sequences)
}

#[test]
fn records_are_nat_events_of_rfc_8158() {
    let egress = [192, 168, 55, 113].into();
    let entries = [
        entry(&Event::Began(translation(40_123)), false),
        entry(&Event::Ended(translation(40_123), Cause::Idle), true),
        entry(&Event::BlockTaken(egress, 40_064), false),
        entry(&Event::BlockReturned(egress, 40_064), false),
        Entry::omission(time(5), 3, "rate"),
    ];
    let (collector, sequences) = exported(&entries);
    assert_eq!(sequences, [0, 0, 1, 2], "templates count for nothing");
    let value = |record: usize, element: Element| collector.records[record].1.get(&element.0).cloned();
    let events: Vec<_> = (0..4).map(|record| value(record, NAT_EVENT).unwrap()[0]).collect();
    assert_eq!((collector.records.len(), events), (4, vec![4, 5, 16, 17]));
    let milliseconds = u64::try_from(time(5).as_millisecond()).unwrap();
    assert_eq!(value(0, TIME).unwrap(), milliseconds.to_be_bytes());
    assert_eq!(value(0, SOURCE_ADDRESS).unwrap(), [10, 132, 0, 5]);
    assert_eq!(value(0, SOURCE_PORT).unwrap(), 40_000u16.to_be_bytes());
    assert_eq!(value(0, POST_NAT_SOURCE_ADDRESS).unwrap(), [192, 168, 55, 113]);
    assert_eq!(value(0, POST_NAPT_SOURCE_PORT).unwrap(), 40_123u16.to_be_bytes());
    assert_eq!(value(0, PROTOCOL).unwrap(), [6]);
    assert_eq!((value(0, DESTINATION_ADDRESS), value(0, DESTINATION_PORT)), (None, None));
    assert_eq!(value(1, DESTINATION_ADDRESS).unwrap(), [198, 51, 100, 7]);
    assert_eq!(value(1, DESTINATION_PORT).unwrap(), 443u16.to_be_bytes());
    assert_eq!(value(2, PORT_RANGE_START).unwrap(), 40_064u16.to_be_bytes());
    assert_eq!(value(2, PORT_RANGE_END).unwrap(), 40_127u16.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_record_arrives_in_order_and_is_counted(kinds in prop::collection::vec(0..4u8, 0..600)) {
        let egress = [192, 168, 55, 113].into();
        let entries: Vec<_> = (0u16..).zip(&kinds).map(|(port, kind)| match kind {
            0 => entry(&Event::Began(translation(port)), false),
            1 => entry(&Event::Began(translation(port)), true),
            2 => entry(&Event::BlockTaken(egress, port), false),
            _ => Entry::omission(time(0), 1, "rate"),
        }).collect();
        let (collector, _) = exported(&entries);
        let told: Vec<_> = collector.records.iter().map(|(template, record)| {
            let port = record.get(&POST_NAPT_SOURCE_PORT.0).or_else(|| record.get(&PORT_RANGE_START.0)).unwrap();
            (*template, u16::from_be_bytes([port[0], port[1]]))
        }).collect();
        let expected: Vec<_> = (0u16..).zip(&kinds).filter(|(_, kind)| **kind < 3)
            .map(|(port, kind)| (256 + u16::from(*kind), port)).collect();
        prop_assert_eq!(told, expected);
    }
}
