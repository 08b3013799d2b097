//! The journal of systemd, in its own protocol: a field of an event is a field of the journal.

use std::io;
use std::os::unix::fs::MetadataExt;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::targets::{TARGETS, target_of};

/// What the names of fields begin with in the journal.
pub const PREFIX: &str = "SPILLWAY";

/// Writes events to the journal.
pub(super) struct Journal {
    /// One for each target, whose name each of its entries has.
    of_targets: Vec<(&'static str, tracing_journald::Layer)>,
    of_others: tracing_journald::Layer,
}

impl Journal {
    /// Connects to the journal.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn connect() -> io::Result<Self> {
        let of_target = |name: &'static str| Ok((name, connect(Some(name))?));
        let names = TARGETS.iter().map(|target| target.name);
        Ok(Self { of_targets: names.map(of_target).collect::<io::Result<_>>()?, of_others: connect(None)? })
    }

    fn of(&self, name: &str) -> &tracing_journald::Layer {
        let known = self.of_targets.iter().find(|(target, _)| *target == name);
        known.map_or(&self.of_others, |(_, layer)| layer)
    }
}

fn connect(target: Option<&str>) -> io::Result<tracing_journald::Layer> {
    let priorities =
        PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    Ok(tracing_journald::Layer::new()?
        .with_syslog_identifier("spillway".to_owned())
        .with_field_prefix(Some(PREFIX.to_owned()))
        .with_priority_mappings(priorities)
        .with_custom_fields(target.map(|name| (format!("{PREFIX}_TARGET"), name))))
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.of(target_of(event.metadata())).on_event(event, context);
    }

    // A span is written down once, whichever events refer to it.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.of_others.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.of_others.on_record(id, values, context);
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
    use super::*;

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
