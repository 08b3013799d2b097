//! One record of the log: what is written, and read again by whoever asks who was behind an address.

use std::net::{Ipv4Addr, SocketAddrV4};

use conntrack::blocks::BLOCK_PORTS;
use conntrack::{Cause, Event, Protocol, Translation};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::Names;
use crate::kubernetes::state::PodName;

/// A record. As JSON it is one line, whose fields are named and spelt as those of the API's sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When it happened, to a tenth of a second.
    #[serde(with = "micros")]
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum What {
    /// A session began.
    SessionBegin(SessionEntry),
    /// A session ended.
    SessionEnd(SessionEntry),
    /// A worker took a block of ports.
    BlockBegin(BlockEntry),
    /// A worker gave a block of ports back.
    BlockEnd(BlockEntry),
    /// The daemon started.
    LogBegin(Continuity),
    /// Records were not written.
    NotWritten(Omission),
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionEntry {
    /// Name of the tenant; none if it is not known any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<String>,
    /// `tcp`, `udp`, `icmp` or another name that `spillway sessions` has.
    pub protocol: String,
    /// The pod's address.
    pub inside_address: Ipv4Addr,
    /// The pod's port, or ICMP identifier.
    pub inside_port: u16,
    /// Egress address that stood for the pod.
    pub outside_address: Ipv4Addr,
    /// Port, or ICMP identifier, that stood for the pod's.
    pub outside_port: u16,
    /// Address that the pod talked to; only where destinations are asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remote_address: Option<Ipv4Addr>,
    /// Port that the pod talked to; likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remote_port: Option<u16>,
    /// The pod, of a session that began, where Kubernetes knows it.
    #[serde(flatten)]
    pub pod: Option<PodName>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// A block of ports of an egress address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockEntry {
    /// Name of the tenant; none if it is not known any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<String>,
    /// Egress address.
    pub outside_address: Ipv4Addr,
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}

/// How the log goes on after a start of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Continuity {
    /// Whether the sessions of the process before went on, but for those whose end follows; else all of them had ended.
    pub continues: bool,
    /// Sessions that went on.
    pub restored: u64,
}

/// Records that were not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Omission {
    /// How many.
    pub records: u64,
    /// `rate`: more than the config file allows in a second. `queue`: a worker's queue was full. `sink`: what is written
    /// to did not take them.
    pub reason: String,
}

impl Entry {
    /// Describes an event of a worker.
    pub fn of(time: Timestamp, event: &Event, names: &Names, has_destinations: bool) -> Self {
        let session = |translation: &Translation| session(translation, names, has_destinations);
        let what = match event {
            Event::Began(translation) => {
                let pod = names.pod(translation.inside_tuple.source);
                What::SessionBegin(SessionEntry { pod, ..session(translation) })
            }
            Event::Ended(translation, cause) => {
                What::SessionEnd(SessionEntry { reason: Some(reason(*cause)), ..session(translation) })
            }
            Event::BlockTaken(egress, port) => What::BlockBegin(block(*egress, *port, names)),
            Event::BlockReturned(egress, port) => What::BlockEnd(block(*egress, *port, names)),
        };
        Self { time, what }
    }

    /// Describes records that were not written.
    pub fn omission(time: Timestamp, records: u64, reason: &str) -> Self {
        Self { time, what: What::NotWritten(Omission { records, reason: reason.to_owned() }) }
    }

    /// Appends the record to JSON lines.
    pub fn write_line(&self, lines: &mut Vec<u8>) {
        // A vector takes everything, and all keys are strings.
        if serde_json::to_writer(&mut *lines, self).is_ok() {
            lines.push(b'\n');
        }
    }

    /// Returns the name of the event.
    pub fn event(&self) -> &'static str {
        match self.what {
            What::SessionBegin(_) => "sessionBegin",
            What::SessionEnd(_) => "sessionEnd",
            What::BlockBegin(_) => "blockBegin",
            What::BlockEnd(_) => "blockEnd",
            What::LogBegin(_) => "logBegin",
            What::NotWritten(_) => "notWritten",
        }
    }
}

impl SessionEntry {
    /// Returns what stood for the pod.
    pub fn outside(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.outside_address, self.outside_port)
    }
}

fn session(translation: &Translation, names: &Names, has_destinations: bool) -> SessionEntry {
    let Translation { gateway, inside_tuple, outside } = *translation;
    SessionEntry {
        tenant: names.tenant(gateway),
        protocol: inside_tuple.protocol.name().to_owned(),
        inside_address: inside_tuple.source,
        inside_port: inside_tuple.source_port,
        outside_address: outside.0,
        outside_port: outside.1,
        remote_address: has_destinations.then_some(inside_tuple.destination),
        remote_port: has_destinations.then_some(inside_tuple.destination_port),
        pod: None,
        reason: None,
    }
}

