//! What the process needs of the host before it starts, and the privileges that it gives up.

use std::path::Path;

use anyhow::Context;
use caps::{CapSet, Capability, CapsHashSet};
use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::{debug, info};

const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the bpffs, if `pin_dir` is to be on it and it is missing.
///
/// # Errors
/// When it cannot be mounted.
pub fn mount_bpffs(pin_dir: &Path) -> anyhow::Result<()> {
    let mounted = || statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !pin_dir.starts_with(BPFFS) || mounted() {
        return Ok(());
    }
    info!("mounting a bpffs at {BPFFS}");
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount a bpffs at {BPFFS}; xdp.pin_dir needs one"))
}

/// What the daemon needs. SYS_ADMIN: to mount a bpffs, and to find a socket map by its number whenever a socket is bound,
/// also when an interface came back. SYS_NICE: for the threads of workers, which give up all of it.
const NEEDED: [Capability; 6] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_NICE,
];

/// Gives up for good what root may and the daemon needs not, and gains nothing by running other programs.
///
/// Threads that run already keep what they have: call it before there are any.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up_privileges() -> anyhow::Result<()> {
    set_no_new_privs().context("cannot do without new privileges")?;
    let mut needed = CapsHashSet::from(NEEDED);
    if !matches!(getrlimit(Resource::RLIMIT_MEMLOCK), Ok((RLIM_INFINITY, _))) {
        needed.insert(Capability::CAP_IPC_LOCK); // the limit could not be lifted: this passes it
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
        let kept: CapsHashSet = caps::read(None, set)?.intersection(&needed).copied().collect();
        caps::set(None, set, &kept).context("cannot give up privileges")?;
    }
    Ok(())
}

/// Keeps every file that the daemon makes from users other than its own and its group.
pub fn keep_files_to_own_group() {
    let stricter = umask(Mode::S_IRWXG | Mode::S_IRWXO) | Mode::S_IWGRP | Mode::S_IRWXO;
    umask(stricter);
}

/// Lets the process open as many files as it may: clients of the control socket take one each.
pub fn lift_file_limit() {
    let lifted = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = lifted {
        debug!(%error, "cannot lift the limit on open files");
    }
}

/// Lifts the limit on locked memory, which kernels count frame memory against, and old ones maps too.
/// Where that is not allowed the limit stays, and starting the fast path tells whether it is enough.
pub fn lift_memory_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        debug!(%error, "cannot lift the limit on locked memory");
    }
}
