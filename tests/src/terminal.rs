//! A terminal that a program runs in: keys go in, and the screen is what a person would see.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use control::demo::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};

use crate::fixture::LIMIT;

/// A program in a pseudo-terminal; ended when dropped.
pub struct Terminal {
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a program in a terminal of so many columns and rows.
    ///
    /// # Errors
    /// When the kernel has no pseudo-terminal, or the program does not start.
    pub fn start(program: &Path, arguments: &[&str], columns: NonZeroU16, rows: NonZeroU16) -> Result<Self> {
        let size = PtySize { rows: rows.get(), cols: columns.get(), pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size)?;
        let mut command = CommandBuilder::new(program);
        command.args(arguments);
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command)?;
        drop(pair.slave); // so that the end of the program is the end of its output
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let (mut output, shown) = (pair.master.try_clone_reader()?, Arc::clone(&screen));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                lock(&shown).process(&bytes[..count]);
            }
        });
        let keys = pair.master.take_writer()?;
        Ok(Self { master: pair.master, keys, child, screen, reader: Some(reader) })
    }

    /// Presses keys.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Gives the terminal another size.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, columns: NonZeroU16, rows: NonZeroU16) -> Result<()> {
        lock(&self.screen).screen_mut().set_size(rows, columns);
        let size = PtySize { rows: rows.get(), cols: columns.get(), pixel_width: 0, pixel_height: 0 };
        self.master.resize(size)
    }

    /// Returns what is on the screen.
    pub fn text(&self) -> String {
        lock(&self.screen).screen().contents()
    }

    /// Tells whether the terminal is as the program found it: its first screen, with a cursor.
    pub fn is_given_back(&self) -> bool {
        let parser = lock(&self.screen);
        !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
    }

    /// Waits until the screen is as `probe` wants it, and returns it.
    ///
    /// # Errors
    /// When that takes too long, with the screen.
    pub fn until(&self, what: &str, probe: impl Fn(&str) -> bool) -> Result<String> {
        let seen = wait::until(what, LIMIT, || Ok(Some(self.text()).filter(|text| probe(text))));
        seen.with_context(|| self.text())
    }

    /// Asks the program to end, as the init system does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        let pid = self.child.process_id().context("it has ended")?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?)
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// When it goes on.
    pub fn until_ended(&mut self) -> Result<ExitStatus> {
        let status = wait::until("the program ends", LIMIT, || Ok(self.child.try_wait()?))?;
        let reader = self.reader.take().context("it ended before")?;
        reader.join().map_err(|_| anyhow!("the screen was not read"))?;
        Ok(status)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended, and is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(screen: &Mutex<vt100::Parser>) -> MutexGuard<'_, vt100::Parser> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}
