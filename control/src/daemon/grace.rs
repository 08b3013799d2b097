//! Short grace periods while nobody forwards.
//!
//! To replace an XDP program, to attach a classifier and to close an AF_XDP socket take the kernel a grace period each: it
//! waits until every processor has been elsewhere (Documentation/RCU/whatisRCU.rst). On idle processors that is some
//! milliseconds, on busy ones up to tenths of a second. Expedited ones interrupt the processors instead, and take a
//! millisecond or two (`/sys/kernel/rcu_expedited`, Documentation/admin-guide/kernel-parameters.txt).

use std::fs;
use std::path::{Path, PathBuf};

use tracing::debug;

const SETTING: &str = "/sys/kernel/rcu_expedited";

/// Grace periods of the whole host are short until this is dropped, unless they were already. A process that is killed
/// meanwhile leaves them short, which costs interrupts and nothing else.
#[derive(Debug)]
pub(super) struct ShortGrace {
    /// Where they are to be made normal again.
    setting: Option<PathBuf>,
}

impl ShortGrace {
    /// Makes them short, if the process may.
    pub(super) fn begin() -> Self {
        Self::begin_at(Path::new(SETTING))
    }

    fn begin_at(setting: &Path) -> Self {
        let is_normal = fs::read_to_string(setting).is_ok_and(|value| value.trim() == "0");
        if !is_normal {
            return Self { setting: None };
        }
        match fs::write(setting, "1") {
            Ok(()) => Self { setting: Some(setting.to_owned()) },
            Err(error) => {
                debug!(%error, "grace periods are not shortened");
                Self { setting: None }
            }
        }
    }
}

impl Drop for ShortGrace {
    fn drop(&mut self) {
        if let Some(setting) = &self.setting
            && let Err(error) = fs::write(setting, "0")
        {
            debug!(%error, "grace periods stay short");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_periods_are_short_for_a_while_and_what_somebody_else_set_stays() {
        let directory = tempfile::tempdir().unwrap();
        let setting = directory.path().join("rcu_expedited");
        let value = || fs::read_to_string(&setting).unwrap();
        for (before, during) in [("0\n", "1"), ("1\n", "1\n"), ("2\n", "2\n")] {
            fs::write(&setting, before).unwrap();
            let short = ShortGrace::begin_at(&setting);
            assert_eq!(value(), during);
            drop(short);
            assert_eq!(value().trim(), before.trim());
        }
        drop(ShortGrace::begin_at(&directory.path().join("absent")));
    }
}
