use super::*;

fn descriptor() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// What the kernel is asked nothing by, and is the FUSE device.
fn fuse() -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/fuse", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn custody() -> Custody {
    Custody::new(Duration::ZERO, 4)
}

fn deposit(session: &str) -> Deposit {
    Deposit { session: session.into(), generation: 1, keys: None, device: false }
}

fn record() -> OwnedFd {
    sealed::write("record", b"bytes").unwrap()
}

#[test]
fn sessions_wait_for_an_engine_until_the_deadline() {
    let custody = custody();
    custody.keep("a", descriptor(), descriptor()).unwrap();
    custody.deposit(&deposit("a"), vec![record()]).unwrap();
    assert!(custody.deposit(&deposit("b"), vec![record()]).is_err());
    let with_device = Deposit { device: true, ..deposit("b") };
    custody.deposit(&with_device, vec![record(), fuse()]).unwrap();
    let connection = custody.attach("one", descriptor());
    assert_eq!(custody.orphan(), None);
    let other = custody.attach("two", descriptor());
    custody.detach(connection);
    assert!(custody.has_engine() && custody.orphan().is_none() && !custody.take_orphan("a"));
    assert_eq!(custody.names(""), ["a", "b"]);
    custody.detach(other);
    assert_eq!(custody.orphan().as_deref(), Some("a"));
    assert!(custody.take_orphan("a") && !custody.take_orphan("a"));
    // One that comes now finds what is left.
    let late = custody.attach("three", descriptor());
    assert!(custody.orphan().is_none() && !custody.take_orphan("b"));
    custody.detach(late);
    assert!(custody.orphan().as_deref() == Some("b") && custody.take_orphan("b"));
    assert!(custody.names("").is_empty());
}

#[test]
fn what_comes_along_is_what_the_message_says() {
    let custody = custody();
    custody.keep("a", descriptor(), descriptor()).unwrap();
    let keys = Deposit { keys: Some(Expiry { at: Some(100) }), ..deposit("a") };
    for (deposit, along) in [
        (deposit("a"), vec![]),
        (deposit("a"), vec![descriptor()]),
        (keys.clone(), vec![record()]),
        (keys.clone(), vec![record(), descriptor()]),
        (Deposit { device: true, ..deposit("a") }, vec![record()]),
    ] {
        assert!(custody.deposit(&deposit, along).is_err(), "{deposit:?}");
    }
    let too_long = sealed::write("record", &vec![0; RECORD_MAX as usize + 1]).unwrap();
    assert!(custody.deposit(&deposit("a"), vec![too_long]).is_err());
    custody.deposit(&keys, vec![record(), sealed::write("keys", b"secret").unwrap()]).unwrap();
    let taken = custody.take("a").unwrap();
    assert_eq!(sealed::read(taken.record.unwrap(), RECORD_MAX).unwrap(), b"bytes");
    assert_eq!(sealed::read(taken.keys.unwrap(), KEYS_MAX).unwrap(), b"secret");
}

#[test]
fn keys_go_when_they_expire_or_are_not_deposited_again() {
    let custody = custody();
    let keys = || sealed::write("keys", b"secret").unwrap();
    for (name, at) in [("a", Some(100)), ("b", None)] {
        custody.keep(name, descriptor(), descriptor()).unwrap();
        let deposit = Deposit { keys: Some(Expiry { at }), ..deposit(name) };
        custody.deposit(&deposit, vec![record(), keys()]).unwrap();
    }
    let has_keys = |name| custody.take(name).unwrap().keys.is_some();
    custody.drop_keys_expired_at(UNIX_EPOCH + Duration::from_secs(99));
    assert!(has_keys("a"));
    custody.drop_keys_expired_at(UNIX_EPOCH + Duration::from_secs(100));
    assert!(!has_keys("a") && has_keys("b"));
    custody.deposit(&deposit("b"), vec![record()]).unwrap();
    assert!(!has_keys("b"));
}

#[test]
fn names_come_in_pages_and_sessions_leave_room_for_conversations() {
    let custody = Custody::new(Duration::ZERO, 2 * SESSIONS_PAGE);
    for number in 0..2 * SESSIONS_PAGE {
        custody.has_room().unwrap();
        custody.keep(&format!("{number:04x}"), descriptor(), descriptor()).unwrap();
    }
    assert!(custody.has_room().is_err());
    assert!(custody.keep("ffff", descriptor(), descriptor()).is_err());
    let mut all = Vec::new();
    loop {
        let page = custody.names(all.last().map_or("", String::as_str));
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= SESSIONS_PAGE);
        all.extend(page);
    }
    assert_eq!(all.len(), 2 * SESSIONS_PAGE);
    assert_eq!(sessions_max(1024), 128);
    assert_eq!(sessions_max(64), 1);
    assert_eq!(sessions_max(u64::MAX), 10_000);
}

#[test]
fn an_engine_that_ends_in_a_trial_counts_until_one_ends_well() {
    let custody = custody();
    custody.keep("a", descriptor(), descriptor()).unwrap();
    custody.keep("b", descriptor(), descriptor()).unwrap();
    let deaths = |session| custody.take(session).unwrap().deaths;
    custody.attach("one", descriptor());
    for (engine, expected) in [("two", 1), ("three", 2)] {
        custody.note_trial("a", Some(1), true);
        // The same one again, as after a lost connection.
        custody.attach(if expected == 1 { "one" } else { "two" }, descriptor());
        custody.attach(engine, descriptor());
        assert_eq!((deaths("a"), deaths("b")), (expected, 0));
    }
    // The end of a trial that is over says nothing of the next.
    custody.note_trial("a", Some(2), true);
    custody.note_trial("a", Some(1), false);
    custody.attach("four", descriptor());
    assert_eq!(deaths("a"), 3);
    custody.note_trial("a", Some(1), true);
    custody.note_trial("a", Some(1), false);
    assert_eq!(deaths("a"), 0);
    // An end in order is nobody's fault.
    custody.note_trial("a", Some(2), true);
    custody.note_trial("a", None, false);
    custody.attach("five", descriptor());
    assert_eq!(deaths("a"), 0);
}
