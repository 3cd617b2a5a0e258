//! What is on its way to S3 over plain HTTP, where others can change it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use weir_tests::bucket::Bucket;
use weir_tests::mount::Mount;
use weir_tests::random_bytes;
use weir_tests::shell::close;
use weir_tests::storm::{Fault, Storm};

use crate::storms::stormy;

const MIB: usize = 1 << 20;

/// From now on whatever is sent for names that begin so is forged, with its checksum left right.
fn forge(storm: &Storm, name: &'static str) {
    storm.rage(move |asked| {
        let is_upload = asked.method == hyper::Method::PUT && asked.path.contains(name);
        is_upload.then_some(Fault::Forge)
    });
}

fn write(mount: &Mount, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(mount.join(name))?;
    file.write_all(bytes)?;
    close(file)
}

fn mounted() -> (Bucket, Storm, Mount) {
    let (bucket, storm) = stormy();
    let mount = Mount::flags(&bucket, "--write-part-size 5MiB");
    (bucket, storm, mount)
}

#[test]
fn a_forgery_of_what_is_uploaded_over_plain_http_is_not_stored() {
    let (bucket, storm, mount) = mounted();
    forge(&storm, "/forged");
    for (name, size) in [("forged-object", 20_000), ("forged-parts", 11 * MIB)] {
        let before = storm.met();
        let error = write(&mount, name, &random_bytes(1, size)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "{name}");
        assert!(storm.met() > before && bucket.get(name).is_none(), "{name}");
    }
    storm.calm();
    for (name, size) in [("forged-object", 20_000), ("forged-parts", 11 * MIB)] {
        let bytes = random_bytes(2, size);
        write(&mount, name, &bytes).unwrap();
        assert!(bucket.get(name).unwrap() == bytes, "{name}");
    }
}

#[test]
fn a_forgery_of_a_change_over_plain_http_is_not_stored() {
    let (bucket, storm, mount) = mounted();
    let mut bytes = random_bytes(1, 20 * MIB);
    let mut file = File::create(mount.join("forged")).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    let change = random_bytes(2, 6 * MIB);
    file.write_all_at(&change, 12 * MIB as u64).unwrap();
    forge(&storm, "/forged");
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert!(storm.met() > 0 && bucket.get("forged").unwrap() == bytes);
    storm.calm();
    close(file).unwrap();
    bytes[12 * MIB..18 * MIB].copy_from_slice(&change);
    assert!(bucket.get("forged").unwrap() == bytes);
}
