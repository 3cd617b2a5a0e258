//! Writers of a mount that may die at any moment, and what each of them was told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weir_tests::bucket::Bucket;
use weir_tests::random_bytes;
use weir_tests::shell::close;

const MIB: usize = 1 << 20;
/// Sizes of files of one PUT, and of those in parts.
const SMALL: std::ops::Range<usize> = 1..2 * MIB;
const LARGE: std::ops::Range<usize> = 9 * MIB..20 * MIB;

/// What contents are cut from: at every place those of two cuts differ.
pub(super) struct Base(Vec<u8>);

impl Base {
    /// Enough for as many contents as a run has.
    pub(super) fn new() -> Self {
        Self(random_bytes(11, 64 * MIB))
    }

    /// The bytes of a content.
    pub(super) fn bytes(&self, of: Content) -> &[u8] {
        &self.0[of.at..of.at + of.len]
    }

    fn cut(&self, random: &mut StdRng, sizes: std::ops::Range<usize>) -> Content {
        let len = random.random_range(sizes);
        Content { at: random.random_range(0..self.0.len() - len), len }
    }
}

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Content {
    at: usize,
    /// Bytes.
    pub(super) len: usize,
}

impl Content {
    /// Its first bytes.
    pub(super) fn first(self, len: usize) -> Self {
        Self { len, ..self }
    }
}

/// Bytes that were written and that no close or fsync has acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unsaved {
    /// All that is to be written.
    pub(super) content: Content,
    /// How many of them were acknowledged together.
    pub(super) saved: usize,
    /// How many write(2) has taken.
    pub(super) taken: usize,
    /// How many it was given.
    pub(super) given: usize,
}

/// What a writer knows of a key.
#[derive(Clone, Default, Debug)]
pub(super) struct Known {
    /// What S3 may hold: what was acknowledged last, and what was being stored when the mount
    /// died.
    pub(super) may_hold: Vec<Option<Content>>,
    /// What is to be found whatever S3 holds.
    pub(super) unsaved: Option<Unsaved>,
    /// Everything that was to be written since the mount came up.
    pub(super) tried: Vec<Content>,
    /// A rename that was not answered: what was moved, and to which key.
    pub(super) moving: Option<(Content, String)>,
}

impl Known {
    fn acknowledged(&mut self, holds: Option<Content>) {
        self.may_hold = vec![holds];
    }

    fn holds(&self) -> Option<Content> {
        self.may_hold.first().copied().flatten()
    }
}

/// Where writers write.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) mount: &'a Path,
    pub(super) base: &'a Base,
    pub(super) bucket: &'a Bucket,
}

/// What was under way when the mount died.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Doing {
    /// open(2).
    Opening,
    /// write(2).
    Writing,
    /// fsync(2) in the middle.
    Syncing,
    /// close(2).
    Closing,
    /// rename(2).
    Renaming,
    /// unlink(2).
    Removing,
}

/// A writer, over the lives of a mount.
pub(super) struct Writer {
    number: usize,
    random: StdRng,
    files: usize,
    /// By key.
    pub(super) known: BTreeMap<String, Known>,
    /// Closes, fsyncs, renames and removals that succeeded.
    pub(super) acknowledged: usize,
    /// What MinIO had left of objects, found in the way.
    pub(super) ghosts: usize,
    doing: Doing,
}

