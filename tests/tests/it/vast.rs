//! Directories with more names than a node keeps, and more directories than it keeps names of.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::Arc;

use rustix::io::Errno;
use weir_fuse::engine::Session;
use weir_fuse::engine::open::OpenRequest;
use weir_fuse::origin::OriginError;
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::hostile::{self, Question};
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::node::{Node, NodeSettings, list, names_of, stream};
use weir_tests::runtime;

/// The least that there can be: 4,000 names, and 2,666 in one directory.
const LEAST: NodeSettings = NodeSettings { memory: 0, ..NodeSettings::DEFAULT };
const VAST: usize = 5000;

/// A bucket whose root is vast, with directories between the files.
fn vast() -> Arc<MemoryOrigin> {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    (0..VAST).for_each(|n| {
        memory.insert(&name(n), "x");
    });
    memory
}

/// Every hundredth is in a directory.
fn name(n: usize) -> String {
    match n % 100 {
        99 => format!("k{n:06}/below"),
        _ => format!("k{n:06}"),
    }
}

fn shown(n: usize) -> (String, bool) {
    (format!("k{n:06}"), n % 100 == 99)
}

fn lookup(session: &Arc<Session>, dir: u64, name: &str) -> Result<u64, Errno> {
    runtime().block_on(session.lookup(dir, name)).map(|entry| entry.attr.ino)
}

#[test]
fn each_name_is_shown_once_and_as_it_is_here() {
    let cache = cache_dir();
    let node = Node::new(cache.path(), vast(), LEAST);
    let session = node.session();
    let all: Vec<_> = (0..VAST).map(shown).collect();
    assert_eq!(list(&session, 1), all);
    // As it is here: one being written, one that was, one that is gone.
    let write = OpenRequest { write: true, ..OpenRequest::default() };
    let create = |name: &str| runtime().block_on(session.create(1, name, &write)).unwrap().1.fh;
    let written = create("k004000x");
    let stored = create("k000001x");
    runtime().block_on(session.release(stored));
    runtime().block_on(session.unlink(1, "k003000")).unwrap();
    let mut expected: BTreeSet<_> = all.into_iter().collect();
    expected.remove(&shown(3000));
    expected.extend(["k004000x", "k000001x"].map(|name| (name.to_owned(), false)));
    let listed = list(&session, 1);
    assert_eq!(listed.len(), expected.len(), "no name twice");
    assert_eq!(BTreeSet::from_iter(listed), expected);
    runtime().block_on(session.release(written));
    assert!(node.engine.name_memory.used() <= node.engine.name_memory.total());
    node.close();
}

#[test]
fn it_can_be_read_from_anywhere_again() {
    let cache = cache_dir();
    let node = Node::new(cache.path(), vast(), LEAST);
    let session = node.session();
    let (fh, _) = runtime().block_on(session.opendir(1)).unwrap();
    let all: Vec<_> = (0..VAST).map(shown).collect();
    for from in [0, 4999, 17, 2500, 2499, 0, 5000] {
        assert_eq!(stream(&session, fh, from as u64 + 2), all[from..], "from {from}");
    }
    session.releasedir(fh);
    node.close();
}

#[test]
fn a_page_that_was_read_earlier_brings_no_older_version_back() {
    let cache = cache_dir();
    let memory = vast();
    let node = Node::new(cache.path(), memory.clone(), LEAST);
    let session = node.session();
    let (fh, _) = runtime().block_on(session.opendir(1)).unwrap();
    let page = runtime().block_on(session.stream_names(fh, 2)).unwrap();
    memory.insert(&name(5), "longer");
    let size = || runtime().block_on(session.lookup(1, &name(5))).unwrap().attr.size;
    assert_eq!(size(), 6);
    let shown = session.show_streamed(1, &page[5]).unwrap();
    assert_eq!((shown.attr.size, size()), (6, 6));
    session.releasedir(fh);
    node.close();
}

#[test]
fn a_file_of_a_directorys_name_is_shown_once_pages_apart() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    // In order: the file, thousands that begin with its name, then the directory.
    memory.insert("a", "file");
    (0..VAST).for_each(|n| {
        memory.insert(&format!("a!{n:06}"), "x");
    });
    memory.insert("a/below", "x");
    memory.insert("b", "x");
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, LEAST);
    let session = node.session();
    let listed = list(&session, 1);
    let names: BTreeSet<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((listed.len(), names.len()), (VAST + 2, VAST + 2));
    node.close();
}