fn block(outside_address: Ipv4Addr, first_port: u16, names: &Names) -> BlockEntry {
    let last_port = first_port.saturating_add(BLOCK_PORTS - 1);
    BlockEntry { tenant: names.tenant_of_egress(outside_address), outside_address, first_port, last_port }
}

fn reason(cause: Cause) -> String {
    cause.name().to_owned()
}

/// Returns the IANA number of a protocol by its name.
pub fn protocol_number(name: &str) -> Option<u8> {
    (0..=u8::MAX).filter_map(Protocol::from_number).find(|known| known.name() == name).map(Protocol::number)
}

/// RFC 3339 in UTC, always with six digits of the second.
mod micros {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{time:.6}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(from)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use conntrack::{FiveTuple, Portless};

    use super::*;

    pub(in crate::nat_log) fn translation(outside_port: u16) -> Translation {
        Translation {
            gateway: [192, 168, 99, 13].into(),
            inside_tuple: FiveTuple {
                source: [10, 132, 0, 5].into(),
                destination: [198, 51, 100, 7].into(),
                source_port: 40_000,
                destination_port: 443,
                protocol: Protocol::Tcp,
            },
            outside: ([192, 168, 55, 113].into(), outside_port),
        }
    }

    pub(in crate::nat_log) fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    fn line(event: &Event, has_destinations: bool) -> String {
        let mut lines = Vec::new();
        Entry::of(time(5), event, &Names::sample(), has_destinations).write_line(&mut lines);
        let entry: Entry = serde_json::from_slice(&lines).unwrap();
        assert_eq!(entry, Entry::of(time(5), event, &Names::sample(), has_destinations), "it can be read");
        String::from_utf8(lines).unwrap()
    }

    /// Programs read these lines: fields are added, never changed.
    #[test]
    fn a_line_is_as_the_docs_say() {
        let translation = translation(40_123);
        assert_eq!(
            line(&Event::Began(translation), false),
            "{\"time\":\"2026-01-01T00:00:05.000000Z\",\"event\":\"sessionBegin\",\"tenant\":\"ns-blue\",\
             \"protocol\":\"tcp\",\"insideAddress\":\"10.132.0.5\",\"insidePort\":40000,\
             \"outsideAddress\":\"192.168.55.113\",\"outsidePort\":40123,\
             \"namespace\":\"ns-blue\",\"pod\":\"web-0\",\"node\":\"worker-1\"}\n"
        );
        assert_eq!(
            line(&Event::Ended(translation, Cause::Closed), true),
            "{\"time\":\"2026-01-01T00:00:05.000000Z\",\"event\":\"sessionEnd\",\"tenant\":\"ns-blue\",\
             \"protocol\":\"tcp\",\"insideAddress\":\"10.132.0.5\",\"insidePort\":40000,\
             \"outsideAddress\":\"192.168.55.113\",\"outsidePort\":40123,\
             \"remoteAddress\":\"198.51.100.7\",\"remotePort\":443,\"reason\":\"closed\"}\n"
        );
        assert_eq!(
            line(&Event::BlockTaken([192, 168, 55, 113].into(), 40_064), false),
            "{\"time\":\"2026-01-01T00:00:05.000000Z\",\"event\":\"blockBegin\",\"tenant\":\"ns-blue\",\
             \"outsideAddress\":\"192.168.55.113\",\"firstPort\":40064,\"lastPort\":40127}\n"
        );
    }

    #[test]
    fn destinations_are_absent_unless_asked_for() {
        for event in [Event::Began(translation(9)), Event::Ended(translation(9), Cause::Idle)] {
            assert!(!line(&event, false).contains("198.51.100.7") && !line(&event, false).contains("remote"));
            assert!(line(&event, true).contains("198.51.100.7"));
        }
    }

    #[test]
    fn protocols_have_numbers_by_name() {
        for protocol in [Protocol::Tcp, Protocol::Icmp, Protocol::Portless(Portless::Esp)] {
            assert_eq!(protocol_number(protocol.name()), Some(protocol.number()));
        }
        assert_eq!(protocol_number("sftp"), None);
    }

    #[test]
    fn every_event_has_the_name_that_its_line_has() {
        let events = [
            Event::Began(translation(9)),
            Event::Ended(translation(9), Cause::Lost),
            Event::BlockTaken([192, 168, 55, 113].into(), 64),
            Event::BlockReturned([192, 168, 55, 113].into(), 64),
        ];
        let entries = events.iter().map(|event| Entry::of(time(0), event, &Names::default(), false));
        let begin = What::LogBegin(Continuity { continues: true, restored: 0 });
        let others = [Entry { time: time(0), what: begin }, Entry::omission(time(0), 7, "rate")];
        for entry in entries.chain(others) {
            let json = serde_json::to_value(&entry).unwrap();
            assert_eq!(json["event"], entry.event());
        }
    }
}
