//! What is on its way to S3 over plain HTTP, where others can change it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use hyper::Method;
use rustix::io::Errno;
use weir_tests::bucket::Bucket;
use weir_tests::mount::Mount;
use weir_tests::random_bytes;
use weir_tests::shell::close;
use weir_tests::storm::{Asked, Fault, Storm};

use crate::storms::stormy;

const MIB: usize = 1 << 20;
const PAYER: (&str, &str) = ("x-amz-request-payer", "requester");
const OWNER: (&str, &str) = ("x-amz-expected-bucket-owner", "111122223333");
const SOURCE_OWNER: (&str, &str) = ("x-amz-source-expected-bucket-owner", "111122223333");

/// From now on whatever is sent for names that begin so is forged, with its checksum left right.
fn forge(storm: &Storm, name: &'static str) {
    storm.rage(move |asked| {
        let is_upload = asked.method == Method::PUT && asked.path.contains(name);
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

/// Who may not ask without paying is refused otherwise, and who named an owner is not to write into a
/// bucket that somebody else has made under its name meanwhile.
#[test]
fn each_request_says_who_pays_and_whose_the_bucket_is() {
    let (bucket, storm) = stormy();
    bucket.put("stored/small", "bytes");
    bucket.put("stored/large", random_bytes(1, 12 * MIB));
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let noted = asked.clone();
    storm.rage(move |asked| {
        noted.lock().unwrap().push(asked.clone());
        None
    });
    let flags =
        format!("--requester-pays --expected-bucket-owner {} --write-part-size 5MiB", OWNER.1);
    let mount = Mount::flags(&bucket, &flags);
    assert_eq!(fs::read(mount.join("stored/small")).unwrap(), b"bytes");
    assert_eq!(fs::read(mount.join("stored/large")).unwrap().len(), 12 * MIB);
    fs::create_dir(mount.join("dir")).unwrap();
    write(&mount, "dir/small", b"bytes").unwrap();
    write(&mount, "dir/large", &random_bytes(2, 11 * MIB)).unwrap();
    fs::rename(mount.join("dir/small"), mount.join("dir/moved")).unwrap();
    fs::rename(mount.join("stored/large"), mount.join("dir/large")).unwrap();
    fs::rename(mount.join("dir"), mount.join("other")).unwrap();
    fs::remove_file(mount.join("other/moved")).unwrap();
    fs::remove_dir_all(mount.join("other")).unwrap();
    drop(mount);
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    let says = |asked: &Asked, (name, value)| {
        asked.headers.get(name).is_some_and(|header| header.as_bytes() == str::as_bytes(value))
    };
    for one in &asked {
        assert!(says(one, PAYER) && says(one, OWNER), "{one:?}");
        let copies = one.headers.contains_key("x-amz-copy-source");
        assert_eq!(copies, says(one, SOURCE_OWNER), "{one:?}");
    }
    // Each kind was there.
    let count = |kind: &dyn Fn(&Asked) -> bool| asked.iter().filter(|asked| kind(asked)).count();
    let is = |method: Method| move |asked: &Asked| asked.method == method;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE] {
        assert!(count(&is(method.clone())) > 0, "{method}");
    }
    assert!(count(&|asked| asked.headers.contains_key("x-amz-copy-source")) > 1);
    assert!(count(&|asked| asked.path.contains("partNumber=")) > 1);
    assert!(count(&|asked| asked.path.contains("list-type=2")) > 0);
}
