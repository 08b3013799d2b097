//! The log of translations: who was behind an address and port, and when (RFC 6888 section 4).
//!
//! ```text
//!  workers ─▶ queues ─▶ writer: time, names, cap ─┬─▶ file      JSON lines, rotated
//!                                                 ├─▶ syslog    RFC 5424
//!                                                 └─▶ IPFIX     RFC 8158
//! ```
//!
//! - [`entry`]: one record
//! - [`names`]: names of tenants and pods
//! - `cap`: no more records in a second than may be
//! - `writer`: the thread that takes what workers tell
//! - `outlet`: what the log is written to, each on a thread of its own
//! - `file`: JSON lines in a file that is rotated
//! - [`syslog`], `ipfix`: messages to whoever collects them
//! - [`place`]: where these are sent
//! - [`read`]: looks through the file, and those that it was before
//! - [`when`]: times as people write them
//! - [`who`]: the question, and the answers from sessions and from the log

mod cap;
pub mod entry;
mod file;
mod ipfix;
pub mod names;
mod outlet;
pub mod place;
pub mod read;
pub mod syslog;
pub mod when;
pub mod who;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use fastpath::journal::Events;
use nix::libc::SIGHUP;

use self::cap::RateCap;
use self::entry::{Continuity, What};
use self::file::FileSink;
use self::ipfix::IpfixSink;
use self::names::NameBook;
use self::outlet::{Outlet, Teller};
use self::syslog::SyslogSink;
use self::writer::{Tally, Writer};
use crate::api::types::NatLogStatus;
use crate::config::NatLog as Settings;

/// The running log; it ends when it is told to stop.
#[derive(Debug)]
pub struct NatLog {
    names: Arc<NameBook>,
    tally: Arc<Tally>,
    tellers: Vec<Teller>,
    is_stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    file: Option<PathBuf>,
}

impl NatLog {
    /// Starts to write what workers tell. SIGHUP has files opened anew.
    ///
    /// # Errors
    /// When the process has no thread left.
    pub fn start(
        settings: &Settings,
        events: Events,
        names: Arc<NameBook>,
        continuity: Continuity,
    ) -> io::Result<Self> {
        let outlets = open(settings)?;
        let tellers = outlets.iter().map(Outlet::teller).collect();
        let (tally, is_stopping) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
        let shall_reopen = Arc::<AtomicBool>::default();
        signal_hook::flag::register(SIGHUP, Arc::clone(&shall_reopen))?;
        let writer = Writer {
            events,
            names: Arc::clone(&names),
            cap: RateCap::new(settings.most_per_second),
            has_destinations: settings.has_destinations,
            outlets,
            tally: Arc::clone(&tally),
            is_stopping: Arc::clone(&is_stopping),
            shall_reopen,
            waiting: Vec::new(),
        };
        let first = What::LogBegin(continuity);
        let thread = thread::Builder::new().name("nat-log".into()).spawn(|| writer.run(first))?;
        let file = settings.file.as_ref().map(|file| file.path.clone());
        Ok(Self { names, tally, tellers, is_stopping, thread, file })
    }

    /// Returns the names that the log uses.
    pub fn names(&self) -> &NameBook {
        &self.names
    }

    /// Returns the path of the log's file, if it is written to one.
    pub fn file(&self) -> Option<PathBuf> {
        self.file.clone()
    }

    /// Returns how it does.
    pub fn status(&self) -> NatLogStatus {
        let Tally { records, over_cap, lost } = &*self.tally;
        NatLogStatus {
            records: records.load(Ordering::Relaxed),
            over_rate: over_cap.load(Ordering::Relaxed),
            lost: lost.load(Ordering::Relaxed),
            sinks: self.tellers.iter().map(Teller::status).collect(),
        }
    }

    /// Writes what workers told until now, and ends.
    pub fn stop(self) {
        self.is_stopping.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // Its own panic is all that could go wrong.
        let _ = self.thread.join();
    }
}

/// Opens everything that the log is written to.
fn open(settings: &Settings) -> io::Result<Vec<Outlet>> {
    let mut outlets = Vec::new();
    if let Some(file) = &settings.file {
        let sink = FileSink::new(file.path.clone(), file.most_bytes, file.kept);
        outlets.push(Outlet::start(format!("file {}", file.path.display()), Box::new(sink))?);
    }
    if let Some(syslog) = &settings.syslog {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = host.as_deref().unwrap_or("-");
        let sink = SyslogSink::new(syslog.to.clone(), &syslog.facility, host);
        outlets.push(Outlet::start(format!("syslog {}", syslog.to), Box::new(sink))?);
    }
    if let Some(ipfix) = &settings.ipfix {
        let sink = IpfixSink::new(ipfix.to.clone(), ipfix.domain);
        outlets.push(Outlet::start(format!("ipfix {}", ipfix.to), Box::new(sink))?);
    }
    Ok(outlets)
}
