//! What servers of S3 do differently: objects of several parts, their copies and conditions, and
//! listings of several pages.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;

use rustix::io::Errno;
use weir_tests::mount::Mount;
use weir_tests::random_bytes;
use weir_tests::shell::close;

use crate::on_each_server;

/// More than a part.
const LARGE: usize = 20 << 20;

fn errno(done: std::io::Result<()>) -> Option<Errno> {
    Errno::from_io_error(&done.unwrap_err())
}

on_each_server! {
    fn a_file_of_several_parts_is_read_after_it_was_renamed(bucket: Bucket) {
        let (one, two) = (random_bytes(1, LARGE), random_bytes(2, LARGE));
        let mount = Mount::new(&bucket);
        fs::create_dir(mount.join("d")).unwrap();
        fs::write(mount.join("one"), &one).unwrap();
        fs::write(mount.join("two"), &two).unwrap();
        fs::rename(mount.join("one"), mount.join("d/new")).unwrap();
        fs::rename(mount.join("two"), mount.join("d/replaced")).unwrap();
        assert!(fs::read(mount.join("d/new")).unwrap() == one);

        // What another mount is told of the copies by a listing.
        let other = Mount::flags(&bucket, "--metadata-ttl minimal");
        assert_eq!(fs::read_dir(other.join("d")).unwrap().count(), 2);
        assert!(fs::read(other.join("d/new")).unwrap() == one);
        fs::rename(other.join("d/new"), other.join("d/replaced")).unwrap();
        assert!(fs::read(other.join("d/replaced")).unwrap() == one);
        assert!(bucket.get("d/replaced").unwrap() == one && bucket.get("d/new").is_none());
        fs::write(other.join("d/replaced"), &two).unwrap();
        assert!(bucket.get("d/replaced").unwrap() == two);
        fs::remove_file(other.join("d/replaced")).unwrap();
        assert!(bucket.get("d/replaced").is_none());
    }

    fn who_loses_a_race_with_a_file_of_several_parts_is_told(bucket: Bucket) {
        bucket.put("model", random_bytes(1, LARGE));
        let (one, two) = (Mount::new(&bucket), Mount::new(&bucket));
        let mut late = File::create(one.join("model")).unwrap();
        late.write_all(&random_bytes(2, LARGE)).unwrap();
        let theirs = random_bytes(3, LARGE);
        fs::write(two.join("model"), &theirs).unwrap();
        assert_eq!(errno(close(late)), Some(Errno::STALE));
        assert!(bucket.get("model").unwrap() == theirs);

        let create = |mount: &Mount| {
            OpenOptions::new().write(true).create_new(true).open(mount.join("new")).unwrap()
        };
        let (mut first, mut second) = (create(&one), create(&two));
        first.write_all(&theirs).unwrap();
        second.write_all(&random_bytes(4, LARGE)).unwrap();
        close(first).unwrap();
        assert_eq!(errno(close(second)), Some(Errno::EXIST));
        assert!(bucket.get("new").unwrap() == theirs);
    }

    fn names_of_several_pages_are_listed_found_and_removed(bucket: Bucket) {
        let names: BTreeSet<String> = (0..1100).map(|n| format!("n{n:04}")).collect();
        for name in &names {
            bucket.put(&format!("d/{name}"), "x");
        }
        bucket.put("d/below/f", "x");
        let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
        let listed = || -> BTreeSet<String> {
            let entries = fs::read_dir(mount.join("d")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut expected = names.clone();
        expected.insert("below".into());
        assert_eq!(listed(), expected);
        assert_eq!(fs::read(mount.join("d/n1099")).unwrap(), b"x");
        assert!(!mount.join("d/n1100").exists());
        fs::remove_file(mount.join("d/n0000")).unwrap();
        fs::rename(mount.join("d/n1099"), mount.join("d/n1100")).unwrap();
        expected.retain(|name| name != "n0000" && name != "n1099");
        expected.insert("n1100".into());
        assert_eq!(listed(), expected);
    }
}
