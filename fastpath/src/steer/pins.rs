//! Where programs, maps and links are pinned.

use std::fs;
use std::path::{Path, PathBuf};

use super::SteerError;
use super::guard::{interface_in, remove_filter};
use super::object::names;
use crate::dataplane::AttachMode;
use crate::snapshot::Side;

pub(super) fn pin_path(pin_dir: &Path, side: Side, interface: u32, mode: AttachMode) -> PathBuf {
    pin_dir.join(format!("{}-{interface}-{}", side.name(), mode.name()))
}

/// Returns the mode that a directory of pins is named after.
pub(super) fn mode_of(directory: &Path) -> Option<AttachMode> {
    let name = directory.file_name()?.to_string_lossy().into_owned();
    [AttachMode::Native, AttachMode::Generic]
        .into_iter()
        .find(|mode| name.ends_with(&format!("-{}", mode.name())))
}

/// Returns the directories of earlier pins of a side.
pub(super) fn pinned_directories(pin_dir: &Path, side: Side) -> Vec<PathBuf> {
    let prefix = format!("{}-", side.name());
    let Ok(entries) = fs::read_dir(pin_dir) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect()
}

/// Removes the pins in a directory, and the second line that needs none.
pub(super) fn remove_pins(side: Side, directory: &Path) -> Result<(), SteerError> {
    let error = |source| SteerError::Pin { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(error)? {
        fs::remove_file(entry.map_err(error)?.path()).map_err(error)?;
    }
    fs::remove_dir(directory).map_err(error)?;
    if let Some(interface) = interface_in(directory) {
        remove_filter(names(side).1, interface);
    }
    Ok(())
}

/// Returns the names of what is in a directory.
pub(super) fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
