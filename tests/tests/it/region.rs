//! A regional cache before the origin: bytes come from it, and it decides nothing.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use weir_tests::aistore::{AiStore, Manners};
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume};
use weir_tests::mount::{Mount, Options, cache_dir, run};
use weir_tests::sts::Issuer;
use weir_tests::{eventually, random_bytes};

const MIB: usize = 1 << 20;
const SIZE: usize = 3 * MIB;

/// A bucket, and a region before it.
struct World {
    bucket: Bucket,
    region: AiStore,
}

fn world() -> World {
    let bucket = Bucket::new(Server::Minio);
    let region = AiStore::before(&bucket);
    World { bucket, region }
}

impl World {
    fn mount(&self, flags: &str) -> Mount {
        Mount::flags(&self.bucket, &format!("--region-url {} {flags}", self.region.url()))
    }
}

fn bytes_of_region(mount: &Mount) -> f64 {
    mount.metrics().get("weir_region_fetched_bytes_total").copied().unwrap_or_default()
}

/// How often the region was asked, whatever came of it.
fn asked_of_region(mount: &Mount) -> f64 {
    let metrics = mount.metrics();
    let asked = metrics.iter().filter(|(name, _)| name.starts_with("weir_region_requests_total"));
    asked.map(|(_, count)| count).sum()
}

fn wrong_objects(mount: &Mount) -> f64 {
    mount.metrics().get("weir_region_wrong_objects_total").copied().unwrap_or_default()
}

#[test]
fn files_are_read_from_the_region_and_the_origin_is_asked_for_a_byte() {
    let world = world();
    let names = ["model.bin", "dir/with space", "dir/ä+%#", "dir/deep/er"];
    for (n, name) in (0..).zip(names) {
        world.bucket.put(name, random_bytes(n, SIZE));
    }
    for n in 0..10 {
        world.bucket.put(&format!("more-{n}"), random_bytes(n, 4096));
    }
    let mount = world.mount("");
    for (n, name) in (0..).zip(names) {
        assert!(fs::read(mount.join(name)).unwrap() == random_bytes(n, SIZE), "{name}");
    }
    assert_eq!(bytes_of_region(&mount) as usize, names.len() * SIZE);
    assert_eq!(world.region.fetched_bytes() as usize, names.len() * SIZE);
    let of_origin = mount.fetched() as usize - bytes_of_region(&mount) as usize;
    assert_eq!(of_origin, 0, "bytes came from the origin");
    // One byte was asked for, for all.
    let status = mount.status();
    let counters = &status.counters;
    assert_eq!((counters.origin_bytes, counters.region_bytes as usize), (1, names.len() * SIZE));
    let region = status.regions[0].clone();
    assert_eq!((region.url, region.is_shut), (world.region.url(), false));
    // While it fails it says so.
    world.region.behave(Manners { fails_with: Some(500), ..Manners::default() });
    for n in 0..10 {
        let name = format!("more-{n}");
        assert!(fs::read(mount.join(&name)).unwrap() == random_bytes(n, 4096), "{name}");
    }
    assert!(mount.status().regions[0].is_shut);
}

#[test]
fn what_the_region_answers_otherwise_than_it_should_is_not_read() {
    let world = world();
    let manners = [
        Manners { ignores_ranges: true, ..Manners::default() },
        Manners { missizes: true, ..Manners::default() },
        Manners { is_full: true, ..Manners::default() },
        Manners { fails_with: Some(500), ..Manners::default() },
        Manners { fails_with: Some(403), ..Manners::default() },
        Manners { hangs: true, ..Manners::default() },
        Manners { redirects_to: Some("http://192.0.2.1".into()), ..Manners::default() },
        Manners { redirects_to: Some("https://127.0.0.1".into()), ..Manners::default() },
    ];
    for (n, manners) in (0..).zip(manners) {
        let name = format!("file-{n}");
        world.bucket.put(&name, random_bytes(n, SIZE));
        world.region.behave(manners.clone());
        let mount = world.mount("");
        assert!(fs::read(mount.join(&name)).unwrap() == random_bytes(n, SIZE), "{manners:?}");
        assert_eq!(bytes_of_region(&mount), 0.0, "{manners:?}");
        assert!(asked_of_region(&mount) > 0.0, "{manners:?}");
    }
}

