//! Writers whose mount is killed at random moments, again and again: what was acknowledged is
//! there, what was not is in `lost/`, and nothing is left behind.

mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use weir_node::lost::folder::{self, LostFile};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::eventually;
use weir_tests::mount::{Mount, Options, cache_dir, run};
use writer::{Base, Content, Doing, Known, Place, Writer};

/// How often the mount is killed, unless `WEIR_KILLS` says so.
const KILLS: u64 = 20;
const WRITERS: usize = 4;
/// Longest life of a mount: a file in parts takes about as long.
const LIFE_MS: std::ops::Range<u64> = 20..1200;
/// How the log tells of bytes that were not stored.
const NOT_STORED: &str = "bytes of an earlier run were not stored";
const ABORTING: &str = "aborting an upload of an earlier run";

/// What a run has seen.
#[derive(Default, Debug)]
#[allow(dead_code, reason = "it is printed")]
struct Seen {
    kills: u64,
    acknowledged: usize,
    /// What writers were doing when their mount was killed.
    met: BTreeMap<Doing, usize>,
    /// Stores that were not answered and have happened, or have not.
    happened: usize,
    not_happened: usize,
    /// Files whose bytes are in `lost/`.
    lost: usize,
    /// Uploads that a later mount has aborted.
    aborted: usize,
    /// What MinIO left of objects that were being removed.
    ghosts: usize,
}

/// What a mount that came up after a kill has to show.
struct Scene<'a> {
    bucket: &'a Bucket,
    base: &'a Base,
    mount: &'a Mount,
    cache: &'a Path,
    /// What it has logged since.
    log: String,
    lost: Vec<LostFile>,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn kill_9_at_any_moment_loses_no_acknowledged_byte_and_leaves_nothing() {
    let seed = setting("WEIR_KILLS_SEED").unwrap_or_else(rand::random);
    println!("WEIR_KILLS_SEED={seed}");
    let (bucket, base, cache) = (Bucket::new(Server::Minio), Base::new(), cache_dir());
    let log = cache.path().with_extension("log");
    let flags = "--write-part-size 5MiB --cache-max-size 300MiB --metadata-ttl minimal";
    let options = Options::flags(flags).cache(cache.path()).log(&log);
    let mut random = StdRng::seed_from_u64(seed);
    let mut writers: Vec<_> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let mut seen = Seen::default();
    let mut mount = Mount::with(&bucket, &options);
    for kill in 0..setting("WEIR_KILLS").unwrap_or(KILLS) {
        let life = Duration::from_millis(random.random_range(LIFE_MS));
        seen.kills += 1;
        let (path, base) = (mount.path(), &base);
        let place = Place { mount: &path, base, bucket: &bucket };
        die(&mount, life, &mut writers, place, &mut seen);
        mount.kill();
        fs::write(&log, "").unwrap();
        mount = Mount::with(&bucket, &options);
        eventually("what was left is worked off", || is_empty(&cache.path().join("staging")));
        let lost = folder::list(cache.path()).unwrap();
        let log = fs::read_to_string(&log).unwrap();
        let scene = Scene { bucket: &bucket, base, mount: &mount, cache: cache.path(), log, lost };
        scene.check(&mut writers, &mut seen, &format!("kill {kill} of seed {seed}"));
    }
    mount.unmount();
    let _ = fs::remove_file(&log);
    seen.ghosts += writers.iter().map(|writer| writer.ghosts).sum::<usize>();
    println!("{seen:?}");
}

/// Lets the writers work, and kills the mount under them.
fn die(mount: &Mount, life: Duration, writers: &mut [Writer], place: Place<'_>, seen: &mut Seen) {
    let killed = AtomicBool::new(false);
    let before: usize = writers.iter().map(|writer| writer.acknowledged).sum();
    std::thread::scope(|scope| {
        let working: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let killed = &killed;
                scope.spawn(move || {
                    let (doing, error) = writer.work(place);
                    assert!(killed.load(Ordering::SeqCst), "{doing:?} failed: {error}");
                    doing
                })
            })
            .collect();
        std::thread::sleep(life);
        killed.store(true, Ordering::SeqCst);
        mount.signal(Signal::KILL);
        for writer in working {
            *seen.met.entry(writer.join().unwrap()).or_default() += 1;
        }
    });
    let after: usize = writers.iter().map(|writer| writer.acknowledged).sum();
    seen.acknowledged += after - before;
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

