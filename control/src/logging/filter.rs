//! Which lines are logged: a level for all, and levels for parts of the gateway.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::targets::{CRATES, LIBRARIES, QUIET, TARGETS, is_within};

const OWN_CRATES: [&str; 3] = ["conntrack", "control", "fastpath"];
const LEVELS: &str = "off, error, warn, info, debug and trace";

/// A level for all, and others for some: `info,kubernetes=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: String,
    general: LevelFilter,
    named: Vec<(String, LevelFilter)>,
}

/// Why a filter was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// It says nothing.
    #[error("is empty; give a level, such as info, or targets with levels, such as kubernetes=debug")]
    Empty,
    /// A level is none.
    #[error("{0:?} is no level; there are {LEVELS}")]
    Level(String),
    /// A target stands alone, or a word is neither level nor target.
    #[error("{0:?} is no level; there are {LEVELS}, and a target takes one as in kubernetes=debug")]
    Word(String),
    /// A target is none.
    #[error("{target:?} is no target; there are {known}, and modules such as control::kubernetes")]
    Target {
        /// What was given.
        target: String,
        /// What there is.
        known: String,
    },
    /// There are two levels for all.
    #[error("has two levels for all, {0} and {1}; give one")]
    TwoLevels(LevelFilter, LevelFilter),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        let (mut general, mut named) = (None, Vec::new());
        for part in &parts {
            if let Some((target, level)) = part.split_once('=') {
                let level = level.trim();
                let level = level.parse().map_err(|_| FilterError::Level(level.to_owned()))?;
                named.push((check_target(target.trim())?, level));
            } else {
                let level = part.parse().map_err(|_| FilterError::Word((*part).to_owned()))?;
                if let Some(earlier) = general.replace(level) {
                    return Err(FilterError::TwoLevels(earlier, level));
                }
            }
        }
        if parts.is_empty() {
            return Err(FilterError::Empty);
        }
        Ok(Self { text: parts.join(","), general: general.unwrap_or(LevelFilter::INFO), named })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self { text: "info".to_owned(), general: LevelFilter::INFO, named: Vec::new() }
    }
}

fn check_target(target: &str) -> Result<String, FilterError> {
    let is_part = target == LIBRARIES || TARGETS.iter().any(|known| known.name == target);
    let is_module = OWN_CRATES.iter().chain(&CRATES).any(|known| is_within(target, known));
    if is_part || is_module {
        return Ok(target.to_owned());
    }
    let known: Vec<_> = TARGETS.iter().map(|target| target.name).chain([LIBRARIES]).collect();
    Err(FilterError::Target { target: target.to_owned(), known: known.join(", ") })
}

impl Filter {
    /// Returns the level of a part of the gateway.
    pub fn level_of(&self, name: &str) -> LevelFilter {
        match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => self.level_of_module(target.modules[0], name),
            None => self.named(name).unwrap_or_else(|| self.general.min(LevelFilter::INFO)),
        }
    }

    /// Returns the level of a module of a part: that of the part, else of the nearest module that is named.
    fn level_of_module(&self, module: &str, part: &str) -> LevelFilter {
        let outer = self.named.iter().filter(|(target, _)| is_within(module, target));
        let nearest = outer.max_by_key(|(target, _)| target.len()).map(|(_, level)| *level);
        self.named(part).or(nearest).unwrap_or(self.general)
    }

    fn named(&self, name: &str) -> Option<LevelFilter> {
        self.named.iter().rfind(|(target, _)| target == name).map(|(_, level)| *level)
    }

    /// Returns the filter by modules.
    pub(crate) fn targets(&self) -> Targets {
        let mut targets = Targets::new().with_default(self.level_of(LIBRARIES));
        for name in QUIET {
            targets = targets.with_target(name, LevelFilter::OFF);
        }
        for target in TARGETS {
            for module in target.modules {
                targets = targets.with_target(*module, self.level_of_module(module, target.name));
            }
        }
        for (target, level) in self.named.iter().filter(|(target, _)| is_module(target)) {
            targets = targets.with_target(target.as_str(), *level);
        }
        // What was too much of a part is told at the level of that part.
        let most = self.named.iter().map(|(_, level)| *level).fold(self.general, LevelFilter::max);
        targets.with_target("control::logging::limit", most)
    }
}

