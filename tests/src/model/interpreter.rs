//! Carries operations out and checks what comes back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rustix::io::Errno;

use super::files::Fd;
use super::{Files, NAMES, Op, SLOTS, Store};

/// What S3 is to hold under a name, and how often somebody else changed it.
#[derive(Clone, Default)]
struct Object {
    bytes: Option<Vec<u8>>,
    changes: u64,
}

/// A file being written; all writers of a name share it.
struct Staging {
    bytes: Vec<u8>,
    dirty: bool,
    /// Changes of the object when it was opened or stored last.
    changes: u64,
    /// Whether there was an object then.
    seen: bool,
    unlinked: bool,
    /// What was removed with its name is somebody else's: its writers lost to them.
    superseded: bool,
    writers: usize,
}

type Shared = Rc<RefCell<Staging>>;

struct Reader {
    fd: Fd,
    name: usize,
    /// The bytes of the name when it was opened.
    version: Vec<u8>,
    /// Changes of the object, by anybody, when it was opened.
    epoch: u64,
    /// What was written here while it was open: that may show, as on a local disk.
    written: Vec<Shared>,
}

struct Writer {
    fd: Fd,
    name: usize,
    staging: Shared,
}

/// Runs operations against files over a store.
pub struct Interpreter<'a, F: Files> {
    files: F,
    store: &'a dyn Store,
    objects: Vec<Object>,
    /// Counts all changes of a name, local ones, too.
    epochs: Vec<u64>,
    writing: BTreeMap<usize, Shared>,
    readers: [Option<Reader>; SLOTS],
    writers: [Option<Writer>; SLOTS],
}

impl<'a, F: Files> Interpreter<'a, F> {
    /// Starts with what the store holds.
    pub fn new(files: F, store: &'a dyn Store) -> Self {
        let object = |name: &&str| Object { bytes: store.get(name), changes: 0 };
        Self {
            files,
            store,
            objects: NAMES.iter().map(object).collect(),
            epochs: vec![0; NAMES.len()],
            writing: BTreeMap::new(),
            readers: Default::default(),
            writers: Default::default(),
        }
    }

    /// Carries one operation out. `Restart` is the caller's.
    pub fn step(&mut self, op: &Op) {
        match op {
            Op::RemotePut(name, content) => {
                self.store.put(NAMES[*name], content.bytes());
                self.changed_elsewhere(*name, Some(content.bytes()));
            }
            Op::RemoteDelete(name) => {
                self.store.delete(NAMES[*name]);
                self.changed_elsewhere(*name, None);
            }
            Op::OpenRead(slot, name) => self.open_read(*slot, *name),
            Op::Read(slot, offset, len) => self.read(*slot, *offset, *len),
            Op::CloseRead(slot) => {
                if let Some(reader) = self.readers[*slot].take() {
                    self.files.close(reader.fd).expect("a reader's close has nothing to fail for");
                }
            }
            Op::OpenWrite(slot, name) => self.open_write(*slot, *name),
            Op::Write(slot, offset, content) => self.write(*slot, *offset, &content.bytes()),
            Op::Truncate(slot, size) => self.truncate(*slot, *size),
            Op::Fsync(slot) => self.fsync(*slot),
            Op::CloseWrite(slot) => self.close_write(*slot),
            Op::Unlink(name) => self.unlink(*name),
            Op::Rename(from, to) => self.rename(*from, *to),
            Op::List => self.list(),
            Op::Restart => {}
        }
        self.check_store();
    }

    /// Closes everything, checks that all is stored, and gives the files back.
    pub fn finish(mut self) -> F {
        for slot in 0..SLOTS {
            self.step(&Op::CloseRead(slot));
            self.step(&Op::CloseWrite(slot));
        }
        self.list();
        for name in 0..NAMES.len() {
            self.open_read(0, name);
            self.read(0, 0, 2 << 20);
            self.step(&Op::CloseRead(0));
        }
        self.files
    }

    fn changed_elsewhere(&mut self, name: usize, bytes: Option<Vec<u8>>) {
        self.objects[name].bytes = bytes;
        self.objects[name].changes += 1;
        self.epochs[name] += 1;
    }

    fn check_store(&self) {
        for (name, object) in NAMES.iter().zip(&self.objects) {
            let held = self.store.get(name);
            assert!(
                held == object.bytes,
                "S3 holds {:?} bytes of {name}, not {:?}",
                held.map(|b| b.len()),
                object.bytes.as_ref().map(Vec::len)
            );
        }
    }