impl Writer {
    /// One that does the same for the same seed, as far as it gets.
    pub(super) fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            random: StdRng::seed_from_u64(seed ^ ((number as u64 + 1) << 32)),
            files: 0,
            known: BTreeMap::new(),
            acknowledged: 0,
            ghosts: 0,
            doing: Doing::Opening,
        }
    }

    /// Writes until something fails; what that was, and why.
    pub(super) fn work(&mut self, place: Place<'_>) -> (Doing, io::Error) {
        loop {
            if let Err(error) = self.one(place) {
                return (self.doing, error);
            }
        }
    }

    fn one(&mut self, place: Place<'_>) -> io::Result<()> {
        self.files += 1;
        let (number, n) = (self.number, self.files);
        let (new, kept) = (format!("w{number}-{n}"), format!("w{number}-kept"));
        match self.random.random_range(0..8) {
            0 | 1 => self.file(place, &new, SMALL, false),
            2 => self.file(place, &new, LARGE, false),
            3 => self.file(place, &new, LARGE, true),
            4 => self.file(place, &kept, SMALL, true),
            5 => self.file(place, &kept, LARGE, false),
            6 => {
                let (temp, sizes) = (format!("{kept}.tmp"), [SMALL, LARGE][n % 2].clone());
                self.file(place, &temp, sizes, false)?;
                let to = if n % 3 == 0 { new } else { kept };
                self.rename(place, &temp, &to)
            }
            _ => {
                self.file(place, &new, SMALL, false)?;
                self.remove(place, &new)
            }
        }
    }

    fn of(&mut self, key: &str) -> &mut Known {
        let nothing = || Known { may_hold: vec![None], ..Known::default() };
        self.known.entry(key.to_owned()).or_insert_with(nothing)
    }

    /// Writes a file from its start, over what has the name; `syncs`: with fsync in the middle.
    fn file(
        &mut self,
        place: Place<'_>,
        key: &str,
        sizes: std::ops::Range<usize>,
        syncs: bool,
    ) -> io::Result<()> {
        let content = place.base.cut(&mut self.random, sizes);
        let middle = syncs.then(|| self.random.random_range(1..=content.len));
        let piece = self.random.random_range(4096..MIB);
        self.of(key).tried.push(content);
        self.doing = Doing::Opening;
        let mut file = self.open(place, key)?;
        self.of(key).unsaved = Some(Unsaved { content, saved: 0, taken: 0, given: 0 });
        let stops = middle.into_iter().chain([content.len]);
        for stop in stops {
            self.write(&mut file, place.base, key, piece, stop)?;
            if middle == Some(stop) && stop < content.len {
                self.doing = Doing::Syncing;
                self.storing(key, content.first(stop), || file.sync_all())?;
                if let Some(unsaved) = &mut self.of(key).unsaved {
                    unsaved.saved = stop;
                }
            }
        }
        self.doing = Doing::Closing;
        self.storing(key, content, || close(file))?;
        self.of(key).unsaved = None;
        Ok(())
    }

    fn open(&mut self, place: Place<'_>, key: &str) -> io::Result<File> {
        let opened = File::create(place.mount.join(key));
        let is_dir = |error: &io::Error| error.kind() == io::ErrorKind::IsADirectory;
        if opened.as_ref().is_err_and(is_dir) && place.bucket.clear_ghost(key) {
            self.ghosts += 1;
            return File::create(place.mount.join(key));
        }
        opened
    }

    fn write(
        &mut self,
        file: &mut File,
        base: &Base,
        key: &str,
        piece: usize,
        stop: usize,
    ) -> io::Result<()> {
        self.doing = Doing::Writing;
        while let Some(unsaved) = self.of(key).unsaved.as_mut().filter(|of| of.taken < stop) {
            unsaved.given = stop.min(unsaved.taken + piece);
            let bytes = &base.bytes(unsaved.content)[unsaved.taken..unsaved.given];
            unsaved.taken += file.write(bytes)?;
        }
        Ok(())
    }

    fn storing(
        &mut self,
        key: &str,
        content: Content,
        store: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.of(key).may_hold.push(Some(content));
        store()?;
        self.of(key).acknowledged(Some(content));
        self.acknowledged += 1;
        Ok(())
    }

    fn rename(&mut self, place: Place<'_>, from: &str, to: &str) -> io::Result<()> {
        self.doing = Doing::Renaming;
        let Some(moved) = self.of(from).holds() else { return Ok(()) };
        self.of(from).may_hold.push(None);
        self.of(from).moving = Some((moved, to.to_owned()));
        self.of(to).may_hold.push(Some(moved));
        self.of(to).tried.push(moved);
        fs::rename(place.mount.join(from), place.mount.join(to))?;
        self.of(from).acknowledged(None);
        self.of(from).moving = None;
        self.of(to).acknowledged(Some(moved));
        self.acknowledged += 1;
        Ok(())
    }

    fn remove(&mut self, place: Place<'_>, key: &str) -> io::Result<()> {
        self.doing = Doing::Removing;
        self.of(key).may_hold.push(None);
        fs::remove_file(place.mount.join(key))?;
        self.of(key).acknowledged(None);
        self.acknowledged += 1;
        Ok(())
    }

    /// Goes on from what S3 holds.
    pub(super) fn settle(&mut self, key: &str, holds: Option<Content>) {
        self.known.insert(key.to_owned(), Known { may_hold: vec![holds], ..Known::default() });
    }

    /// Forgets a key that is not used again.
    pub(super) fn forget(&mut self, key: &str) {
        self.known.remove(key);
    }

    /// Whether a key is written again in a later life.
    pub(super) fn is_kept(key: &str) -> bool {
        key.contains("kept")
    }
}