fn is_module(target: &str) -> bool {
    target != LIBRARIES && TARGETS.iter().all(|known| known.name != target)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn parts_and_modules_have_the_level_that_is_nearest() {
        let table: [(&str, &str, Level, bool); 16] = [
            ("info", "control::kubernetes::follow", Level::INFO, true),
            ("info", "control::kubernetes::follow", Level::DEBUG, false),
            ("kubernetes=debug", "control::kubernetes::follow", Level::DEBUG, true),
            ("kubernetes=debug", "control::daemon::cluster", Level::DEBUG, true),
            ("kubernetes=debug", "control::daemon", Level::DEBUG, false),
            ("kubernetes=debug", "control::daemon", Level::INFO, true),
            ("daemon=debug", "control::daemon", Level::DEBUG, true),
            ("daemon=debug", "control::kubernetes", Level::DEBUG, false),
            ("info,control::kubernetes=debug", "control::kubernetes::view", Level::DEBUG, true),
            ("info,control::kubernetes::view=debug", "control::kubernetes::view", Level::DEBUG, true),
            ("info,control::kubernetes::view=debug", "control::kubernetes::follow", Level::DEBUG, false),
            ("warn,control=debug", "control::netlink::facts", Level::DEBUG, true),
            ("control=debug,netlink=warn", "control::netlink::facts", Level::INFO, false),
            ("trace", "hyper::proto", Level::DEBUG, false),
            ("libraries=trace", "hyper::proto", Level::TRACE, true),
            ("off,workers=error", "fastpath::runner", Level::ERROR, true),
        ];
        for (text, module, level, expected) in table {
            let targets = text.parse::<Filter>().unwrap().targets();
            assert_eq!(targets.would_enable(module, &level), expected, "{text}: {module} at {level}");
        }
    }

    #[test]
    fn kube_is_quiet_unless_it_is_named() {
        let enables =
            |text: &str| text.parse::<Filter>().unwrap().targets().would_enable("kube_client", &Level::WARN);
        assert!(!enables("trace") && !enables("libraries=trace") && enables("info,kube_client=debug"));
    }

    #[test]
    fn what_was_too_much_is_told_wherever_something_is() {
        let targets = "off,workers=warn".parse::<Filter>().unwrap().targets();
        assert!(targets.would_enable("control::logging::limit", &Level::WARN));
    }

    #[test]
    fn filters_that_mean_nothing_are_refused_with_what_would_be_accepted() {
        let table = [
            ("", "is empty; give a level"),
            (" , ", "is empty"),
            ("infoo", "\"infoo\" is no level; there are off, error, warn, info, debug and trace"),
            ("kubernetes", "\"kubernetes\" is no level; "),
            ("kubernetes=loud", "\"loud\" is no level"),
            (
                "kubernets=debug",
                "\"kubernets\" is no target; there are api, daemon, interfaces, kubernetes, log, ",
            ),
            ("controls::api=debug", "\"controls::api\" is no target"),
            ("info,debug", "has two levels for all, info and debug"),
        ];
        for (text, expected) in table {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_filter_is_shown_as_it_was_given() {
        let filter: Filter = " WARN, kubernetes=debug ,".parse().unwrap();
        assert_eq!(filter.to_string(), "WARN,kubernetes=debug");
        assert_eq!(filter.level_of("kubernetes"), LevelFilter::DEBUG);
        assert_eq!(filter.level_of("api"), LevelFilter::WARN);
        assert_eq!(Filter::default(), "info".parse().unwrap());
    }
}
