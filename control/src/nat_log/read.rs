//! Looks through a log file, and those that it was before, for who was behind an address and port.
//!
//! Lines are read in blocks, and only those are taken apart that name what is asked for, so that a gigabyte takes about as
//! long as reading it does. All of them are looked at: a session may have begun at any time before.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aho_corasick::{AhoCorasick, Input};
use conntrack::blocks::BLOCK_PORTS;
use jiff::Timestamp;
use memchr::{memchr, memrchr};

use super::entry::{Entry, SessionEntry, What};
use super::file::rotated;
use super::who::{Found, Holder, Key, Question, Window};

const READ_AT_ONCE: usize = 1 << 20;

/// Most bytes of one line; a longer one is no record.
const LONGEST_LINE: usize = 1 << 16;

/// Looks for who was behind an address and port in `window`, in the log whose newest file is `path`.
///
/// # Errors
/// When a file cannot be read.
pub fn search(path: &Path, question: &Question, window: Window) -> io::Result<Found> {
    let mut search = Search::new(question, window)?;
    for file in open_all(path)?.into_iter().rev() {
        search.read(file)?;
    }
    Ok(search.finish())
}

/// Opens all files of a log, newest first. One that is rotated meanwhile is not read twice.
fn open_all(path: &Path) -> io::Result<Vec<File>> {
    let (mut files, mut known) = (Vec::new(), HashSet::new());
    for number in 0.. {
        let file = match File::open(rotated(path, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if number == 0 {
                    continue; // it has just been rotated, or nothing was written yet
                }
                break;
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if known.insert((metadata.dev(), metadata.ino())) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display())));
    }
    Ok(files)
}

/// A search that goes on, over records in order.
struct Search<'a> {
    question: &'a Question,
    window: Window,
    needles: AhoCorasick,
    found: Found,
    /// Who was behind it in the window, or may yet turn out to be, by order.
    holders: BTreeMap<u64, Holder>,
    next: u64,
    /// Holders that have not ended, by session, oldest first.
    open: HashMap<Key, VecDeque<u64>>,
    /// Holders of blocks of ports that have not ended.
    open_blocks: Vec<u64>,
    /// Sessions that began after the window and have not ended.
    later: HashMap<Key, usize>,
    /// Whether no session after the window can have begun before it.
    is_severed: bool,
}

impl<'a> Search<'a> {
    fn new(question: &'a Question, window: Window) -> io::Result<Self> {
        let (address, port) = (question.outside.ip(), question.outside.port());
        let block = port / BLOCK_PORTS * BLOCK_PORTS;
        let needles = [
            format!("\"outsideAddress\":\"{address}\",\"outsidePort\":{port}"),
            format!("\"outsideAddress\":\"{address}\",\"firstPort\":{block}"),
            "\"event\":\"logBegin\"".to_owned(),
            "\"event\":\"notWritten\"".to_owned(),
        ];
        Ok(Self {
            question,
            window,
            needles: AhoCorasick::new(needles).map_err(io::Error::other)?,
            found: Found::default(),
            holders: BTreeMap::new(),
            next: 0,
            open: HashMap::new(),
            open_blocks: Vec::new(),
            later: HashMap::new(),
            is_severed: false,
        })
    }

