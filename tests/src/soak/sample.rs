//! What a daemon uses, of its process and of the kernel, at one moment.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::namespace::Namespace;
use control::demo::topology::Host;
use serde_json::Value;

use crate::storm::world::World;

/// One quantity that is watched, and how it is told.
pub(crate) struct Quantity {
    pub(crate) name: &'static str,
    pub(crate) of: fn(&Sample) -> u64,
    /// By how much the last quarter may exceed the second: hundredths of it, and so much besides. None: it goes up and down
    /// with what the tenants are, or is not a matter of growth.
    pub(crate) may_grow: Option<(u64, u64)>,
    /// Whether it has to be what it was before, once there is no tenant and no session any more.
    pub(crate) returns: bool,
}

/// What is watched.
pub(crate) const QUANTITIES: [Quantity; 13] = [
    Quantity { name: "RSS KiB", of: |it| it.rss_kib, may_grow: Some((3, 1024)), returns: false },
    Quantity { name: "FDS", of: |it| it.descriptors, may_grow: Some((0, 2)), returns: true },
    Quantity { name: "THREADS", of: |it| it.threads, may_grow: Some((0, 0)), returns: true },
    Quantity { name: "MAPS", of: |it| it.maps, may_grow: Some((0, 0)), returns: true },
    Quantity { name: "PROGS", of: |it| it.programs, may_grow: Some((0, 0)), returns: true },
    Quantity { name: "HOOKS", of: |it| it.hooks, may_grow: Some((0, 0)), returns: true },
    Quantity { name: "LINKS", of: |it| it.links, may_grow: None, returns: true },
    Quantity { name: "ADDRESSES", of: |it| it.addresses, may_grow: None, returns: true },
    Quantity { name: "ROUTES", of: |it| it.routes, may_grow: None, returns: true },
    Quantity { name: "NEIGHBOURS", of: |it| it.neighbours, may_grow: Some((10, 16)), returns: false },
    Quantity { name: "SESSIONS", of: |it| it.sessions, may_grow: Some((25, 500)), returns: true },
    Quantity { name: "FRAMES OUT", of: |it| it.frames_unseen, may_grow: None, returns: false },
    Quantity { name: "LOG KiB", of: |it| it.log_kib, may_grow: None, returns: false },
];

/// What is used at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    pub(crate) maps: u64,
    pub(crate) programs: u64,
    pub(crate) hooks: u64,
    pub(crate) links: u64,
    pub(crate) addresses: u64,
    pub(crate) routes: u64,
    pub(crate) neighbours: u64,
    pub(crate) sessions: u64,
    /// Frames that no place had while places were asked one after the other; zero when nothing moves.
    pub(crate) frames_unseen: u64,
    pub(crate) log_kib: u64,
}

impl Sample {
    /// Looks at the daemon and at its namespace.
    pub(crate) fn take(world: &World, at: Duration) -> Result<Self> {
        let status = world.status()?;
        let process = Path::new("/proc").join(status["pid"].to_string());
        let told = std::fs::read_to_string(process.join("status"))?;
        let number = |key: &str| -> Result<u64> {
            let line = told.lines().find_map(|line| line.strip_prefix(key)).context("the kernel tells it")?;
            Ok(line.trim_start_matches(':').split_whitespace().next().context("a number")?.parse()?)
        };
        let gateway = world.lab.namespace(Host::Gateway);
        let held = Held::of(&process)?;
        Ok(Self {
            at,
            rss_kib: number("VmRSS")?,
            threads: number("Threads")?,
            descriptors: held.descriptors,
            maps: held.maps,
            programs: held.programs,
            hooks: held.links,
            links: lines(&gateway, "-o link show")?,
            addresses: lines(&gateway, "-o -4 address show")?,
            routes: lines(&gateway, "-4 route show table main")?,
            neighbours: lines(&gateway, "-4 neigh show")?,
            sessions: status["sessions"].as_u64().context("sessions")?,
            frames_unseen: frames_unseen(&status)?,
            log_kib: std::fs::metadata(&world.installation.log)?.len() / 1024,
        })
    }
}

/// Returns how many frames are at no place that the status names.
pub(crate) fn frames_unseen(status: &Value) -> Result<u64> {
    let count = |place: &str| status["frames"][place].as_u64().context("frames");
    let found = count("atWorkers")? + count("inCommons")? + count("handedOver")?;
    Ok(count("total")?.abs_diff(found))
}

/// What a process holds by its descriptors.
struct Held {
    descriptors: u64,
    maps: u64,
    programs: u64,
    links: u64,
}

impl Held {
    fn of(process: &Path) -> Result<Self> {
        let (mut descriptors, mut maps, mut programs, mut links) =
            (0, BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(process.join("fdinfo"))? {
            descriptors += 1;
            // One that is closed meanwhile.
            let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
            let line = |key: &str| text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
            let link = line("link_id:");
            // A link tells of its program too.
            programs.extend(line("prog_id:").filter(|_| link.is_none()));
            links.extend(link);
            maps.extend(line("map_id:"));
        }
        let count = |set: BTreeSet<String>| set.len() as u64;
        Ok(Self { descriptors, maps: count(maps), programs: count(programs), links: count(links) })
    }
}

fn lines(namespace: &Namespace, line: &str) -> Result<u64> {
    Ok(namespace.ip(line)?.lines().count() as u64)
}
