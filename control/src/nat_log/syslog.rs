//! Syslog: each record is one message of RFC 5424, whose text is the record's JSON. Over TCP each comes behind the number
//! of its bytes (RFC 6587 section 3.4.1).

use std::io::{self, Write};

use syslog_fmt::v5424::{Config, Formatter, Timestamp};
use syslog_fmt::{Facility, Severity};

use super::entry::{Entry, What};
use super::outlet::{Sink, Unwritten};
use super::place::{Line, Place};

/// What messages are sent as.
const APP_NAME: &str = "spillway-nat";

/// The facilities that are not spoken for (RFC 5424 section 6.2.1), by name.
pub const FACILITIES: [(&str, Facility); 10] = [
    ("daemon", Facility::Daemon),
    ("user", Facility::User),
    ("local0", Facility::Local0),
    ("local1", Facility::Local1),
    ("local2", Facility::Local2),
    ("local3", Facility::Local3),
    ("local4", Facility::Local4),
    ("local5", Facility::Local5),
    ("local6", Facility::Local6),
    ("local7", Facility::Local7),
];

/// Somebody who takes syslog messages.
#[derive(Debug)]
pub(super) struct SyslogSink {
    place: Place,
    line: Option<Line>,
    formatter: Formatter,
    text: Vec<u8>,
    message: Vec<u8>,
}

impl SyslogSink {
    pub(super) fn new(place: Place, facility: &str, host: &str) -> Self {
        let known = FACILITIES.iter().find(|(name, _)| *name == facility);
        let facility = known.map_or(Facility::Local0, |(_, facility)| *facility);
        let process = std::process::id().to_string();
        let config =
            Config { facility, hostname: Some(host), app_name: Some(APP_NAME), proc_id: Some(&process) };
        let formatter = config.into_formatter();
        Self { place, line: None, formatter, text: Vec::new(), message: Vec::new() }
    }

    /// Makes the message of a record.
    fn format(&mut self, entry: &Entry) -> io::Result<()> {
        self.text.clear();
        entry.write_line(&mut self.text);
        let text = self.text.strip_suffix(b"\n").unwrap_or(&self.text);
        let severity = match entry.what {
            What::NotWritten(_) => Severity::Warning,
            What::SessionBegin(_)
            | What::SessionEnd(_)
            | What::BlockBegin(_)
            | What::BlockEnd(_)
            | What::LogBegin(_) => Severity::Info,
        };
        let time = format!("{:.6}", entry.time);
        self.message.clear();
        let time = Timestamp::PreformattedStr(&time);
        // JSON is UTF-8; as plain bytes it goes without the mark that collectors would have to cut off.
        self.formatter.write_without_data(&mut self.message, severity, time, text, Some(entry.event()))
    }

    fn send(&mut self, entry: &Entry) -> io::Result<()> {
        self.format(entry)?;
        let line = match self.line.take() {
            Some(line) => line,
            None => Line::open(&self.place)?,
        };
        let line = self.line.insert(line);
        if line.is_stream() {
            // In one piece with the message, so that no packet has the number alone.
            let mut framed = Vec::with_capacity(self.message.len() + 8);
            write!(framed, "{} ", self.message.len())?;
            framed.extend_from_slice(&self.message);
            return line.send(&framed);
        }
        line.send(&self.message)
    }
}

impl Sink for SyslogSink {
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unwritten> {
        for (written, entry) in entries.iter().enumerate() {
            self.send(entry).map_err(|source| Unwritten { written, source })?;
        }
        Ok(())
    }

    fn reopen(&mut self) {
        self.line = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixDatagram;

    use conntrack::Event;

    use super::*;
    use crate::nat_log::entry::tests::{time, translation};
    use crate::nat_log::names::Names;

    fn entry() -> Entry {
        Entry::of(time(5), &Event::Began(translation(40_123)), &Names::sample(), false)
    }

    fn json() -> String {
        let mut line = Vec::new();
        entry().write_line(&mut line);
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    fn expected() -> String {
        let process = std::process::id();
        format!("<134>1 2026-01-01T00:00:05.000000Z gw1 spillway-nat {process} sessionBegin - {}", json())
    }

    fn sink(place: Place) -> SyslogSink {
        SyslogSink::new(place, "local0", "gw1")
    }

    #[test]
    fn datagrams_have_a_message_each() {
        let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
        sink(Place::Udp(collector.local_addr().unwrap())).write(&[entry()]).unwrap();
        let mut buffer = [0; 2048];
        let length = collector.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected());
    }

    #[test]
    fn the_hosts_own_socket_is_spoken_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let collector = UnixDatagram::bind(&path).unwrap();
        sink(Place::Unix(path)).write(&[entry()]).unwrap();
        let mut buffer = [0; 2048];
        let length = collector.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), expected());
    }

    #[test]
    fn messages_of_a_connection_come_behind_their_length() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sink = sink(Place::Tcp(collector.local_addr().unwrap()));
        sink.write(&[entry(), entry()]).unwrap();
        drop(sink);
        let mut got = String::new();
        collector.accept().unwrap().0.read_to_string(&mut got).unwrap();
        let one = format!("{} {}", expected().len(), expected());
        assert_eq!(got, format!("{one}{one}"));
    }

    #[test]
    fn a_collector_that_is_not_there_is_an_error_and_is_found_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut sink = sink(Place::Unix(path.clone()));
        assert_eq!(sink.write(&[entry()]).unwrap_err().written, 0);
        let _collector = UnixDatagram::bind(&path).unwrap();
        sink.write(&[entry()]).unwrap();
    }
}
