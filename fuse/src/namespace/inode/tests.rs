use std::sync::Mutex;
use std::time::SystemTime;

use super::*;
use crate::model::key::DirPrefix;
use crate::model::version::{ETag, ObjectInfo};

/// A kernel that notes what it was asked to forget.
#[derive(Default)]
struct Asked(Mutex<Vec<u64>>);

impl KernelNodes for Asked {
    fn prune(&self, inodes: Vec<u64>) -> bool {
        self.0.lock().unwrap().extend(inodes);
        true
    }
}

struct Lab {
    memory: Arc<NameMemory>,
    root: Arc<Dir>,
    table: Arc<InodeTable>,
}

impl Lab {
    /// The least memory that there can be: 4,000 nodes, if there is nothing else.
    fn new() -> Self {
        let memory = NameMemory::new(0);
        let root = Dir::root(DirPrefix::root(), memory.clone());
        let table = InodeTable::new(Node::Dir(root.clone()), 0, memory.clone());
        Self { memory, root, table }
    }

    fn most(&self) -> u64 {
        self.memory.total() / NODE_BYTES
    }

    /// The kernel looks a file up that it did not know.
    fn file(&self) -> Arc<FileNode> {
        let info = ObjectInfo {
            size: 1,
            etag: ETag::new("e"),
            mtime: SystemTime::UNIX_EPOCH,
            version_id: None,
            writer: None,
        };
        let node = FileNode::new(self.table.next_ino(), self.root.clone(), "k", &info);
        self.table.referenced(node.ino, Node::File(node.clone()));
        node
    }

    fn dir(&self) -> u64 {
        let ino = self.table.next_ino();
        self.table.referenced(ino, Node::Dir(Dir::below(&self.root, "d", ino)));
        ino
    }
}

#[test]
fn however_many_files_are_looked_up_they_take_no_more_than_there_is() {
    let lab = Lab::new();
    let open: Vec<_> = (0..10).map(|_| lab.file()).collect();
    for _ in 0..lab.most() * 3 {
        lab.file();
        assert!(lab.memory.used() <= lab.memory.total());
        assert!(lab.table.len() as u64 <= lab.most() + 1);
    }
    assert!(lab.table.len() as u64 > lab.most() / 4, "far too few are left");
    for node in &open {
        assert!(lab.table.get(node.ino).is_some(), "an open one was given up");
    }
    assert!(lab.table.get(ROOT_INO).is_some());
    let memory = lab.memory.clone();
    drop((lab, open));
    assert_eq!(memory.used(), 0);
}

#[test]
fn what_is_used_stays_and_the_kernel_is_asked_to_forget_the_rest() {
    let lab = Lab::new();
    let asked = Arc::new(Asked::default());
    let kernel: Arc<dyn KernelNodes> = asked.clone();
    lab.table.connect(&kernel);
    let used: Vec<u64> = (0..10).map(|_| lab.file().ino).collect();
    for _ in 0..lab.most() * 3 {
        lab.file();
        assert!(used.iter().all(|ino| lab.table.get(*ino).is_some()));
    }
    let asked = asked.0.lock().unwrap();
    assert!(asked.len() as u64 > lab.most(), "{} asked for", asked.len());
    assert!(!asked.iter().any(|ino| used.contains(ino) || *ino == ROOT_INO));
}

#[test]
fn what_one_mount_has_too_many_of_is_given_up_and_nobody_elses() {
    let other = Lab::new();
    let root = Dir::root(DirPrefix::root(), other.memory.clone());
    let table = InodeTable::new(Node::Dir(root.clone()), 0, other.memory.clone());
    let lab = Lab { memory: other.memory.clone(), root, table };
    let few: Vec<u64> = (0..100).map(|_| other.file().ino).collect();
    (0..lab.most() * 3).for_each(|_| drop(lab.file()));
    assert!(few.iter().all(|ino| other.table.get(*ino).is_some()));
}

#[test]
fn directories_are_left_to_the_kernel_until_it_keeps_far_too_many() {
    let lab = Lab::new();
    let asked = Arc::new(Asked::default());
    let kernel: Arc<dyn KernelNodes> = asked.clone();
    lab.table.connect(&kernel);
    while asked.0.lock().unwrap().is_empty() {
        lab.dir();
    }
    let known = lab.table.len() as u64;
    assert!(known >= lab.most() / 2, "{known} were enough");
    // It forgets what it was asked for.
    for ino in std::mem::take(&mut *asked.0.lock().unwrap()) {
        lab.table.forget(ino, 1);
    }
    assert!(lab.memory.used() <= lab.memory.total() / 2);
    // And here it does not.
    (0..lab.most() * 3).for_each(|_| _ = lab.dir());
    assert!(lab.memory.used() <= lab.memory.total() / 2 * 3);
}

/// A file that is mounted by itself has no name that the kernel could look up again.
#[test]
fn what_the_kernel_needs_stays_while_it_forgets_the_rest() {
    let lab = Lab::new();
    let asked = Arc::new(Asked::default());
    let kernel: Arc<dyn KernelNodes> = asked.clone();
    lab.table.connect(&kernel);
    let needed: Vec<u64> = (0..10).map(|_| lab.file().ino).collect();
    for _ in 0..lab.most() * 10 {
        lab.file();
        for ino in std::mem::take(&mut *asked.0.lock().unwrap()) {
            if !needed.contains(&ino) {
                lab.table.forget(ino, 1);
            }
        }
        assert!(lab.memory.used() <= lab.memory.total() / 4 * 5);
    }
    assert!(needed.iter().all(|ino| lab.table.get(*ino).is_some()));
    // Now the kernel forgets nothing any more, however far it goes.
    (0..lab.most() * 3).for_each(|_| _ = lab.file());
    assert!(lab.memory.used() <= lab.memory.total() / 2 * 3);
}