impl Scene<'_> {
    fn check(&self, writers: &mut [Writer], seen: &mut Seen, at: &str) {
        let held = |key: &String| (key.clone(), self.bucket.get(key));
        let keys = writers.iter().flat_map(|writer| writer.known.keys());
        let stored: BTreeMap<_, _> = keys.map(held).collect();
        let absent = stored.iter().filter(|(_, bytes)| bytes.is_none());
        seen.ghosts += absent.filter(|(key, _)| self.bucket.clear_ghost(key)).count();
        let known = writers.iter().flat_map(|writer| &writer.known);
        for (key, known) in known {
            let stored_here = stored[key].as_deref();
            let at = format!("{at}: {key}");
            self.check_stored(key, known, stored_here, &at);
            if let Some((moved, to)) = &known.moving {
                let moved = Some(self.base.bytes(*moved));
                let is_there = stored_here == moved || stored[to].as_deref() == moved;
                assert!(is_there, "{at}: a rename lost what it moved");
            }
            self.check_unsaved(key, known, stored_here, &at);
            if known.may_hold.len() > 1 {
                let first = known.may_hold[0].map(|content| self.base.bytes(content));
                let happened = stored_here != first;
                *(if happened { &mut seen.happened } else { &mut seen.not_happened }) += 1;
            }
        }
        assert_eq!(self.bucket.uploads_of(".weir-probe"), 0, "{at}: an upload of a probe is left");
        for lost in &self.lost {
            self.check_lost(lost, writers, at);
        }
        seen.lost += self.lost.len();
        seen.aborted += self.log.matches(ABORTING).count();
        self.tidy(writers, &stored);
    }

    /// S3 holds what was acknowledged, or what was being stored; the mount shows it, and no upload
    /// is left.
    fn check_stored(&self, key: &str, known: &Known, stored: Option<&[u8]>, at: &str) {
        let allowed = |may: &Option<Content>| may.map(|may| self.base.bytes(may)) == stored;
        assert!(
            known.may_hold.iter().any(allowed),
            "{at}: S3 holds {:?} bytes, allowed is {:?}",
            stored.map(<[u8]>::len),
            known.may_hold
        );
        let shown = fs::read(self.mount.join(key)).ok();
        assert!(shown.as_deref() == stored, "{at}: the mount shows something else");
        if !known.tried.is_empty() {
            assert_eq!(self.bucket.uploads_of(key), 0, "{at}: an upload is left");
        }
    }

    /// What write(2) took and nothing acknowledged is stored or in `lost/`.
    fn check_unsaved(&self, key: &str, known: &Known, stored: Option<&[u8]>, at: &str) {
        let Some(unsaved) = known.unsaved.filter(|unsaved| unsaved.taken > unsaved.saved) else {
            return;
        };
        let lens = unsaved.taken..=unsaved.given;
        let is_it = |bytes: &[u8]| {
            lens.contains(&bytes.len())
                && bytes == self.base.bytes(unsaved.content.first(bytes.len()))
        };
        let mut kept = self.lost.iter().filter(|lost| lost.key == key);
        let is_kept = kept.any(|lost| is_it(&fs::read(lost.path()).unwrap()));
        assert!(stored.is_some_and(is_it) || is_kept, "{at}: {unsaved:?} is lost without a trace");
    }

    /// What is in `lost/` was written, and the log has a line for it.
    fn check_lost(&self, lost: &LostFile, writers: &[Writer], at: &str) {
        let at = format!("{at}: lost/ has {} bytes of {}", lost.size, lost.key);
        let known = writers.iter().find_map(|writer| writer.known.get(&lost.key));
        let bytes = fs::read(lost.path()).unwrap();
        let is_of = |content: &Content| self.base.bytes(*content).starts_with(&bytes);
        assert!(known.is_some_and(|known| known.tried.iter().any(is_of)), "{at}, of no writer");
        assert_eq!(lost.bucket, self.bucket.name, "{at}");
        let told = |line: &str| line.contains(NOT_STORED) && line.contains(&lost.key);
        assert!(self.log.lines().any(told), "{at}, and the log no line of it");
    }

    /// Leaves what is written again, and shows and removes what is lost as a person does.
    fn tidy(&self, writers: &mut [Writer], stored: &BTreeMap<String, Option<Vec<u8>>>) {
        for writer in writers {
            for (key, known) in writer.known.clone() {
                let bytes = stored[&key].as_deref();
                if Writer::is_kept(&key) {
                    let is_it =
                        |may: &&Option<Content>| may.map(|may| self.base.bytes(may)) == bytes;
                    writer.settle(&key, *known.may_hold.iter().find(is_it).unwrap());
                    continue;
                }
                if bytes.is_some() {
                    fs::remove_file(self.mount.join(&key)).unwrap();
                    assert_eq!(self.bucket.get(&key), None);
                }
                writer.forget(&key);
            }
        }
        if let Some(first) = self.lost.first() {
            let dir = self.cache.to_str().unwrap();
            let listed = run(self.bucket, &["lost", "list", "--cache-dir", dir]);
            let listed = String::from_utf8(listed.stdout).unwrap();
            assert!(listed.contains(&first.key), "{listed}");
        }
        self.lost.iter().for_each(|lost| lost.remove().unwrap());
    }
}
