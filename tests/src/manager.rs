//! A stand-in for the service manager, and a thread of the daemon that is stuck for real.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use control::demo::gateway::Installation;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Hears what the daemon tells its service manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// Has the daemon of an installation, once it is started, tell this manager, and be fed within `watchdog`.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn engage(installation: &mut Installation, watchdog: Duration) -> Result<Self> {
        let directory = installation.config.parent().context("a config file is in a directory")?;
        let socket = directory.join("notify.sock");
        let manager = Self { socket: UnixDatagram::bind(&socket)? };
        manager.socket.set_nonblocking(true)?;
        let microseconds = watchdog.as_micros().to_string();
        wrap(
            installation,
            &[("NOTIFY_SOCKET", &socket.to_string_lossy()), ("WATCHDOG_USEC", &microseconds)],
        )?;
        Ok(manager)
    }

    /// Returns all that was told since the last call.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn heard(&self) -> Result<Vec<String>> {
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(bytes) => {
                    heard.extend(String::from_utf8_lossy(&buffer[..bytes]).lines().map(str::to_owned));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(heard),
                Err(error) => bail!(error),
            }
        }
    }
}

/// Has the daemon of an installation, once it is started, find these variables in its environment.
///
/// # Errors
/// When a file cannot be made.
pub fn wrap(installation: &mut Installation, variables: &[(&str, &str)]) -> Result<()> {
    let directory = installation.config.parent().context("a config file is in a directory")?;
    let script = directory.join("wrapped-spillway");
    let exports: String =
        variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let text = format!("#!/bin/sh\n{exports}exec '{}' \"$@\"\n", installation.executable.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    installation.executable = script;
    Ok(())
}

/// A thread of the daemon that is stopped by ptrace(2), the others running on; it goes on when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    /// Number of the thread.
    pub thread: i32,
    // A thread is traced by one thread, whichever test thread asks for its release.
    tracer: Option<(Sender<()>, JoinHandle<Result<()>>)>,
}

impl Frozen {
    /// Freezes the thread of this name in a process.
    ///
    /// # Errors
    /// When there is none, or the kernel does not let it be traced.
    pub fn freeze(process: i64, name: &str) -> Result<Self> {
        let thread = find_thread(process, name)?;
        let (frozen, is_frozen) = channel();
        let (release, released) = channel::<()>();
        let tracer = std::thread::spawn(move || {
            let thread = Pid::from_raw(thread);
            ptrace::seize(thread, ptrace::Options::empty())?;
            ptrace::interrupt(thread)?;
            waitpid(thread, Some(WaitPidFlag::__WALL))?;
            let _ = frozen.send(());
            // Until it is told to, or whoever could tell is gone.
            let _ = released.recv();
            // It may have ended with its process.
            let _ = ptrace::detach(thread, None);
            Ok(())
        });
        if is_frozen.recv().is_err() {
            let failed = tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?;
            failed.context("the thread cannot be frozen")?;
        } else {
            return Ok(Self { thread, tracer: Some((release, tracer)) });
        }
        bail!("the thread cannot be frozen")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the tracer failed.
    pub fn thaw(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let Some((release, tracer)) = self.tracer.take() else { return Ok(()) };
        drop(release);
        tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A test that fails says why by itself.
        let _ = self.release();
    }
}

fn find_thread(process: i64, name: &str) -> Result<i32> {
    for task in std::fs::read_dir(Path::new("/proc").join(process.to_string()).join("task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.trim() == name {
            return task.file_name().to_string_lossy().parse().context("a thread has a number");
        }
    }
    bail!("process {process} has no thread {name}")
}