#[test]
fn a_body_of_the_region_that_is_cut_or_goes_on_ends_with_bytes_of_the_origin() {
    let world = world();
    let cut = Manners { cuts_at: Some(100_000), ..Manners::default() };
    for (n, manners) in (0..).zip([cut, Manners { goes_on: true, ..Manners::default() }]) {
        let name = format!("file-{n}");
        world.bucket.put(&name, random_bytes(n, SIZE));
        world.region.behave(manners.clone());
        let mount = world.mount("");
        assert!(fs::read(mount.join(&name)).unwrap() == random_bytes(n, SIZE), "{manners:?}");
        assert!(bytes_of_region(&mount) > 0.0, "{manners:?}");
    }
}

#[test]
fn a_version_that_the_region_kept_is_not_read_and_it_is_told_to_forget_it() {
    let world = world();
    world.bucket.put("f", random_bytes(1, SIZE));
    let mount = world.mount("--metadata-ttl minimal");
    assert!(fs::read(mount.join("f")).unwrap() == random_bytes(1, SIZE));
    assert!(world.region.has("f"));
    world.bucket.put("f", random_bytes(2, SIZE));
    assert!(fs::read(mount.join("f")).unwrap() == random_bytes(2, SIZE));
    eventually("the region is told", || world.region.told() == ["f"]);
    assert_eq!(wrong_objects(&mount), 0.0);
}

impl World {
    /// The region has what the bucket has under these names.
    fn warm(&self, mount: &Mount, names: &[&str]) {
        names.iter().for_each(|name| drop(self.bucket.put(name, random_bytes(1, SIZE))));
        for name in names {
            // What the mount has listed before lacks it for a second.
            eventually("it is there", || mount.join(name).exists());
            assert!(fs::read(mount.join(name)).unwrap() == random_bytes(1, SIZE));
            assert!(self.region.has(name), "{name}");
        }
    }

    fn was_told(&self, names: &[&str]) -> bool {
        let told = self.region.told();
        names.iter().all(|name| told.iter().any(|of| of == name))
    }

    fn forgets(&self, names: &[&str]) {
        eventually("the region is told", || self.was_told(names));
        eventually("it has forgotten", || !names.iter().any(|name| self.region.has(name)));
    }
}

#[test]
fn what_is_changed_through_a_mount_the_region_forgets() {
    let world = world();
    let mount = world.mount("");
    let names = ["overwritten", "removed", "from", "replaced", "kept"];
    world.warm(&mount, &names);
    fs::write(mount.join("new"), "new").unwrap();
    fs::write(mount.join("large"), random_bytes(3, 20 * MIB)).unwrap();
    fs::write(mount.join("empty"), "").unwrap();
    fs::write(mount.join("overwritten"), "new").unwrap();
    fs::remove_file(mount.join("removed")).unwrap();
    fs::rename(mount.join("from"), mount.join("replaced")).unwrap();
    let changed = ["new", "large", "empty", "overwritten", "removed", "from", "replaced"];
    world.forgets(&changed);
    let forgotten = "weir_region_evictions_total{outcome=\"forgotten\"}";
    let says_so = || mount.metrics().get(forgotten).is_some_and(|n| *n >= changed.len() as f64);
    eventually("that is counted", says_so);
    assert!(world.region.has("kept") && !world.was_told(&["kept"]));
    assert!(fs::read(mount.join("replaced")).unwrap() == random_bytes(1, SIZE));
}