    fn open_read(&mut self, slot: usize, name: usize) {
        if self.readers[slot].is_some() {
            return;
        }
        let staged = self.writing.get(&name).cloned();
        let expected = match &staged {
            Some(staging) => Some(staging.borrow().bytes.clone()),
            None => self.objects[name].bytes.clone(),
        };
        match self.files.open_read(NAMES[name]) {
            Ok(fd) => {
                let version = expected.expect("opened what is not there");
                let epoch = self.epochs[name];
                let written = staged.into_iter().collect();
                self.readers[slot] = Some(Reader { fd, name, version, epoch, written });
            }
            Err(Errno::NOENT) => assert!(expected.is_none(), "{} is there", NAMES[name]),
            Err(error) => panic!("open {}: {error}", NAMES[name]),
        }
    }

    fn read(&mut self, slot: usize, offset: u64, len: usize) {
        let Some(reader) = &self.readers[slot] else { return };
        let slice = |bytes: &[u8]| {
            let from = (offset as usize).min(bytes.len());
            bytes[from..(from + len).min(bytes.len())].to_vec()
        };
        let name = reader.name;
        match self.files.read(reader.fd, offset, len) {
            Ok(got) => {
                let own = got == slice(&reader.version);
                let staged = reader.written.iter().any(|s| got == slice(&s.borrow().bytes));
                assert!(
                    own || staged,
                    "{}: wrong bytes at {offset}, {} of them",
                    NAMES[name],
                    got.len()
                );
            }
            Err(error) => {
                let gone = self.epochs[name] != reader.epoch || !reader.written.is_empty();
                assert!(gone, "{} is current, but its read failed: {error}", NAMES[name]);
            }
        }
    }

    fn open_write(&mut self, slot: usize, name: usize) {
        if self.writers[slot].is_some() {
            return;
        }
        let fd = match self.files.open_write(NAMES[name]) {
            Ok(fd) => fd,
            Err(error) => panic!("open {} for writing: {error}", NAMES[name]),
        };
        let changes = self.objects[name].changes;
        let there = self.objects[name].bytes.as_ref().map(Vec::len);
        let staging = self.writing.entry(name).or_insert_with(|| {
            let dirty = there != Some(0);
            let bytes = Vec::new();
            Rc::new(RefCell::new(Staging {
                bytes,
                dirty,
                changes,
                seen: there.is_some(),
                unlinked: false,
                superseded: false,
                writers: 0,
            }))
        });
        {
            let mut state = staging.borrow_mut();
            if !state.bytes.is_empty() {
                state.bytes.clear();
                state.dirty = true;
            }
            state.writers += 1;
        }
        for reader in self.readers.iter_mut().flatten().filter(|reader| reader.name == name) {
            reader.written.push(staging.clone());
        }
        self.epochs[name] += 1;
        self.writers[slot] = Some(Writer { fd, name, staging: staging.clone() });
    }

    fn write(&mut self, slot: usize, offset: u64, bytes: &[u8]) {
        let Some(writer) = &self.writers[slot] else { return };
        self.files.write(writer.fd, offset, bytes).expect("a write to staging");
        if bytes.is_empty() {
            return;
        }
        let mut staging = writer.staging.borrow_mut();
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        if staging.bytes.len() < to {
            staging.bytes.resize(to, 0);
        }
        staging.bytes[from..to].copy_from_slice(bytes);
        staging.dirty = true;
    }

    fn truncate(&mut self, slot: usize, size: u64) {
        let Some(writer) = &self.writers[slot] else { return };
        self.files.truncate(writer.fd, size).expect("a truncation of staging");
        let mut staging = writer.staging.borrow_mut();
        if staging.bytes.len() as u64 != size {
            staging.bytes.resize(size as usize, 0);
            staging.dirty = true;
        }
    }

    fn fsync(&mut self, slot: usize) {
        let Some(writer) = &self.writers[slot] else { return };
        let done = self.files.fsync(writer.fd);
        let (name, staging) = (writer.name, writer.staging.clone());
        self.stored(name, &staging, done);
    }

