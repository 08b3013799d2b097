//! Sessions outlive the process: each is taken down in a file in memory as it begins, moves on and ends, and the next
//! process takes them up before it serves the first packet.
//!
//! ```text
//!   a process       table ──▶ FILE          killed or stopped: the file stays, as it was at that moment
//!   the next        FILE ──▶ its tables ──▶ FILE.new ──rename──▶ FILE
//! ```
//!
//! Nothing is lost if the next process ends before it is done: the old file stays until the new one is complete. A file
//! that is damaged, foreign or of another version is set aside as a whole.

mod file;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use conntrack::{Conntrack, NotRestored, Record, Resumption, TenantId, Tick, restore};

pub(crate) use self::file::SessionFile;
pub use self::file::SessionFileError;
use self::file::{Left, LeftFile};
use crate::counters::WorkerCounters;
use crate::snapshot::Snapshot;
use crate::track::UNRESOLVED;

/// What became of the sessions of the process before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// How long ago they were last true.
    pub age: Duration,
    /// Sessions that go on.
    pub restored: u64,
    /// Sessions whose time would have been over.
    pub over: u64,
    /// Sessions of tenants or egress addresses that are there no more.
    pub disowned: u64,
    /// Sessions that did not fit: a table is full, or two have the same port.
    pub unfit: u64,
    /// Records that were not written to the end when the process was killed: one for each worker at most.
    pub torn: u64,
    /// Where a file was moved that could not be used, and why.
    pub set_aside: Option<(PathBuf, String)>,
}

/// Takes up the sessions that the process before has left in `path`, and has all sessions taken down there from now on.
///
/// # Errors
/// When the new file cannot be made, or an unusable one not be moved out of the way.
pub(crate) fn succeed(
    path: &Path,
    tables: &mut [Conntrack],
    counters: &[impl AsRef<WorkerCounters>],
    snapshot: &Snapshot,
) -> Result<(SessionFile, Inheritance), SessionFileError> {
    let first = tables.first().map_or((0, 0), |table| (table.slot().workers, table.capacity()));
    let left = LeftFile::open(path);
    if let Err(error @ SessionFileError::InUse { .. }) = left {
        return Err(error);
    }
    let new = SessionFile::create(path, first.0, first.1)?;
    for table in &mut *tables {
        let replica = new.replica(table.slot().worker);
        table.replicate_to(replica);
    }
    let mut heirs = Heirs::new(tables, snapshot);
    match left.and_then(|left| left.map(LeftFile::read).transpose()) {
        Ok(None) => {}
        Ok(Some(left)) => heirs.take_up(&left),
        Err(error) => heirs.inheritance.set_aside = Some((set_aside(path)?, describe(&error))),
    }
    let inheritance = heirs.inheritance;
    for (table, counters) in tables.iter().zip(counters) {
        let sessions = table.scan(0, table.capacity());
        sessions.for_each(|session| counters.as_ref().tenant(session.tenant()).session_resumed());
    }
    new.take_place()?;
    Ok((new, inheritance))
}

/// Removes the file.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn forget(path: &Path) -> Result<(), SessionFileError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SessionFileError::Io { path: path.to_owned(), what: "removed", source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Tables that take up sessions.
struct Heirs<'a> {
    tables: &'a mut [Conntrack],
    snapshot: &'a Snapshot,
    tenants: HashMap<Ipv4Addr, TenantId>,
    inheritance: Inheritance,
}

impl<'a> Heirs<'a> {
    fn new(tables: &'a mut [Conntrack], snapshot: &'a Snapshot) -> Self {
        let tenants = snapshot.spec().tenants.iter().map(|tenant| (tenant.gateway_address, tenant.id));
        Self { tables, snapshot, tenants: tenants.collect(), inheritance: Inheritance::default() }
    }

    fn take_up(&mut self, left: &Left) {
        self.inheritance.age = left.age;
        self.inheritance.torn = left.torn;
        left.records.iter().for_each(|record| self.take(record));
    }

    fn take(&mut self, record: &Record) {
        let owner = self.snapshot.tenant_by_egress(record.outside.0);
        let Some(tenant) = self.tenants.get(&record.gateway).copied().filter(|id| owner == Some(*id)) else {
            self.inheritance.disowned += 1;
            self.note_end(record);
            return;
        };
        let timeouts = &self.snapshot.spec().timeouts;
        let (age, next_hops) = (self.inheritance.age, [UNRESOLVED; 2]);
        let resumption = Resumption { tenant, record, age, timeouts, next_hops };
        let restored = restore(self.tables, &resumption, Tick::default());
        if restored.is_err() {
            self.note_end(record);
        }
        let count = match restored {
            Ok(()) => &mut self.inheritance.restored,
            Err(NotRestored::Over) => &mut self.inheritance.over,
            Err(NotRestored::NoAddress) => &mut self.inheritance.disowned,
            Err(NotRestored::Taken | NotRestored::Full) => &mut self.inheritance.unfit,
        };
        *count += 1;
    }

    /// Tells the log of translations that a session does not go on.
    fn note_end(&mut self, record: &Record) {
        if let Some(table) = self.tables.first_mut() {
            table.note_not_restored(record);
        }
    }
}

/// Moves a file out of the way, and returns where it is.
fn set_aside(path: &Path) -> Result<PathBuf, SessionFileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".refused");
    let aside = PathBuf::from(name);
    std::fs::rename(path, &aside).map_err(|source| SessionFileError::Io {
        path: path.to_owned(),
        what: "set aside",
        source,
    })?;
    Ok(aside)
}

fn describe(error: &SessionFileError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}