#[test]
fn a_region_that_hangs_delays_no_change_and_is_told_later_in_one_list() {
    let world = world();
    let mount = world.mount("");
    let files: Vec<_> = (0..20).map(|n| format!("dir/{n}")).collect();
    for name in &files {
        world.bucket.put(name, vec![7; 1000]);
    }
    world.warm(&mount, &["removed"]);
    world.region.behave(Manners { hangs_when_told: true, ..Manners::default() });
    fs::write(mount.join("f"), "new").unwrap();
    eventually("it is being told", || world.region.held() > 0);
    fs::write(mount.join("g"), "new").unwrap();
    fs::remove_file(mount.join("removed")).unwrap();
    fs::rename(mount.join("dir"), mount.join("moved")).unwrap();
    assert!(world.region.told().is_empty() && world.region.has("removed"), "it has answered");
    world.region.behave(Manners::default());
    let moved = files.iter().map(|name| name.replace("dir/", "moved/"));
    let all: Vec<_> = files.iter().cloned().chain(moved).collect();
    let is_of_it = |name: &&String| all.contains(name);
    eventually("the region is told", || world.region.told().iter().filter(is_of_it).count() == 40);
    let lists = world.region.lists();
    assert_eq!(lists.iter().filter(|list| list.iter().any(|name| all.contains(name))).count(), 1);
    world.forgets(&["f", "g", "removed"]);
}

#[test]
fn what_the_region_was_not_told_before_a_crash_it_is_told_after_it() {
    let world = world();
    let cache = cache_dir();
    let flags = format!("--region-url {}", world.region.url());
    let mount = || Mount::with(&world.bucket, &Options::flags(&flags).cache(cache.path()));
    let first = mount();
    world.warm(&first, &["overwritten", "removed", "from"]);
    world.region.behave(Manners { refuses_when_told: Some(503), ..Manners::default() });
    fs::write(first.join("overwritten"), "new").unwrap();
    fs::remove_file(first.join("removed")).unwrap();
    fs::rename(first.join("from"), first.join("to")).unwrap();
    // Nobody has closed it.
    let mut open = fs::File::create(first.join("open")).unwrap();
    open.write_all(b"new").unwrap();
    open.sync_all().unwrap();
    first.kill();
    assert!(world.region.told().is_empty());
    world.region.behave(Manners::default());
    let _second = mount();
    world.forgets(&["overwritten", "removed", "from", "to", "open"]);
}

#[test]
fn a_node_that_was_killed_tells_the_region_what_it_had_not_when_it_comes_back() {
    let world = world();
    let node_flags = vec![format!("--region-url={}", world.region.url())];
    let node = CsiNode::with(&world.bucket, Setup { node_flags, ..Setup::default() });
    let target = node.publish(&TestVolume::new(&world.bucket, "one")).unwrap();
    world.region.behave(Manners { refuses_when_told: Some(503), ..Manners::default() });
    fs::write(target.join("f"), "new").unwrap();
    node.take_node().kill();
    assert!(world.region.told().is_empty());
    world.region.behave(Manners::default());
    node.start_node();
    eventually("the region is told", || world.was_told(&["f"]));
}

/// Objects whose tag is the MD5 of their bytes.
#[test]
fn wrong_bytes_of_the_region_are_dropped_once_all_are_there_and_it_is_not_asked_again() {
    // The kernel has them, too, where it keeps what it has read.
    ["", "--passthrough off"].into_iter().for_each(drops_wrong_bytes);
}

