//! The journal of systemd, in its own protocol: a field of an event is a field of the journal.
//!
//! `journalctl` shows the message alone, so that this has the fields too.

use std::fmt::Write;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

use serde_json::Value;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::line::Said;
use super::targets::name_of;

/// What the names of fields begin with in the journal.
pub const PREFIX: &str = "SPILLWAY";

const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest message or field, in bytes. An entry is a datagram, which may have some 200 KiB.
const LONGEST: usize = 16 << 10;

/// Writes events to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// Connects to the journal.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.send_to(&[], SOCKET)?; // shows that it listens; what is empty it ignores
        Ok(Self { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // A line that the journal does not take cannot be told to anybody.
        let _ = self.socket.send_to(&entry(event), SOCKET);
    }
}

/// Returns an event as the journal wants it (systemd.io/JOURNAL_NATIVE_PROTOCOL).
fn entry(event: &Event<'_>) -> Vec<u8> {
    let (said, metadata) = (Said::by(event), event.metadata());
    let mut entry = Vec::with_capacity(512);
    put(&mut entry, "MESSAGE", &sentence(&said));
    put(&mut entry, "PRIORITY", priority(*metadata.level()));
    put(&mut entry, "SYSLOG_IDENTIFIER", "spillway");
    put(
        &mut entry,
        &format!("{PREFIX}_TARGET"),
        name_of(said.module.as_deref().unwrap_or(metadata.target())),
    );
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        put(&mut entry, "CODE_FILE", file);
        put(&mut entry, "CODE_LINE", &line.to_string());
    }
    for (name, value) in &said.fields {
        let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_").to_ascii_uppercase();
        put(&mut entry, &format!("{PREFIX}_{name}"), &plain(value));
    }
    entry
}

/// Puts a field into an entry: its name, the length of its value, its value.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value.as_bytes()[..value.floor_char_boundary(LONGEST)];
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Returns the message and the fields, as people read them on a line.
fn sentence(said: &Said) -> String {
    let mut sentence = said.message.clone();
    for (name, value) in &said.fields {
        let value = plain(value);
        let is_word =
            !value.is_empty() && !value.contains(|letter: char| letter.is_whitespace() || letter == '"');
        // Writing to a string does not fail.
        let _ =
            if is_word { write!(sentence, " {name}={value}") } else { write!(sentence, " {name}={value:?}") };
    }
    sentence
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the level as syslog(3) counts.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// Tells whether stderr is connected to the journal: the environment then has its device and inode.
pub fn is_stderr() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let own = std::fs::metadata("/proc/self/fd/2").map(|file| (file.dev(), file.ino()));
    own.is_ok_and(|own| is_stream(&stream, own))
}

fn is_stream(text: &str, (device, inode): (u64, u64)) -> bool {
    text.split_once(':')
        .is_some_and(|(first, second)| first.parse() == Ok(device) && second.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps the entry of every event.
    struct Keeper(Arc<Mutex<Vec<u8>>>);

    impl<S: Subscriber> Layer<S> for Keeper {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().extend(entry(event));
        }
    }

    /// Reads the fields of an entry.
    fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()).try_into().unwrap();
            assert_eq!(rest[length], b'\n');
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(&rest[..length])));
            entry = &rest[length + 1..];
        }
        fields
    }

    #[test]
    fn an_entry_has_the_fields_one_by_one_and_in_its_message() {
        let kept = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Keeper(Arc::clone(&kept)));
        tracing::subscriber::with_default(subscriber, || {
            let doing = "asleep\nin poll";
            tracing::warn!(target: "control::netlink::routes", doing, tenant = "ns-blue", worker = 3, "not {}", "done");
        });
        let mut fields = fields(&kept.lock().unwrap());
        fields.retain(|(name, _)| !name.starts_with("CODE_"));
        let expected = [
            ("MESSAGE", r#"not done doing="asleep\nin poll" tenant=ns-blue worker=3"#),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "spillway"),
            ("SPILLWAY_TARGET", "netlink"),
            ("SPILLWAY_DOING", "asleep\nin poll"),
            ("SPILLWAY_TENANT", "ns-blue"),
            ("SPILLWAY_WORKER", "3"),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_cut() {
        let mut entry = Vec::new();
        put(&mut entry, "MESSAGE", &"x".repeat(1 << 20));
        assert_eq!(fields(&entry)[0].1.len(), LONGEST);
    }

    #[test]
    fn a_stream_is_the_journals_if_device_and_inode_are_the_same() {
        let table = [
            ("8:17", true),
            ("8:18", false),
            ("9:17", false),
            ("", false),
            ("8", false),
            ("8:", false),
            ("a:b", false),
        ];
        for (text, expected) in table {
            assert_eq!(is_stream(text, (8, 17)), expected, "{text}");
        }
    }
}
