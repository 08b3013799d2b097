//! The file that sessions are taken down in, mapped into the process: the kernel keeps what was written, also if the
//! process is killed.
//!
//! ```text
//!   page of the header: "spillway", format, record size, workers, slots of each, check sum; when it was last true
//!   worker 0: a slot of 40 bytes for each entry of its table ([`conntrack::replication`]), zero when it is free
//!   worker 1: …
//! ```
//!
//! A file belongs on a file system in memory, such as /run: on a disk the kernel writes it back again and again.

#![allow(unsafe_code, reason = "memory of a file is shared with the kernel")]

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conntrack::replication::{BadRecord, FORMAT, RECORD_BYTES};
use conntrack::{Record, Replica};
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::posix_fallocate;
use thiserror::Error;

const MAGIC: [u8; 8] = *b"spillway";
const HEADER_BYTES: usize = 4096;
const CHECKED_BYTES: usize = 24;
/// Word of the header that says when the file was last true.
const ALIVE_WORD: usize = 4;
const WORD_BYTES: usize = size_of::<u64>();
const RECORD_WORDS: usize = RECORD_BYTES / WORD_BYTES;
const READ_AT_ONCE: usize = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum SessionFileError {
    /// It cannot be read, made or written.
    #[error("sessions.file: {path} cannot be {what}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another process takes its sessions down there.
    #[error("sessions.file: {path} is in use by another process; give each gateway a file of its own")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is something else, or damaged.
    #[error("sessions.file: {path} {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The file of this process.
#[derive(Clone, Debug)]
pub(crate) struct SessionFile {
    memory: Arc<Memory>,
    path: PathBuf,
    slots: usize,
    /// Locked as long as the process lives.
    _file: Arc<File>,
}

impl SessionFile {
    /// Makes a file beside `path`, with room for the tables of so many workers; [`SessionFile::take_place`] puts it there.
    /// All of its memory is taken now.
    pub(crate) fn create(path: &Path, workers: u16, slots: u32) -> Result<Self, SessionFileError> {
        let make = || {
            let new = beside(path);
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
            file.try_lock()?;
            let slots = usize::try_from(slots).map_err(io::Error::other)?;
            let length = HEADER_BYTES + usize::from(workers) * slots * RECORD_BYTES;
            posix_fallocate(&file, 0, i64::try_from(length).map_err(io::Error::other)?)?;
            let memory = Memory::map(&file)?;
            memory.write_bytes(0, &header(workers, slots));
            Ok(Self { memory: Arc::new(memory), path: path.to_owned(), slots, _file: Arc::new(file) })
        };
        make().map_err(|source| SessionFileError::Io { path: path.to_owned(), what: "made", source })
    }

    /// Puts the file in the place of the one that was there.
    pub(crate) fn take_place(&self) -> Result<(), SessionFileError> {
        self.note_alive();
        std::fs::rename(beside(&self.path), &self.path).map_err(|source| SessionFileError::Io {
            path: self.path.clone(),
            what: "put in place",
            source,
        })
    }

    /// Returns what takes down the sessions of one worker.
    pub(crate) fn replica(&self, worker: u16) -> Box<dyn Replica> {
        let first = HEADER_BYTES / WORD_BYTES + usize::from(worker) * self.slots * RECORD_WORDS;
        Box::new(Part { memory: Arc::clone(&self.memory), first, slots: self.slots })
    }

    /// Notes that what the file says is true now.
    pub(crate) fn note_alive(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.memory.words()[ALIVE_WORD].store(now.to_be(), Ordering::Relaxed);
    }
}

/// Returns where a file is made that shall take the place of `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn header(workers: u16, slots: usize) -> [u8; 32] {
    let record_bytes = u16::try_from(RECORD_BYTES).expect("a record has 40 bytes");
    let mut header = [0; 32];
    header[0..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&FORMAT.to_be_bytes());
    header[10..12].copy_from_slice(&record_bytes.to_be_bytes());
    header[12..16].copy_from_slice(&u32::from(workers).to_be_bytes());
    header[16..24].copy_from_slice(&(slots as u64).to_be_bytes());
    let sum = crc32fast::hash(&header[..CHECKED_BYTES]);
    header[24..28].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Memory that belongs to a file.
#[derive(Debug)]
struct Memory(MmapRaw);

impl Memory {
    fn map(file: &File) -> io::Result<Self> {
        // Nobody waits for a page later.
        Ok(Self(MmapOptions::new().populate().map_raw(file)?))
    }

    fn words(&self) -> &[AtomicU64] {
        let (start, bytes) = (self.0.as_mut_ptr(), self.0.len());
        // SAFETY: the mapping is as long as `self`, begins with a page, and is written in whole words by nobody but
        // through these atomics: other processes read the file at most. It does not shrink, as its owner alone may
        // change it.
        unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), bytes / WORD_BYTES) }
    }

    fn write_bytes(&self, first: usize, bytes: &[u8]) {
        for (word, chunk) in self.words()[first..].iter().zip(bytes.chunks_exact(WORD_BYTES)) {
            let chunk = chunk.try_into().expect("chunks are words");
            word.store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
        }
    }
}