    fn read(&mut self, mut file: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; READ_AT_ONCE + LONGEST_LINE];
        let mut kept = 0;
        loop {
            let read = match file.read(&mut buffer[kept..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let filled = kept + read;
            if read == 0 {
                self.take_lines(&buffer[..filled]);
                return Ok(());
            }
            let whole = memrchr(b'\n', &buffer[..filled]).map_or(0, |end| end + 1);
            self.take_lines(&buffer[..whole]);
            kept = filled - whole;
            buffer.copy_within(whole..filled, 0);
            if kept > LONGEST_LINE {
                kept = 0;
            }
        }
    }

    /// Looks at the lines that name what is asked for.
    fn take_lines(&mut self, lines: &[u8]) {
        if self.found.begins.is_none() {
            let first = &lines[..memchr(b'\n', lines).unwrap_or(lines.len())];
            self.found.begins = serde_json::from_slice::<Entry>(first).ok().map(|entry| entry.time);
        }
        let mut at = 0;
        while let Some(hit) = self.needles.find(Input::new(lines).range(at..)) {
            let begin = memrchr(b'\n', &lines[..hit.start()]).map_or(0, |end| end + 1);
            at = memchr(b'\n', &lines[hit.end()..]).map_or(lines.len(), |end| hit.end() + end + 1);
            // What is no record was written by somebody else, or in part.
            if let Ok(entry) = serde_json::from_slice(&lines[begin..at]) {
                self.take(entry);
            }
        }
    }

    fn take(&mut self, Entry { time, what }: Entry) {
        match what {
            What::SessionBegin(session) if self.is_asked_for(&session) => self.begin(time, session),
            What::SessionEnd(session) if self.is_asked_for(&session) => self.end(time, session),
            What::BlockBegin(block) if time <= self.window.until => {
                let began = Holder { tenant: block.tenant, began: Some(time), ..Holder::default() };
                let holder = self.add(began);
                self.open_blocks.push(holder);
            }
            What::BlockEnd(block) => match self.open_blocks.pop() {
                Some(holder) => self.close(holder, time, None),
                None if time >= self.window.from && !self.is_severed => {
                    self.add(Holder { tenant: block.tenant, ended: Some(time), ..Holder::default() });
                }
                None => {}
            },
            What::LogBegin(continuity) if !continuity.continues => {
                let open = self.open.drain().flat_map(|(_, holders)| holders);
                let open: Vec<_> = open.chain(self.open_blocks.drain(..)).collect();
                for holder in open {
                    self.close(holder, time, Some("restart".to_owned()));
                }
                self.is_severed |= time > self.window.until;
            }
            What::NotWritten(omission) if time <= self.window.until => {
                self.found.not_written += omission.records;
            }
            What::SessionBegin(_)
            | What::SessionEnd(_)
            | What::BlockBegin(_)
            | What::LogBegin(_)
            | What::NotWritten(_) => {}
        }
    }

    fn is_asked_for(&self, session: &SessionEntry) -> bool {
        session.outside() == self.question.outside && self.question.is_about(&describe(session.clone()))
    }

    fn begin(&mut self, time: Timestamp, session: SessionEntry) {
        let key = Key::of(&session);
        self.found.begun.insert(key.clone());
        if time > self.window.until {
            *self.later.entry(key).or_default() += 1;
            return;
        }
        let holder = self.add(Holder { began: Some(time), ..describe(session) });
        self.open.entry(key).or_default().push_back(holder);
    }

    fn end(&mut self, time: Timestamp, session: SessionEntry) {
        let key = Key::of(&session);
        if let Some(holder) = self.open.get_mut(&key).and_then(VecDeque::pop_front) {
            return self.close(holder, time, session.reason);
        }
        if let Some(later) = self.later.get_mut(&key).filter(|later| **later > 0) {
            *later -= 1;
        } else if time >= self.window.from && !self.is_severed {
            self.add(Holder { ended: Some(time), ..describe(session) });
        }
    }

    fn add(&mut self, holder: Holder) -> u64 {
        self.next += 1;
        self.holders.insert(self.next, holder);
        self.next
    }

    fn close(&mut self, holder: u64, time: Timestamp, reason: Option<String>) {
        if time < self.window.from {
            self.holders.remove(&holder);
        } else if let Some(holder) = self.holders.get_mut(&holder) {
            (holder.ended, holder.reason) = (Some(time), reason);
        }
    }

    fn finish(self) -> Found {
        Found { holders: self.holders.into_values().collect(), ..self.found }
    }
}

fn describe(session: SessionEntry) -> Holder {
    Holder {
        tenant: session.tenant,
        protocol: Some(session.protocol),
        inside_address: Some(session.inside_address),
        inside_port: Some(session.inside_port),
        remote_address: session.remote_address,
        remote_port: session.remote_port,
        pod: session.pod,
        began: None,
        ended: None,
        reason: session.reason,
        is_live: false,
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
