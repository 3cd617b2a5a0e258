use std::time::{Duration, Instant};

use super::*;

fn descriptor() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// A mounter that waits for no engine, and has these sessions.
fn with_sessions(folder: &Path, sessions: &[&str]) -> Mounts {
    let roots = Roots::open(&folder.join("sessions"), &[folder.join("pods")]).unwrap();
    let (custody, backing) = (Custody::new(Duration::ZERO, 8), Backing::new(&[]));
    for session in sessions {
        custody.keep(session, descriptor(), descriptor()).unwrap();
    }
    let (locks, peers) = Default::default();
    Mounts { roots, custody, backing, locks, peers }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_engine_that_comes_while_orphans_end_keeps_those_that_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let mounts = with_sessions(dir.path(), &["a", "b", "c"]);
    std::thread::scope(|scope| {
        let watch = mounts.locks.hold("b", || {
            let watch = scope.spawn(|| mounts.end_orphans());
            eventually("the first has ended", || !mounts.custody.has("a"));
            eventually("the second is waited for", || mounts.locks.waiting("b") == 1);
            // It comes, and mounts one of the same name anew.
            mounts.custody.attach("engine", descriptor());
            mounts.custody.keep("b", descriptor(), descriptor()).unwrap();
            watch
        });
        watch.join().unwrap();
    });
    assert_eq!(mounts.custody.names(""), ["b", "c"]);
}