fn drops_wrong_bytes(flags: &str) {
    let world = world();
    world.bucket.put("small", random_bytes(1, 100_000));
    world.bucket.put("large", random_bytes(2, SIZE));
    world.region.behave(Manners { corrupts: true, ..Manners::default() });
    let mount = world.mount(flags);
    assert!(fs::read(mount.join("small")).unwrap() == random_bytes(1, 100_000));
    assert_eq!(wrong_objects(&mount), 1.0);
    // Who reads it before all of it is there cannot know.
    fs::read(mount.join("large")).unwrap();
    eventually("it is noticed", || wrong_objects(&mount) == 2.0);
    let is_right = || fs::read(mount.join("large")).unwrap() == random_bytes(2, SIZE);
    eventually("it is read from the origin", is_right);
    eventually("the region is told", || world.was_told(&["small", "large"]));
    let asked = world.region.asked();
    assert!(is_right() && fs::read(mount.join("small")).unwrap() == random_bytes(1, 100_000));
    assert_eq!((world.region.asked(), wrong_objects(&mount)), (asked, 2.0));
}

#[test]
fn wrong_bytes_of_the_region_are_found_in_a_file_that_a_later_mount_has_the_rest_of() {
    let world = world();
    let bytes = random_bytes(1, 4 * SIZE);
    let cache = cache_dir();
    let mount =
        |flags: &str| Mount::with(&world.bucket, &Options::flags(flags).cache(cache.path()));
    world.region.behave(Manners { corrupts: true, ..Manners::default() });
    let with_region = mount(&format!("--region-url {}", world.region.url()));
    // Of a region that is late the origin is sooner.
    let is_wrong = |name: &String| {
        world.bucket.put(name, bytes.clone());
        eventually("it is there", || with_region.join(name).exists());
        let mut first = [0; 4096];
        fs::File::open(with_region.join(name)).unwrap().read_exact(&mut first).unwrap();
        first != bytes[..4096]
    };
    let name = (0..20).map(|n| format!("f{n}")).find(is_wrong).unwrap();
    eventually("some of it is kept", || with_region.status().cache.used_bytes > 0);
    drop(with_region);
    let mount = mount("");
    assert!(fs::read(mount.join(&name)).unwrap() != bytes, "all was fetched anew");
    eventually("all is the origin's", || fs::read(mount.join(&name)).unwrap() == bytes);
}

