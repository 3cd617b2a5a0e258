//! Orders of two operations on one file through a real mount: the first is stopped at one of its
//! requests, the second comes by a system call of another thread, as far as the kernel lets it.
//! What holds is what holds without a kernel: both share one model.

#[path = "../../../fuse/src/write/tests/acts.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod acts;
mod case;
#[path = "../../../fuse/src/write/tests/model.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod model;
#[path = "../../../fuse/src/write/tests/seen.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod seen;

use std::collections::BTreeMap;
use std::sync::Mutex;

use acts::{Op, Size};
use case::{Case, Ended, Place, State};

/// Bytes of a part, as the mounts of these tests make them.
const PART: usize = 5 << 20;
/// More requests than any operation sends.
const REQUESTS_MAX: usize = 60;
/// Of the stops of an operation every so-manieth is taken, unless `WEIR_ORDERS_STRIDE` says so.
const STRIDE: usize = 4;
/// Threads that take cases, each with a mount of its own.
const THREADS: usize = 4;

/// Operations that a process asks for.
const OURS: [Op; 9] = [
    Op::Write,
    Op::Shrink,
    Op::Grow,
    Op::Fsync,
    Op::Finish,
    Op::Unlink,
    Op::Away,
    Op::Over,
    Op::Dir,
];
/// What else may happen to the file.
const OTHERS: [Op; 2] = [Op::Replace, Op::Delete];

#[derive(Default)]
struct Seen {
    orders: usize,
    /// Orders in which the second operation waited for the first, by pair.
    held: BTreeMap<(Op, Op), usize>,
    failures: Vec<String>,
}

#[test]
fn orders_that_the_kernel_lets_through_end_as_one_after_the_other() {
    let mut pairs = Vec::new();
    for state in State::ALL {
        for a in OURS.into_iter().chain(OTHERS) {
            let second = OURS.into_iter().chain(OTHERS);
            pairs.extend(second.filter(|b| is_possible(a, *b)).map(|b| (state, a, b)));
        }
    }
    let stride = std::env::var("WEIR_ORDERS_STRIDE").map_or(STRIDE, |n| n.parse().unwrap());
    let (pairs, seen) = (Mutex::new(pairs.into_iter().enumerate()), Mutex::new(Seen::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut place = Place::new();
                loop {
                    let Some((n, (state, a, b))) = pairs.lock().unwrap().next() else { break };
                    let case = Case { state, size: Size::OnePut, a, b, stop: 0, late: false };
                    take_pair(&mut place, case, n % stride, stride, &seen);
                }
                place.close();
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    let held: usize = seen.held.values().sum();
    println!("{} orders on a real mount; held by the kernel or a gate: {held}", seen.orders);
    println!("{:?}", seen.held);
    let failures = &seen.failures;
    assert!(failures.is_empty(), "{} orders fail:\n{}", failures.len(), failures.join("\n"));
    assert!(seen.orders > 200 && held > 0 && held < seen.orders, "it shows nothing");
}

/// A descriptor that was closed is of no use to anybody: the kernel refuses it.
fn is_possible(a: Op, b: Op) -> bool {
    let by_handle = matches!(b, Op::Write | Op::Shrink | Op::Grow | Op::Fsync | Op::Finish);
    !(a == Op::Finish && by_handle)
}

/// Takes a pair with the first operation stopped at every `stride`-th place, from `first` on.
fn take_pair(place: &mut Place, pair: Case, first: usize, stride: usize, seen: &Mutex<Seen>) {
    for at in (first..2 * REQUESTS_MAX).step_by(stride) {
        // The first place is before all its requests; then before and after the effect of each.
        let case = Case { stop: at.div_ceil(2), late: at % 2 == 0, ..pair };
        let ended = case.run(place);
        let mut seen = seen.lock().unwrap();
        match ended {
            Ok(Ended::Never) => break,
            Ok(Ended::Done { held }) => {
                seen.orders += 1;
                *seen.held.entry((case.a, case.b)).or_default() += usize::from(held);
            }
            Err(why) => {
                seen.orders += 1;
                seen.failures.push(format!("{case:?}: {why}"));
            }
        }
    }
}
