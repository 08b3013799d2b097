//! `spillway top`: what goes on right now, in a terminal.
//!
//! - `rates`: rates out of counters
//! - `model`: what is shown, and what was chosen
//! - `keys`: what the keys do
//! - `view`: draws the model
//! - `asking`: asks the daemon again and again

mod asking;
mod keys;
mod model;
mod rates;
mod view;

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use crossterm::event::{self, Event};
use ratatui::DefaultTerminal;
use signal_hook::consts::{SIGHUP, TERM_SIGNALS};

use self::asking::Asking;
use self::model::{Contact, Model};
use crate::output;

/// Longest wait for a key: answers are shown, and signals heeded, within this time.
const WAIT: Duration = Duration::from_millis(50);

/// Shows tenants by rate, workers, drops and ports, live. `?` lists the keys.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway top\n  spillway top --interval 5s\n  spillway top --once")]
pub(super) struct Arguments {
    /// Ask the daemon this often, 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = read_interval)]
    interval: Duration,

    /// Print everything once as plain text, with the rates of one interval
    #[arg(long)]
    once: bool,
}

impl Arguments {
    pub(super) fn execute(self, socket: &Path) -> anyhow::Result<()> {
        let model = Model::new(self.interval);
        let asking = Asking::start(socket, self.interval)?;
        if self.once {
            return print_once(model, &asking);
        }
        if !stdout().is_terminal() {
            anyhow::bail!("stdout is no terminal; `spillway top --once` prints plain text");
        }
        Screen::open()?.show(model, &asking)
    }
}

fn read_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let may_be = Duration::from_millis(100)..=Duration::from_secs(3600);
    may_be.contains(&interval).then_some(interval).ok_or_else(|| "give a time from 100ms to 1h".to_owned())
}

/// Prints what changes between two answers.
fn print_once(mut model: Model, asking: &Asking) -> anyhow::Result<()> {
    for _ in 0..2 {
        let (answer, at) = asking.next().context("the daemon is not asked any more")?;
        model.take(answer, at);
        if let Contact::Lost(why) = model.contact {
            anyhow::bail!(why);
        }
    }
    Ok(output::print(&view::plain(&model))?)
}

/// The terminal while it shows the view; given back as it was when dropped, and when the process panics.
struct Screen {
    terminal: DefaultTerminal,
    ends: Arc<AtomicBool>,
}

impl Screen {
    fn open() -> anyhow::Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        for &signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
            signal_hook::flag::register(signal, Arc::clone(&ends)).context("signals cannot be heeded")?;
        }
        let terminal = ratatui::try_init().context("this terminal cannot be used")?;
        Ok(Self { terminal, ends })
    }

    /// Shows the view until a key or a signal ends it.
    fn show(mut self, mut model: Model, asking: &Asking) -> anyhow::Result<()> {
        let mut is_stale = true;
        while !self.ends.load(Ordering::Relaxed) {
            while let Some((answer, at)) = asking.try_next() {
                model.take(answer, at);
                is_stale = true;
            }
            if is_stale {
                self.terminal.draw(|frame| view::draw(frame, &mut model))?;
                is_stale = false;
            }
            if !event::poll(WAIT)? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if model.press(key) => return Ok(()),
                // A new size and whatever else happens to the terminal: what is there is drawn over.
                _ => is_stale = true,
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
mod tests;
