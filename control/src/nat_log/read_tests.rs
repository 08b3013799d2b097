use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use conntrack::{Cause, Event, Translation};
use proptest::prelude::*;

use super::*;
use crate::nat_log::entry::Continuity;
use crate::nat_log::entry::tests::{time, translation};
use crate::nat_log::names::Names;

const PORT: u16 = 40_123;

/// A log under construction.
struct Log {
    directory: tempfile::TempDir,
    lines: Vec<u8>,
    has_destinations: bool,
}

impl Log {
    fn new(has_destinations: bool) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), lines: Vec::new(), has_destinations }
    }

    fn add(&mut self, second: i64, event: &Event) {
        Entry::of(time(second), event, &Names::sample(), self.has_destinations).write_line(&mut self.lines);
    }

    fn restart(&mut self, second: i64, continues: bool) {
        let what = What::LogBegin(Continuity { continues, restored: 0 });
        Entry { time: time(second), what }.write_line(&mut self.lines);
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("nat.jsonl")
    }

    /// Puts what was added in the file that is the newest but `number`.
    fn write(&mut self, number: u32) {
        fs::write(rotated(&self.path(), number), std::mem::take(&mut self.lines)).unwrap();
    }

    fn who(&self, from: i64, until: i64) -> Vec<(Option<u16>, Option<i64>, Option<i64>)> {
        let found = search(&self.path(), &question(), window(from, until)).unwrap();
        let second = |time: Timestamp| time.as_second() - super::super::entry::tests::time(0).as_second();
        let row = |holder: &Holder| (holder.inside_port, holder.began.map(second), holder.ended.map(second));
        found.holders.iter().map(row).collect()
    }
}

fn window(from: i64, until: i64) -> Window {
    Window { from: time(from), until: time(until) }
}

fn question() -> Question {
    let outside = SocketAddrV4::new([192, 168, 55, 113].into(), PORT);
    Question { outside, protocol: None, remote: None, window: None }
}

fn pod(inside_port: u16, outside_port: u16) -> Translation {
    let mut translation = translation(outside_port);
    translation.inside_tuple.source_port = inside_port;
    translation
}

fn began(inside_port: u16) -> Event {
    Event::Began(pod(inside_port, PORT))
}

fn ended(inside_port: u16) -> Event {
    Event::Ended(pod(inside_port, PORT), Cause::Idle)
}

#[test]
fn who_had_the_port_then_is_found_and_nobody_else() {
    let mut log = Log::new(false);
    log.add(10, &began(1));
    log.add(11, &Event::Began(pod(9, PORT / 10)));
    log.add(20, &ended(1));
    log.add(30, &began(2));
    log.add(40, &ended(2));
    log.add(50, &began(3));
    log.write(0);
    assert_eq!(log.who(9, 9), []);
    assert_eq!(log.who(10, 10), [(Some(1), Some(10), Some(20))]);
    assert_eq!(log.who(20, 20), [(Some(1), Some(10), Some(20))]);
    assert_eq!(log.who(25, 25), []);
    assert_eq!(log.who(15, 35), [(Some(1), Some(10), Some(20)), (Some(2), Some(30), Some(40))]);
    assert_eq!(log.who(60, 60), [(Some(3), Some(50), None)]);
}

#[test]
fn pods_that_share_the_port_are_all_told_and_the_remote_end_tells_them_apart() {
    let mut log = Log::new(true);
    let mut other = pod(2, PORT);
    other.inside_tuple.destination_port = 80;
    log.add(10, &began(1));
    log.add(10, &Event::Began(other));
    log.write(0);
    assert_eq!(log.who(15, 15), [(Some(1), Some(10), None), (Some(2), Some(10), None)]);
    let asked = Question { remote: Some("198.51.100.7:80".parse().unwrap()), ..question() };
    let found = search(&log.path(), &asked, window(15, 15)).unwrap();
    assert_eq!(found.holders.iter().map(|holder| holder.inside_port).collect::<Vec<_>>(), [Some(2)]);
    assert_eq!(found.holders[0].pod.as_ref().map(|pod| pod.pod.as_str()), Some("web-0"));
}

#[test]
fn files_are_read_oldest_first() {
    let mut log = Log::new(false);
    log.add(10, &began(1));
    log.write(2);
    log.add(20, &ended(1));
    log.add(30, &began(2));
    log.write(1);
    log.add(40, &ended(2));
    log.write(0);
    assert_eq!(log.who(15, 15), [(Some(1), Some(10), Some(20))]);
    assert_eq!(log.who(35, 35), [(Some(2), Some(30), Some(40))]);
    fs::remove_file(log.path()).unwrap();
    assert_eq!(log.who(35, 35), [(Some(2), Some(30), None)], "it is just being rotated");
}

