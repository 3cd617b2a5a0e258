//! Faults between Weir and S3: a proxy in front of a real server misbehaves. A reader gets right
//! bytes or an errno in bounded time; a writer's success means that S3 holds the file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::cached::is_cached;
use weir_tests::mount::{Mount, Options, cache_dir};
use weir_tests::shell::close;
use weir_tests::storm::{Fault, Storm};
use weir_tests::{PATIENCE, eventually, random_bytes};

const MIB: usize = 1 << 20;

/// A bucket whose mounts go through a storm; this test itself goes past it.
pub(super) fn stormy() -> (Bucket, Storm) {
    let mut bucket = Bucket::new(Server::Minio);
    let storm = Storm::new(&bucket.url);
    bucket.url = storm.url();
    (bucket, storm)
}

/// A third of all requests meets one of these.
fn rage(storm: &Storm, seed: u64, faults: &'static [Fault]) {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    storm.rage(move |_| {
        random.random_bool(0.33).then(|| faults[random.random_range(0..faults.len())])
    });
}

const ERRORS: &[Fault] = &[
    Fault::Status(500),
    Fault::Status(503),
    Fault::Reset,
    Fault::LoseReply,
    Fault::Truncate(5000),
    Fault::Truncate(0),
    Fault::WrongETag,
];

/// Reads a file; an error is none if the storm explains it, a wrong byte always is.
fn read_in_storm(path: &std::path::Path, expected: &[u8]) -> bool {
    let start = Instant::now();
    let read = fs::read(path);
    assert!(start.elapsed() < PATIENCE, "{} took {:?}", path.display(), start.elapsed());
    match read {
        Ok(bytes) => {
            assert!(bytes == expected, "{} has wrong bytes", path.display());
            true
        }
        Err(_) => false,
    }
}

#[test]
fn readers_get_right_bytes_or_an_errno_in_a_storm_of_errors() {
    let (bucket, storm) = stormy();
    let sizes = [0, 1, 5000, 131_072, 700_000, 3 * MIB, 9 * MIB];
    for (n, size) in sizes.iter().enumerate() {
        bucket.put(&format!("f{n}"), random_bytes(n as u64, *size));
    }
    let mount = Mount::flags(&bucket, "--read-part-size 1MiB --metadata-ttl minimal");
    rage(&storm, 1, ERRORS);
    let mut right = 0;
    for _ in 0..2 {
        for (n, size) in sizes.iter().enumerate() {
            let expected = random_bytes(n as u64, *size);
            right += u32::from(read_in_storm(&mount.join(&format!("f{n}")), &expected));
        }
        // An error is as good as an answer; a hang is not.
        let _ = fs::read_dir(mount.path()).map(Iterator::count);
    }
    assert!(storm.met() > 20 && right > 5, "{} faults, {right} reads", storm.met());
    storm.calm();
    for (n, size) in sizes.iter().enumerate() {
        eventually("all is right when it is calm", || {
            read_in_storm(&mount.join(&format!("f{n}")), &random_bytes(n as u64, *size))
        });
    }
}

#[test]
fn a_writer_who_succeeds_in_a_storm_has_stored_his_file() {
    let (bucket, storm) = stormy();
    let mount = Mount::flags(&bucket, "--write-part-size 5MiB");
    rage(&storm, 2, &[Fault::Status(500), Fault::Status(503), Fault::Reset, Fault::LoseReply]);
    let mut stored = 0;
    for n in 0..16_u64 {
        let size = if n % 4 == 0 { 11 * MIB } else { 3000 * n as usize };
        let (name, bytes) = (format!("w{n}"), random_bytes(n, size));
        let Ok(mut file) = File::create(mount.join(&name)) else { continue };
        if file.write_all(&bytes).is_ok() && close(file).is_ok() {
            assert!(bucket.get(&name).as_ref() == Some(&bytes), "{name} is not at S3");
            stored += 1;
        } else {
            // Whatever failed, S3 has the whole of it or nothing.
            let held = bucket.get(&name);
            assert!(held.is_none_or(|held| held == bytes), "{name} is broken at S3");
        }
    }
    assert!(storm.met() > 10 && stored > 4, "{} faults, {stored} stored", storm.met());
    storm.calm();
    fs::write(mount.join("after"), b"calm").unwrap();
    assert_eq!(bucket.get("after").unwrap(), b"calm");
}