/// Takes down the sessions of one worker.
#[derive(Debug)]
struct Part {
    memory: Arc<Memory>,
    first: usize,
    slots: usize,
}

impl Part {
    fn place(&self, entry: u32) -> Option<usize> {
        let slot = usize::try_from(entry).ok().filter(|slot| *slot < self.slots)?;
        Some(self.first + slot * RECORD_WORDS)
    }
}

impl Replica for Part {
    fn put(&mut self, entry: u32, record: &Record) {
        if let Some(place) = self.place(entry) {
            self.memory.write_bytes(place, &record.to_bytes());
        }
    }

    fn remove(&mut self, entry: u32) {
        if let Some(place) = self.place(entry) {
            self.memory.words()[place].store(0, Ordering::Relaxed);
        }
    }
}

/// A file that an earlier process has left, as far as its header tells.
#[derive(Debug)]
pub(crate) struct LeftFile {
    file: BufReader<File>,
    path: PathBuf,
    workers: u64,
    slots: u64,
    age: Duration,
}

/// The sessions that an earlier process has left.
#[derive(Debug)]
pub(crate) struct Left {
    /// How long ago they were last true.
    pub(crate) age: Duration,
    /// Records that were not written to the end: one for each worker at most.
    pub(crate) torn: u64,
    pub(crate) records: Vec<Record>,
}

impl LeftFile {
    /// Opens the file that an earlier process has left, if there is one.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, SessionFileError> {
        let unreadable = |source| SessionFileError::Io { path: path.to_owned(), what: "read", source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(unreadable)?,
        };
        if let Err(TryLockError::WouldBlock) = file.try_lock_shared() {
            return Err(SessionFileError::InUse { path: path.to_owned() });
        }
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut file = BufReader::with_capacity(READ_AT_ONCE, file);
        let foreign = |what: String| SessionFileError::Foreign { path: path.to_owned(), what };
        if bytes < HEADER_BYTES as u64 {
            return Err(foreign(format!("has {bytes} bytes, less than a header")));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(unreadable)?;
        let (workers, slots, alive) = read_header(&header).map_err(foreign)?;
        let expected = slots.saturating_mul(RECORD_BYTES as u64).saturating_add(HEADER_BYTES as u64);
        if bytes != expected {
            return Err(foreign(format!("has {bytes} bytes, where its header says {expected}")));
        }
        let alive = UNIX_EPOCH.checked_add(Duration::from_millis(alive)).unwrap_or(UNIX_EPOCH);
        let age = SystemTime::now().duration_since(alive).unwrap_or_default();
        Ok(Some(Self { file, path: path.to_owned(), workers, slots, age }))
    }

    /// Reads all of it, or nothing.
    pub(crate) fn read(mut self) -> Result<Left, SessionFileError> {
        let mut left = Left { age: self.age, torn: 0, records: Vec::new() };
        let mut slot = [0; RECORD_BYTES];
        for _ in 0..self.slots {
            let read = self.file.read_exact(&mut slot);
            read.map_err(|source| SessionFileError::Io { path: self.path.clone(), what: "read", source })?;
            match Record::from_bytes(&slot) {
                Ok(record) => left.records.push(record),
                Err(BadRecord::Empty) => {}
                Err(BadRecord::Damaged) if left.torn < self.workers => left.torn += 1,
                Err(error) => {
                    let what = format!("is damaged: {error}");
                    return Err(SessionFileError::Foreign { path: self.path, what });
                }
            }
        }
        Ok(left)
    }
}

/// Returns the number of workers and that of all slots, and when the file was last true, in milliseconds since 1970.
fn read_header(header: &[u8; HEADER_BYTES]) -> Result<(u64, u64, u64), String> {
    let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if header[..8] != MAGIC {
        return Err("is no file of sessions".to_owned());
    }
    if crc32fast::hash(&header[..CHECKED_BYTES]).to_be_bytes() != header[24..28] {
        return Err("has a damaged header".to_owned());
    }
    if half(8) != FORMAT || usize::from(half(10)) != RECORD_BYTES {
        return Err(format!(
            "is of format {} with records of {} bytes; known is {FORMAT}",
            half(8),
            half(10)
        ));
    }
    let workers = u64::from(u32::from_be_bytes([header[12], header[13], header[14], header[15]]));
    Ok((workers, workers.saturating_mul(long(16)), long(ALIVE_WORD * WORD_BYTES)))
}
