//! JSON lines in a file that is rotated: `nat.jsonl` is the newest, `nat.jsonl.1` the one before, and so on.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::entry::Entry;
use super::outlet::{Sink, Unwritten};

const MODE: u32 = 0o640;

/// A file of JSON lines.
#[derive(Debug)]
pub(super) struct FileSink {
    path: PathBuf,
    most_bytes: u64,
    /// Files that are kept besides the newest.
    kept: u32,
    open: Option<OpenFile>,
    lines: Vec<u8>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    bytes: u64,
}

impl FileSink {
    pub(super) fn new(path: PathBuf, most_bytes: u64, kept: u32) -> Self {
        Self { path, most_bytes, kept, open: None, lines: Vec::new() }
    }

    fn write_lines(&mut self) -> io::Result<()> {
        let more = self.lines.len() as u64;
        if self.opened()?.bytes.saturating_add(more) > self.most_bytes && self.opened()?.bytes > 0 {
            self.open = None;
            rotate(&self.path, self.kept)?;
        }
        self.opened()?;
        let Some(OpenFile { file, bytes }) = &mut self.open else { return Ok(()) };
        if let Err(error) = file.write_all(&self.lines) {
            // Half of a line would spoil the next one.
            file.set_len(*bytes)?;
            return Err(error);
        }
        *bytes += more;
        Ok(())
    }

    fn opened(&mut self) -> io::Result<&OpenFile> {
        let open = match self.open.take() {
            Some(open) => open,
            None => OpenFile::append(&self.path)?,
        };
        Ok(self.open.insert(open))
    }
}

impl Sink for FileSink {
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unwritten> {
        self.lines.clear();
        entries.iter().for_each(|entry| entry.write_line(&mut self.lines));
        Ok(self.write_lines()?)
    }

    fn reopen(&mut self) {
        self.open = None;
    }
}

impl OpenFile {
    fn append(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        options.append(true).mode(MODE);
        let file = match options.clone().create_new(true).open(path) {
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(MODE))?; // whatever the umask
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path)?,
            Err(error) => return Err(error),
        };
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes })
    }
}

/// Returns where the log was that was the newest so many rotations ago.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Moves every file on by one; the last one goes.
fn rotate(path: &Path, kept: u32) -> io::Result<()> {
    for number in (0..kept).rev() {
        match fs::rename(rotated(path, number), rotated(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat_log::entry::tests::time;

    fn entry(number: u64) -> Entry {
        Entry::omission(time(0), number, "test")
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let number =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["records"].as_u64();
        text.lines().map(|line| number(line).unwrap()).collect()
    }

    fn line_bytes() -> u64 {
        let mut line = Vec::new();
        entry(1).write_line(&mut line);
        line.len() as u64
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs").join("nat.jsonl");
        let mut sink = FileSink::new(path.clone(), 2 * line_bytes(), 2);
        for number in 1..=7 {
            sink.write(&[entry(number)]).unwrap();
        }
        let files: Vec<_> = (0..4).map(|number| numbers(&rotated(&path, number))).collect();
        assert_eq!(files, [vec![7], vec![5, 6], vec![3, 4], vec![]]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }

    #[test]
    fn a_file_that_is_there_is_gone_on_with_and_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nat.jsonl");
        FileSink::new(path.clone(), 3 * line_bytes(), 1).write(&[entry(1), entry(2)]).unwrap();
        let mut sink = FileSink::new(path.clone(), 3 * line_bytes(), 1);
        sink.write(&[entry(3)]).unwrap();
        sink.write(&[entry(4)]).unwrap();
        assert_eq!((numbers(&rotated(&path, 1)), numbers(&path)), (vec![1, 2, 3], vec![4]));
    }

    #[test]
    fn a_file_that_somebody_moved_away_is_made_anew_when_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nat.jsonl");
        let mut sink = FileSink::new(path.clone(), u64::MAX, 1);
        sink.write(&[entry(1)]).unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        sink.write(&[entry(2)]).unwrap();
        sink.reopen();
        sink.write(&[entry(3)]).unwrap();
        assert_eq!((numbers(&directory.path().join("moved")), numbers(&path)), (vec![1, 2], vec![3]));
    }

    #[test]
    fn a_disk_that_is_full_leaves_no_half_line() {
        let mut sink = FileSink::new("/dev/full".into(), u64::MAX, 1);
        let error = sink.write(&[entry(1)]).unwrap_err();
        assert_eq!(error.written, 0);
    }
}