#[test]
fn a_directory_that_is_no_longer_vast_is_kept_again() {
    let memory = vast();
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory.clone(), LEAST);
    let session = node.session();
    assert_eq!(list(&session, 1).len(), VAST);
    (500..VAST).for_each(|n| memory.remove(&name(n)));
    assert_eq!(list(&session, 1).len(), 500);
    assert_eq!(list(&session, 1).len(), 500);
    node.faulty.fail_all(Some(OriginError::Denied("no more".into())));
    assert_eq!(list(&session, 1).len(), 500, "kept");
    node.close();
}

#[test]
fn names_are_given_up_for_others_and_found_again() {
    const DIRS: usize = 12;
    const FILES: usize = 1500;
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    for dir in 0..DIRS {
        (0..FILES).for_each(|n| {
            memory.insert(&format!("d{dir}/f{n}"), "x");
        });
    }
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, LEAST);
    let session = node.session();
    let dirs: Vec<_> =
        (0..DIRS).map(|dir| lookup(&session, 1, &format!("d{dir}")).unwrap()).collect();
    let names = &node.engine.name_memory;
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (dirs, session) = (&dirs, &session);
            scope.spawn(move || {
                for round in 0..DIRS * 4 {
                    let ino = dirs[(round * 7 + n) % DIRS];
                    assert_eq!(list(session, ino).len(), FILES);
                    assert!(names.used() <= names.total() * 2, "{} bytes", names.used());
                    // Whatever was given up: what is there is found, and nothing else.
                    let other = dirs[(round + n) % DIRS];
                    lookup(session, other, &format!("f{}", round % FILES)).unwrap();
                    assert_eq!(lookup(session, other, "missing"), Err(Errno::NOENT));
                }
            });
        }
    });
    assert!(names.used() <= names.total(), "{} bytes", names.used());
    node.close();
}

#[test]
fn what_the_kernel_knows_of_many_files_takes_no_more_than_there_is() {
    const DIRS: usize = 100;
    const FILES: usize = 200;
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    let path = |n: usize| format!("d{:03}/f{:03}", n / FILES, n % FILES);
    (0..DIRS * FILES).for_each(|n| {
        memory.insert(&path(n), format!("{n}"));
    });
    let (cache, dir) = (cache_dir(), tempfile::tempdir().unwrap());
    let node = Node::new(cache.path(), memory, LEAST);
    let mount = node.mount(&dir.path().join("mnt"));
    let at = |n: usize| dir.path().join("mnt").join(path(n));
    let mut open = File::open(at(7)).unwrap();
    let names = &node.engine.name_memory;
    for n in 0..DIRS * FILES {
        assert_eq!(at(n).metadata().unwrap().len(), format!("{n}").len() as u64);
        assert!(names.used() <= names.total() * 3 / 2, "{} of {}", names.used(), names.total());
    }
    // What was given up is found again, and what is open was not.
    for n in (0..DIRS * FILES).step_by(61).chain([7]) {
        assert_eq!(fs::read_to_string(at(n)).unwrap(), format!("{n}"));
    }
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "7");
    assert_eq!(open.metadata().unwrap().len(), 1);
    drop(open);
    drop(mount);
    node.close();
}

#[test]
fn who_has_too_many_files_open_is_told_and_others_open_theirs() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    memory.insert("f", "x");
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, LEAST);
    let (session, other) = (node.session(), node.session());
    let ino = lookup(&session, 1, "f").unwrap();
    let read = OpenRequest::default();
    let open = || runtime().block_on(session.open(ino, &read)).map(|opened| opened.fh);
    let mut opened = Vec::new();
    let refused = loop {
        match open() {
            Ok(fh) => opened.push(fh),
            Err(errno) => break errno,
        }
        assert!(opened.len() <= 1 << 20, "there is no end");
    };
    assert_eq!(refused, Errno::NFILE);
    assert_eq!(runtime().block_on(session.opendir(1)).unwrap_err(), Errno::NFILE);
    let create = |name| runtime().block_on(session.create(1, name, &read)).map(|_| ());
    assert_eq!(create("new").unwrap_err(), Errno::NFILE);
    let names = &node.engine.name_memory;
    assert!(names.used() >= opened.len() as u64 * 512, "they count");
    let theirs = lookup(&other, 1, "f").unwrap();
    let theirs = runtime().block_on(other.open(theirs, &read)).unwrap().fh;
    runtime().block_on(other.release(theirs));
    runtime().block_on(session.release(opened.pop().unwrap()));
    opened.push(open().unwrap());
    for fh in opened {
        runtime().block_on(session.release(fh));
    }
    node.close();
}