#[test]
fn another_etag_in_the_middle_never_becomes_a_mixture() {
    let (bucket, storm) = stormy();
    bucket.put("f", random_bytes(1, 6 * MIB));
    let mount = Mount::flags(&bucket, "--read-part-size 1MiB");
    storm.rage(|asked| {
        let body = asked.method == hyper::Method::GET && asked.path.contains("/f");
        (body && asked.number % 2 == 0).then_some(Fault::WrongETag)
    });
    for _ in 0..4 {
        read_in_storm(&mount.join("f"), &random_bytes(1, 6 * MIB));
    }
    assert!(storm.met() > 0);
    storm.calm();
    eventually("it is read when it is calm", || {
        read_in_storm(&mount.join("f"), &random_bytes(1, 6 * MIB))
    });
}

#[test]
fn credentials_refused_after_the_start_are_eacces_until_they_work_again() {
    let (bucket, storm) = stormy();
    bucket.put("cold", random_bytes(1, 300_000));
    let mount = Mount::flags(&bucket, "--metadata-ttl minimal");
    storm.rage(|_| Some(Fault::Status(403)));
    let error = fs::read(mount.join("cold")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    let written = File::create(mount.join("new")).and_then(|mut file| {
        file.write_all(b"x")?;
        close(file)
    });
    assert_eq!(written.unwrap_err().raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
    storm.calm();
    assert!(fs::read(mount.join("cold")).unwrap() == random_bytes(1, 300_000));
    assert_eq!(bucket.get("new"), None);
}

#[test]
fn while_s3_is_gone_cached_files_are_read_and_others_fail_in_time() {
    let (bucket, storm) = stormy();
    bucket.put("cached", random_bytes(1, 2 * MIB));
    bucket.put("cold", random_bytes(2, 40 * MIB));
    let mount = Mount::flags(&bucket, "--read-part-size 1MiB --memory-target 32MiB");
    fs::read(mount.join("cached")).unwrap();
    eventually("it is cached", || is_cached(&mount.join("cached")));
    let mut cold = File::open(mount.join("cold")).unwrap();
    let mut begun = vec![0; 100];
    cold.read_exact(&mut begun).unwrap();
    storm.rage(|_| Some(Fault::Reset));
    let start = Instant::now();
    assert!(cold.read_to_end(&mut Vec::new()).is_err());
    let written = File::create(mount.join("new")).and_then(|mut file| {
        file.write_all(b"x")?;
        close(file)
    });
    assert!(written.is_err() && bucket.get("new").is_none());
    assert!(start.elapsed() < PATIENCE);
    assert!(fs::read(mount.join("cached")).unwrap() == random_bytes(1, 2 * MIB));
    storm.calm();
    eventually("the cold one is read when S3 is back", || {
        read_in_storm(&mount.join("cold"), &random_bytes(2, 40 * MIB))
    });
    fs::write(mount.join("new"), b"y").unwrap();
    assert_eq!(bucket.get("new").unwrap(), b"y");
}

#[test]
fn a_killed_reader_of_a_black_hole_is_gone_within_the_deadline() {
    let (bucket, storm) = stormy();
    bucket.put("small", random_bytes(1, 100_000));
    bucket.put("large", random_bytes(2, 8 * MIB));
    let mount = Mount::new(&bucket);
    fs::read_dir(mount.path()).unwrap().count();
    storm.rage(|_| Some(Fault::Stall));
    for name in ["small", "large"] {
        let path = mount.join(name);
        let mut cat = Command::new("cat").arg(path).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        cat.kill().unwrap();
        eventually("the reader is gone", || cat.try_wait().unwrap().is_some());
    }
    storm.calm();
}

#[test]
fn a_stalled_body_is_fetched_again_and_not_waited_for() {
    let (bucket, storm) = stormy();
    bucket.put("f", random_bytes(1, 3 * MIB));
    let mount = Mount::new(&bucket);
    let mut stalls = 0;
    storm.rage(move |asked| {
        let body = asked.method == hyper::Method::GET && asked.path.contains("/f");
        stalls += u32::from(body);
        (body && stalls == 1).then_some(Fault::StallBody(70_000))
    });
    assert!(read_in_storm(&mount.join("f"), &random_bytes(1, 3 * MIB)));
    assert_eq!(storm.met(), 1);
    storm.calm();
}

#[test]
fn uploads_that_stall_keep_no_reader_waiting() {
    let (bucket, storm) = stormy();
    bucket.put("cold", random_bytes(1, 8 * MIB));
    let mount = Mount::flags(&bucket, "--memory-target 30MiB --write-part-size 5MiB");
    let path = mount.path().to_owned();
    storm.rage(|asked| asked.path.contains("partNumber=").then_some(Fault::Stall));
    let write = move |n: u64| fs::write(path.join(format!("f{n}")), random_bytes(n, 30 * MIB));
    let writers: Vec<_> = (2..4)
        .map(|n| {
            let write = write.clone();
            std::thread::spawn(move || write(n))
        })
        .collect();
    eventually("as much is under way as there is memory", || storm.met() >= 3);
    assert!(read_in_storm(&mount.join("cold"), &random_bytes(1, 8 * MIB)));
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    storm.calm();
    for (n, writer) in (2..4).zip(writers) {
        writer.join().unwrap().unwrap();
        assert!(bucket.get(&format!("f{n}")).unwrap() == random_bytes(n, 30 * MIB));
    }
}

#[test]
fn a_mapping_gets_sigbus_when_s3_goes_away_under_it() {
    let (bucket, storm) = stormy();
    bucket.put("model", random_bytes(1, 64 * MIB));
    let mount = Mount::flags(&bucket, "--read-part-size 1MiB --memory-target 32MiB");
    fs::read_dir(mount.path()).unwrap().count();
    let path = mount.join("model");
    let mut bodies = 0;
    storm.rage(move |asked| {
        bodies += u32::from(asked.method == hyper::Method::GET && asked.path.contains("/model"));
        (bodies > 4).then_some(Fault::Reset)
    });
    let mut touch = Command::new(env!("CARGO_BIN_EXE_weir-bench"));
    let mut touch = touch.arg("--touch").arg(path).spawn().unwrap();
    let mut ended = None;
    eventually("the process is told", || {
        ended = touch.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().signal(), Some(libc::SIGBUS));
    storm.calm();
    eventually("it is read when it is calm", || {
        read_in_storm(&mount.join("model"), &random_bytes(1, 64 * MIB))
    });
}

#[test]
fn kill_9_while_writing_loses_nothing_that_was_acknowledged() {
    let bucket = Bucket::new(Server::Minio);
    let cache = cache_dir();
    let options = Options::flags("--write-part-size 5MiB").cache(cache.path());
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..5_u64 {
        let mount = Mount::with(&bucket, &options);
        let stored = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4_u64)
                .map(|writer| {
                    let mount = &mount;
                    scope.spawn(move || write_until_it_dies(mount, round * 100 + writer))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(random.random_range(50..700)));
            mount.signal(rustix::process::Signal::KILL);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
        });
        mount.kill();
        for (name, bytes) in &stored {
            assert!(bucket.get(name).as_ref() == Some(bytes), "{name} was acknowledged");
        }
        // The next mount comes up, shows them, and leaves no upload behind.
        let mount = Mount::with(&bucket, &options);
        for (name, bytes) in &stored {
            assert!(&fs::read(mount.join(name)).unwrap() == bytes, "{name}");
        }
        mount.unmount();
    }
}

/// Writes files until the mount is gone; returns those whose close succeeded.
fn write_until_it_dies(mount: &Mount, writer: u64) -> Vec<(String, Vec<u8>)> {
    let mut stored = Vec::new();
    for n in 0..1000 {
        let size = if n % 3 == 0 { 7 * MIB } else { 50_000 };
        let (name, bytes) = (format!("k{writer}-{n}"), random_bytes(writer * 1000 + n, size));
        let written = File::create(mount.join(&name)).and_then(|mut file| {
            file.write_all(&bytes)?;
            close(file)
        });
        if written.is_err() {
            break;
        }
        stored.push((name, bytes));
    }
    stored
}