#[test]
fn a_token_is_sent_to_the_region_and_read_again_when_it_changes() {
    let world = world();
    for n in 0..2 {
        world.bucket.put(&format!("f{n}"), random_bytes(n, SIZE));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let wants = |token: &str| {
        world.region.behave(Manners { token: Some(token.into()), ..Manners::default() })
    };
    fs::write(&file, "first\n").unwrap();
    wants("first");
    let mount = world.mount(&format!("--region-token-file {}", file.display()));
    assert!(fs::read(mount.join("f0")).unwrap() == random_bytes(0, SIZE));
    assert_eq!(bytes_of_region(&mount) as usize, SIZE);
    fs::write(&file, "second\n").unwrap();
    wants("second");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(fs::read(mount.join("f1")).unwrap() == random_bytes(1, SIZE));
    assert_eq!(bytes_of_region(&mount) as usize, 2 * SIZE);
    assert_eq!(world.region.tokens().len(), 2);
}

/// What the region gives it gives to the node.
#[test]
fn what_a_region_has_is_shown_to_those_alone_whom_the_origin_lets_read_it_now() {
    let issuer = Issuer::start();
    let bucket = &issuer.bucket;
    let size = 32 * SIZE;
    bucket.put("f", vec![7; SIZE]);
    bucket.put("large", vec![7; size]);
    let region = AiStore::before(bucket);
    let node_flags = vec![format!("--region-url={}", region.url())];
    let node = CsiNode::with(bucket, Setup { node_flags, ..Setup::default() });
    let (reading, listing) = (issuer.reading(), issuer.keys(&["s3:ListBucket"]));
    let one = TestVolume::new(bucket, "one");
    let first = node.publish(&one.clone().session_keys(&reading)).unwrap();
    assert!(fs::read(first.join("f")).unwrap() == vec![7; SIZE]);
    assert_eq!(region.given_bytes() as usize, SIZE);
    let large = fs::File::open(first.join("large")).unwrap();
    let mut piece = [0; 4096];
    large.read_exact_at(&mut piece, (size - MIB) as u64).unwrap();

    let two = TestVolume { group: Some(2000), ..one.pod("two") }.session_keys(&listing);
    let second = node.publish(&two).unwrap();
    for name in ["f", "large"] {
        let error = fs::read(second.join(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
    }
    // The first, too, may only list now. Requests are signed with what it had for some time yet.
    node.publish(&one.session_keys(&listing)).unwrap();
    let mut at = (size - MIB) as u64;
    let mut is_refused = || {
        std::thread::sleep(Duration::from_secs(1));
        at -= MIB as u64;
        let read = large.read_exact_at(&mut piece, at);
        read.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    assert!((0..60).any(|_| is_refused()), "what it was allowed before counts still");
}

/// One word of the origin counts for all that they read, as long as nobody else uses the bucket.
#[test]
fn the_nodes_own_credentials_are_not_shown_what_others_brought_and_they_may_not_read() {
    let issuer = Issuer::start();
    let bucket = &issuer.bucket;
    for name in ["open/f", "closed/f"] {
        bucket.put(name, vec![7; SIZE]);
    }
    let region = AiStore::before(bucket);
    let own = issuer.keys_for(&[("s3:ListBucket", "*"), ("s3:GetObject", "*/open/*")]);
    let environment = [
        ("AWS_ACCESS_KEY_ID", own.access_key),
        ("AWS_SECRET_ACCESS_KEY", own.secret_key),
        ("AWS_SESSION_TOKEN", own.token),
    ];
    let setup = Setup {
        node_flags: vec![format!("--region-url={}", region.url())],
        environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..Setup::default()
    };
    let node = CsiNode::with(bucket, setup);
    let volume = TestVolume::new(bucket, "one");
    let first = node.publish(&volume).unwrap();
    assert!(fs::read(first.join("open/f")).unwrap() == vec![7; SIZE]);
    let others = TestVolume { group: Some(2000), ..volume.pod("two") };
    let second = node.publish(&others.session_keys(&issuer.reading())).unwrap();
    assert!(fs::read(second.join("closed/f")).unwrap() == vec![7; SIZE]);
    let error = fs::read(first.join("closed/f")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(region.given_bytes() as usize, 2 * SIZE);
}

#[test]
fn a_region_of_another_kind_is_refused_with_the_word_to_use() {
    let world = world();
    let (source, folder) = (format!("s3://{}", world.bucket.name), tempfile::tempdir().unwrap());
    let mountpoint = folder.path().to_str().unwrap();
    let url = world.region.url();
    let args = ["mount", &source, mountpoint, "--region-kind", "s3", "--region-url", &url];
    let output = run(&world.bucket, &args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("aistore"), "{said}");
}

/// A range of an object that the region does not have would have it fetch all of it first.
#[test]
fn a_large_object_comes_from_the_origin_where_somebody_waits_until_the_region_has_it() {
    const LARGE: usize = 80 * MIB;
    for manners in [
        Manners { rate: Some(40 * MIB as u64), ..Manners::default() },
        Manners { rate: Some(40 * MIB as u64), forgets_jobs: true, ..Manners::default() },
    ] {
        let world = world();
        let bytes = random_bytes(1, LARGE);
        world.bucket.put("model.bin", bytes.clone());
        world.region.behave(manners);
        let mount = world.mount("");
        let file = fs::File::open(mount.join("model.bin")).unwrap();
        let mut start = vec![0; 4 * MIB];
        file.read_exact_at(&mut start, 0).unwrap();
        assert!(start == bytes[..start.len()]);
        eventually("the region has it", || world.region.has("model.bin"));
        eventually("the mount knows", || {
            mount.metrics().contains_key("weir_region_prefetches_total{outcome=\"fetched\"}")
        });
        assert!(fs::read(mount.join("model.bin")).unwrap() == bytes);
        let counters = mount.status().counters;
        assert!(counters.origin_bytes <= LARGE as u64 / 4, "{}", counters.origin_bytes);
        assert!(counters.region_bytes >= LARGE as u64 * 3 / 4, "{}", counters.region_bytes);
        assert_eq!(world.region.jobs(), 1);
        assert_eq!(world.region.fetched_bytes(), LARGE as u64);
    }
}

#[test]
fn a_large_object_of_which_the_region_kept_an_older_version_is_fetched_there_again() {
    const LARGE: usize = 80 * MIB;
    let world = world();
    world.bucket.put("model.bin", random_bytes(1, LARGE));
    world.region.behave(Manners { rate: Some(30 * MIB as u64), ..Manners::default() });
    // Who reads all of it at once has it of the origin.
    let mount = world.mount("--metadata-ttl minimal");
    fs::read(mount.join("model.bin")).unwrap();
    eventually("the region has it", || world.region.has("model.bin"));
    let bytes = random_bytes(2, LARGE);
    world.bucket.put("model.bin", bytes.clone());
    let mut start = vec![0; MIB];
    let file = fs::File::open(mount.join("model.bin")).unwrap();
    file.read_exact_at(&mut start, 0).unwrap();
    assert!(start == bytes[..MIB]);
    eventually("the region has the new one", || world.region.fetched_bytes() == 2 * LARGE as u64);
    assert!(fs::read(mount.join("model.bin")).unwrap() == bytes);
    assert!(world.region.told().is_empty(), "it need not forget it");
}

#[test]
fn a_large_object_that_the_region_does_not_come_to_have_is_the_origins() {
    const LARGE: usize = 80 * MIB;
    let world = world();
    let bytes = random_bytes(1, LARGE);
    world.bucket.put("model.bin", bytes.clone());
    world.region.behave(Manners { fails_jobs: true, ..Manners::default() });
    let mount = world.mount("");
    for _ in 0..2 {
        assert!(fs::read(mount.join("model.bin")).unwrap() == bytes);
    }
    assert_eq!((bytes_of_region(&mount), world.region.jobs()), (0.0, 1));
}

/// It was thought to fetch it in less than a second.
#[test]
fn a_region_that_is_slower_than_was_thought_is_asked_how_far_it_is() {
    const SIZE: usize = 40 * MIB;
    let world = world();
    let bytes = random_bytes(1, SIZE);
    world.bucket.put("model.bin", bytes.clone());
    world.region.behave(Manners { rate: Some(8 * MIB as u64), ..Manners::default() });
    let mount = world.mount("");
    let file = fs::File::open(mount.join("model.bin")).unwrap();
    let mut start = vec![0; MIB];
    file.read_exact_at(&mut start, 0).unwrap();
    assert!(start == bytes[..MIB]);
    eventually("the region has it", || world.region.has("model.bin"));
    assert!(fs::read(mount.join("model.bin")).unwrap() == bytes);
    // It has fetched it once, whoever wanted it.
    assert_eq!(world.region.fetched_bytes(), SIZE as u64);
    assert!(world.region.jobs() <= 1);
}

/// It would answer for `dir/a`.
#[test]
fn a_key_that_the_region_takes_for_another_is_read_from_the_origin() {
    let world = world();
    for (n, key) in (0..).zip(["dir/a", "dir/a?b", "dir/?"]) {
        world.bucket.put(key, random_bytes(n, SIZE));
    }
    let mount = world.mount("");
    assert!(fs::read(mount.join("dir/a?b")).unwrap() == random_bytes(1, SIZE));
    assert!(fs::read(mount.join("dir/?")).unwrap() == random_bytes(2, SIZE));
    assert_eq!(asked_of_region(&mount), 0.0);
    assert!(fs::read(mount.join("dir/a")).unwrap() == random_bytes(0, SIZE));
    assert!(asked_of_region(&mount) > 0.0);
}