    /// Checks the answer of a store, and notes what it means.
    fn stored(&mut self, name: usize, staging: &Shared, done: Result<(), Errno>) {
        let mut staging = staging.borrow_mut();
        let object = &mut self.objects[name];
        if staging.superseded {
            assert!(matches!(done, Ok(()) | Err(Errno::STALE)), "{done:?}");
            return;
        }
        if staging.unlinked {
            assert_eq!(done, Ok(()), "an unlinked file has nothing to store");
            return;
        }
        match done {
            Ok(()) if staging.dirty => {
                // Emptiness of a new file may wait for its close.
                let held = self.store.get(NAMES[name]);
                assert!(held.as_ref() == Some(&staging.bytes), "{} is not stored", NAMES[name]);
                object.bytes = held;
                staging.dirty = false;
                staging.changes = object.changes;
                staging.seen = true;
                self.epochs[name] += 1;
            }
            Ok(()) => {}
            Err(error) => {
                let lost = staging.changes != object.changes;
                assert!(lost, "{} could not be stored: {error}", NAMES[name]);
                assert!(matches!(error, Errno::STALE | Errno::EXIST), "{error}");
            }
        }
    }

    fn close_write(&mut self, slot: usize) {
        let Some(writer) = self.writers[slot].take() else { return };
        let done = self.files.close(writer.fd);
        let last = {
            let mut staging = writer.staging.borrow_mut();
            staging.writers -= 1;
            staging.writers == 0
        };
        let name = writer.name;
        if last {
            self.stored(name, &writer.staging, done);
            if self.writing.get(&name).is_some_and(|s| Rc::ptr_eq(s, &writer.staging)) {
                self.writing.remove(&name);
            }
        } else {
            // It may be stored already, or be left to the last one.
            let held = self.store.get(NAMES[name]);
            if done == Ok(()) && held.as_ref() == Some(&writer.staging.borrow().bytes) {
                self.stored(name, &writer.staging, done);
            }
        }
    }

    fn unlink(&mut self, name: usize) {
        let there = self.writing.contains_key(&name) || self.objects[name].bytes.is_some();
        match self.files.unlink(NAMES[name]) {
            Ok(()) => {
                assert!(there, "{} was removed, but was not there", NAMES[name]);
                let object = &mut self.objects[name];
                // Of a file that was never stored nothing is removed: what others stored meanwhile
                // is not what had the name here.
                let mut removes = true;
                if let Some(staging) = self.writing.remove(&name) {
                    let mut staging = staging.borrow_mut();
                    removes = staging.seen;
                    staging.unlinked = true;
                    staging.superseded =
                        removes && object.bytes.is_some() && staging.changes != object.changes;
                }
                if removes {
                    object.bytes = None;
                }
                self.epochs[name] += 1;
            }
            Err(Errno::NOENT) => assert!(!there, "{} is there", NAMES[name]),
            Err(error) => panic!("unlink {}: {error}", NAMES[name]),
        }
    }

    fn rename(&mut self, from: usize, to: usize) {
        if from == to || self.writing.contains_key(&from) || self.writing.contains_key(&to) {
            return;
        }
        let bytes = self.objects[from].bytes.clone();
        match self.files.rename(NAMES[from], NAMES[to]) {
            Ok(()) => {
                let bytes = bytes.expect("renamed what is not there");
                self.objects[to].bytes = Some(bytes);
                self.objects[from].bytes = None;
                self.epochs[from] += 1;
                self.epochs[to] += 1;
            }
            Err(Errno::NOENT) => assert!(bytes.is_none(), "{} is there", NAMES[from]),
            Err(error) => panic!("rename {}: {error}", NAMES[from]),
        }
    }

    fn list(&mut self) {
        const DIRS: [&str; 2] = ["dir", "other"];
        for dir in ["", "dir", "other"] {
            let expected: BTreeSet<&str> = (0..NAMES.len())
                .filter(|at| self.writing.contains_key(at) || self.objects[*at].bytes.is_some())
                .filter_map(|at| {
                    let (folder, base) = NAMES[at].rsplit_once('/').unwrap_or(("", NAMES[at]));
                    (folder == dir).then_some(base)
                })
                .collect();
            let names = self.files.list(dir).unwrap_or_default().into_iter();
            let names: BTreeSet<String> =
                names.filter(|n| !dir.is_empty() || !DIRS.contains(&n.as_str())).collect();
            let shown: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            assert_eq!(shown, expected, "{dir:?}");
        }
    }
}
