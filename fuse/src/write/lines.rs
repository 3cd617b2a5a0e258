//! Records on the cache's disk: texts of lines, each a JSON object that says what is new since the
//! line before. A line is one write(2): it survives the end of the process without fsync.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blocking::MayBlock;

/// Makes a new record.
pub(super) fn create(_: &MayBlock, path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

/// Adds lines, in one write.
pub(super) fn append<T: Serialize>(
    _: &MayBlock,
    mut file: &File,
    lines: impl IntoIterator<Item = T>,
) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    file.write_all(&text)
}

/// The lines of a record; one that was cut by the end of its process is none. Empty where there is
/// no record.
pub(super) fn read<T: DeserializeOwned>(_: &MayBlock, path: &Path) -> Vec<T> {
    let text = fs::read(path).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines.map_while(|line| serde_json::from_slice(line).ok()).collect()
}

/// Adds a line to a record that its process has left. What that process did not write to its end is
/// taken away first: a line behind it would never be read.
pub(super) fn append_to_left<T: Serialize + DeserializeOwned>(
    may: &MayBlock,
    path: &Path,
    line: T,
) -> io::Result<()> {
    let text = fs::read(path)?;
    let is_line = |line: &&[u8]| serde_json::from_slice::<T>(line).is_ok();
    let lines = text.split_inclusive(|byte| *byte == b'\n').take_while(is_line);
    let whole: usize = lines.map(<[u8]>::len).sum();
    let file = OpenOptions::new().append(true).open(path)?;
    if whole < text.len() {
        file.set_len(whole as u64)?;
    }
    if text[..whole].last().is_some_and(|byte| *byte != b'\n') {
        (&file).write_all(b"\n")?;
    }
    append(may, &file, [line])
}

/// Now, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
