use std::time::{Duration, Instant};

use super::super::protocol::VERSION;
use super::super::{serve, wire};
use super::*;

/// The end of this session panics.
pub(super) const PANICS: &str = "dead";

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

#[test]
fn the_folder_of_a_target_stays_where_nothing_can_be_shown_in_place_of_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let mounts = with_sessions(dir.path(), &["ab"]);
    let target = dir.path().join("pods/uid/volumes/kubernetes.io~csi/data/mount");
    std::fs::create_dir_all(&target).unwrap();
    let data = format!(r#"{{"driverName": "{}"}}"#, crate::csi::DRIVER);
    std::fs::write(target.with_file_name("vol_data.json"), data).unwrap();
    // Nothing is mounted where it should be.
    let bind = Bind { session: "ab".into(), target, read_only: false, replace: true };
    let error = mounts.bind(&bind).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{error}");
    assert!(bind.target.is_dir());
}

/// A connection, once it is greeted; `None` where it is closed.
fn greeted(socket: &Path, greeting: &Request) -> Option<OwnedFd> {
    let (connection, mut buffer) =
        (wire::connect(socket, Duration::from_secs(60)).unwrap(), Vec::new());
    wire::send(&connection, greeting, &[]).ok()?;
    let (greeted, _) = wire::receive::<Reply>(&connection, &mut buffer).ok()??;
    assert!(matches!(greeted, Reply::Hello { .. }));
    Some(connection)
}

/// What is answered at a socket after a greeting, or the end of the connection.
fn ask(socket: &Path, greeting: &Request, request: &Request) -> Option<Reply> {
    let (connection, mut buffer) = (greeted(socket, greeting).unwrap(), Vec::new());
    wire::send(&connection, request, &[]).unwrap();
    wire::receive(&connection, &mut buffer).unwrap().map(|(reply, _)| reply)
}

#[test]
fn a_panic_costs_a_conversation_or_a_round_and_the_mounter_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, visitors) = (dir.path().join("engines"), dir.path().join("visitors"));
    let listen = |socket: &Path| wire::listen(socket, None).unwrap();
    let mounts = Arc::new(with_sessions(dir.path(), &[PANICS]));
    let (served, sockets) = (mounts.clone(), (listen(&engines), listen(&visitors)));
    std::thread::spawn(move || serve::run(sockets.0, sockets.1, served));
    eventually("a round panics", || !mounts.custody.has(PANICS));
    mounts.custody.keep("ab", descriptor(), descriptor()).unwrap();
    eventually("another ends", || !mounts.custody.has("ab"));

    let hello = Request::Hello { version: VERSION, engine: "engine".into() };
    let visit = Request::Visit { version: VERSION };
    let end = |session: &str| Request::Unmount { session: session.into(), force: true };
    for _ in 0..3 {
        assert_eq!(ask(&engines, &hello, &end(PANICS)), None);
        assert_eq!(ask(&engines, &hello, &end("ab")), Some(Reply::Done));
        assert_eq!(ask(&visitors, &visit, &Request::IsShowing), Some(Reply::Is(false)));
    }
    // Whose conversation it was counts as there no more.
    eventually("no engine is there", || !mounts.custody.has_engine());
}

#[test]
fn changes_that_are_stuck_leave_room_for_questions_and_too_many_connections_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, visitors) = (dir.path().join("engines"), dir.path().join("visitors"));
    let listen = |socket: &Path| wire::listen(socket, None).unwrap();
    let mut mounts = with_sessions(dir.path(), &["ab", "cd"]);
    mounts.custody = Custody::new(Duration::MAX, 8);
    let mounts = Arc::new(mounts);
    let (served, sockets) = (mounts.clone(), (listen(&engines), listen(&visitors)));
    std::thread::spawn(move || serve::run(sockets.0, sockets.1, served));
    let hello = Request::Hello { version: VERSION, engine: "engine".into() };
    let end = |session: &str| Request::Unmount { session: session.into(), force: true };
    let ask = |request: &Request| ask(&engines, &hello, request);
    std::thread::scope(|scope| {
        mounts.locks.hold("ab", || {
            // As where the kernel delays one.
            for _ in 0..serve::CHANGES_MAX {
                scope.spawn(|| assert_eq!(ask(&end("ab")), Some(Reply::Done)));
            }
            eventually("all are stuck", || mounts.locks.waiting("ab") == serve::CHANGES_MAX);
            let refused = ask(&end("cd"));
            let is_refusal =
                |reply| matches!(reply, Reply::Failed { text, .. } if text.contains("48 changes"));
            assert!(refused.is_some_and(is_refusal));
            assert_eq!(ask(&Request::HasEngine), Some(Reply::Is(true)));
            let mut others = Vec::new();
            let full = serve::CONNECTIONS_MAX - serve::CHANGES_MAX;
            eventually("one is closed", || match greeted(&engines, &hello) {
                Some(connection) => {
                    others.push(connection);
                    assert!(others.len() <= full, "{}", others.len());
                    false
                }
                None => true,
            });
            others.pop();
            eventually("there is room again", || {
                greeted(&engines, &hello).map(|connection| others.push(connection)).is_some()
            });
        });
    });
    assert_eq!(ask(&end("cd")), Some(Reply::Done));
}