#[test]
fn open_descriptors_of_a_changing_directory_take_no_more_than_there_is() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    (0..1500).for_each(|n| {
        memory.insert(&name(n), "x");
    });
    let cache = cache_dir();
    let node = Node::new(cache.path(), memory, LEAST);
    let session = node.session();
    // Each has names of its own, as long as they are kept for it.
    let opened: Vec<_> = (0..100)
        .map(|n| {
            runtime().block_on(session.mkdir(1, &format!("made{n}"))).unwrap();
            runtime().block_on(session.opendir(1)).unwrap().0
        })
        .collect();
    let names = &node.engine.name_memory;
    assert!(names.used() <= names.total() * 5 / 4, "{} of {}", names.used(), names.total());
    for (n, fh) in opened.into_iter().enumerate() {
        assert!(names_of(&session, fh).len() > 1500 + n);
        session.releasedir(fh);
    }
    node.close();
}

/// Keys of a flat directory, as many as there should be.
fn flat(question: &Question, keys: usize) -> hostile::Answer {
    let (_, query) = question.target.split_once('?').unwrap_or((&question.target, ""));
    let asked = |name: &str| {
        let all = query.split('&').filter_map(|pair| pair.split_once('='));
        all.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next()
    };
    if asked("list-type").is_none() {
        return hostile::not_found();
    }
    let most = asked("max-keys").and_then(|max| max.parse().ok()).unwrap_or(1000);
    let prefix = asked("prefix").unwrap_or_default();
    let from = asked("continuation-token").map_or(0, |token| token.parse().unwrap());
    let to = if prefix.is_empty() { keys.min(from + most) } else { from };
    let mut text = String::from("<ListBucketResult><EncodingType>url</EncodingType>");
    for n in from..to {
        text += &format!(
            "<Contents><Key>k{n:08}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;e{n}&quot;</ETag><Size>1</Size></Contents>"
        );
    }
    match to < keys && prefix.is_empty() {
        true => {
            text += &format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{to}");
            text += "</NextContinuationToken>";
        }
        false => text += "<IsTruncated>false</IsTruncated>",
    }
    text += "</ListBucketResult>";
    hostile::answer("Content-Type: application/xml\r\n", text.as_bytes())
}

/// Ten million with `WEIR_VAST_KEYS=10000000`.
#[test]
fn a_flat_directory_of_any_length_takes_no_memory() {
    let keys = std::env::var("WEIR_VAST_KEYS").map_or(400_000, |keys| keys.parse().unwrap());
    let mut bucket = Bucket::new(Server::Embedded);
    bucket.url = hostile::start(move |question: &Question| flat(question, keys));
    let mount = Mount::with(&bucket, &Options::flags("--memory-target 8MiB"));
    let mut count = 0;
    for entry in fs::read_dir(mount.path()).unwrap() {
        assert_eq!(entry.unwrap().file_name(), format!("k{count:08}").as_str());
        count += 1;
    }
    assert_eq!(count, keys);
    assert!(mount.peak_mib() < 128, "{} MiB", mount.peak_mib());
    mount.unmount();
}

#[test]
fn tools_go_through_a_vast_directory() {
    let memory = Arc::new(MemoryOrigin::new("bucket"));
    (0..VAST).for_each(|n| {
        memory.insert(&format!("d/k{n:06}"), "x");
    });
    let (cache, dir) = (cache_dir(), tempfile::tempdir().unwrap());
    let node = Node::new(cache.path(), memory.clone(), LEAST);
    let mount = node.mount(&dir.path().join("mnt"));
    let below = dir.path().join("mnt/d");
    let sizes = fs::read_dir(&below).unwrap();
    let sizes = sizes.map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(sizes.sum::<u64>(), VAST as u64);
    File::create(below.join("new")).unwrap().write_all(b"new").unwrap();
    assert_eq!(fs::read_dir(&below).unwrap().count(), VAST + 1);
    fs::remove_dir_all(&below).unwrap();
    assert!(memory.objects().is_empty());
    drop(mount);
    node.close();
}