#[test]
fn an_end_without_a_begin_tells_of_a_session_from_before_the_log() {
    let mut log = Log::new(false);
    log.add(20, &ended(1));
    log.add(30, &began(1));
    log.add(40, &ended(1));
    log.write(0);
    assert_eq!(log.who(10, 10), [(Some(1), None, Some(20))]);
    assert_eq!(log.who(25, 25), []);
}

#[test]
fn sessions_go_on_over_a_restart_that_restored_them_and_end_with_one_that_did_not() {
    let mut log = Log::new(false);
    log.restart(1, false);
    log.add(10, &began(1));
    log.restart(20, true);
    log.add(30, &began(2));
    log.restart(40, false);
    log.add(50, &ended(3));
    log.write(0);
    assert_eq!(log.who(25, 25), [(Some(1), Some(10), Some(40))]);
    assert_eq!(log.who(45, 45), [(Some(3), None, Some(50))]);
    assert_eq!(log.who(35, 35), [(Some(1), Some(10), Some(40)), (Some(2), Some(30), Some(40))]);
}

#[test]
fn blocks_tell_the_tenant() {
    let mut log = Log::new(false);
    let egress = [192, 168, 55, 113].into();
    log.add(10, &Event::BlockTaken(egress, 40_064));
    log.add(10, &Event::BlockTaken(egress, 40_128));
    log.add(20, &Event::BlockReturned(egress, 40_064));
    log.write(0);
    let found = search(&log.path(), &question(), window(15, 15)).unwrap();
    let tenants: Vec<_> = found.holders.iter().map(|holder| holder.tenant.as_deref()).collect();
    assert_eq!(tenants, [Some("ns-blue")]);
    assert_eq!(log.who(25, 25), []);
}

#[test]
fn what_is_missing_from_the_log_is_told() {
    let mut log = Log::new(false);
    log.add(10, &began(1));
    Entry::omission(time(11), 7, "rate").write_line(&mut log.lines);
    Entry::omission(time(21), 5, "queue").write_line(&mut log.lines);
    log.write(0);
    let found = search(&log.path(), &question(), window(15, 15)).unwrap();
    assert_eq!((found.not_written, found.begins), (7, Some(time(10))));
}

#[test]
fn what_is_no_record_disturbs_nothing() {
    let mut log = Log::new(false);
    log.lines.extend_from_slice(b"\"outsideAddress\":\"192.168.55.113\",\"outsidePort\":40123 half a line\n");
    log.lines.extend(std::iter::repeat_n(b'x', 3 * READ_AT_ONCE));
    log.lines.push(b'\n');
    log.add(10, &began(1));
    log.lines.extend_from_slice(b"{\"time\":\"2026-01-01T00:00:20Z\",\"event\":\"sessionEnd\",\"outsideAdd");
    log.write(0);
    assert_eq!(log.who(15, 15), [(Some(1), Some(10), None)]);
    let missing = search(&log.directory.path().join("none"), &question(), window(0, 0)).unwrap_err();
    assert!(missing.to_string().contains("none does not exist"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_finds_what_a_naive_reader_finds(
        lives in prop::collection::vec((0..40i64, 0..20i64, 0..3u16, 0..3u16), 0..60),
        from in 0..60i64,
        length in 0..10i64,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        // Each pod port holds the outside port once at a time.
        let mut busy_until = HashMap::new();
        let lives: Vec<_> = lives
            .iter()
            .filter(|(begin, span, pod, port)| {
                let until = busy_until.entry((*pod, *port)).or_insert(-1);
                let is_free = begin > until;
                if is_free { *until = begin + span; }
                is_free
            })
            .collect();
        let mut events: Vec<(i64, Event)> = Vec::new();
        for (begin, span, inside, port) in &lives {
            events.push((*begin, Event::Began(pod(*inside, PORT + port))));
            events.push((begin + span, Event::Ended(pod(*inside, PORT + port), Cause::Idle)));
        }
        events.sort_by_key(|(second, event)| (*second, matches!(event, Event::Ended(..))));
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(events.len() + 1)).collect();
        cuts.sort_unstable();
        let mut log = Log::new(false);
        let mut number = u32::try_from(cuts.len()).unwrap();
        for (place, (second, event)) in events.iter().enumerate() {
            while cuts.first().is_some_and(|cut| *cut <= place) {
                cuts.remove(0);
                log.write(number);
                number -= 1;
            }
            log.add(*second, event);
        }
        while number > 0 {
            log.write(number);
            number -= 1;
        }
        log.write(0);
        let until = from + length;
        let mut expected: Vec<_> = lives
            .iter()
            .filter(|(begin, span, _, port)| *port == 0 && *begin <= until && begin + span >= from)
            .map(|(begin, span, inside, _)| (Some(*inside), Some(*begin), Some(begin + span)))
            .collect();
        let mut found = log.who(from, until);
        expected.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}
