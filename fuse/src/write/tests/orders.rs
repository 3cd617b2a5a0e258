//! All orders of two operations on a file under change.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::thread;

use super::acts::{Op, Size};
use super::case::{Case, State};
use super::lab::Lab;

/// More polls than any operation takes alone.
const POLLS_MAX: u32 = 200;
/// Of files in parts every seventh stop is taken: there are more, and each moves more bytes.
const PARTS_STRIDE: u32 = 7;
/// Threads that take cases.
const THREADS: usize = 2;
/// Pairs of which a failure is told in full.
const TOLD_MAX: usize = 30;

/// What was seen, over all threads.
#[derive(Default)]
struct Seen {
    /// Orders by pair.
    orders: BTreeMap<(Op, Op), u32>,
    failures: Vec<(Case, String)>,
}

/// Takes all orders of the pairs in these states; every `stride`-th stop of the first operation.
fn take(states: &[State], size: Size, apart: bool, stride: u32) {
    let mut pairs = Vec::new();
    for state in states {
        for a in Op::ALL {
            pairs.extend(Op::ALL.map(|b| (*state, a, b)));
        }
    }
    let (pairs, seen) = (Mutex::new(pairs), Mutex::new(Seen::default()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let lab = Lab::new();
                let _runtime = lab.enter();
                loop {
                    let Some((state, a, b)) = pairs.lock().unwrap().pop() else { return };
                    let case = Case { state, size, a, b, polls: 0, kept: true, apart };
                    take_pair(&lab, case, stride, &seen);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    tell(&seen, size, apart);
}

fn take_pair(lab: &Lab, pair: Case, stride: u32, seen: &Mutex<Seen>) {
    // Pairs begin at different stops, so that over all pairs none is left out.
    let offset = (pair.a as u32 + pair.b as u32 + pair.state as u32) % stride;
    for kept in [true, false] {
        for polls in (offset..POLLS_MAX).step_by(stride as usize) {
            let case = Case { polls, kept, ..pair };
            let ended = panic::catch_unwind(AssertUnwindSafe(|| case.run(lab)));
            let mut seen = seen.lock().unwrap();
            match ended {
                Ok(None) => break,
                Ok(Some(())) => {}
                Err(why) => {
                    lab.tidy();
                    let text = why.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| why.downcast_ref::<&str>().map(|&s| s.into()));
                    seen.failures.push((case, text.unwrap_or_default()));
                }
            }
            *seen.orders.entry((case.a, case.b)).or_default() += 1;
        }
    }
}

/// Prints how many orders were taken.
///
/// # Panics
/// Where one of them failed.
fn tell(seen: &Seen, size: Size, apart: bool) {
    let total: u32 = seen.orders.values().sum();
    println!("{total} orders, {size:?}, {} nodes; by pair:", if apart { 2 } else { 1 });
    for a in Op::ALL {
        let counts = Op::ALL.map(|b| seen.orders.get(&(a, b)).copied().unwrap_or_default());
        println!("  {:8} {counts:?}", format!("{a:?}"));
    }
    let mut told = BTreeMap::new();
    for (case, why) in &seen.failures {
        told.entry((case.a, case.b, case.kept)).or_insert((case, why));
    }
    told.values().take(TOLD_MAX).for_each(|(case, why)| println!("{case}:\n{why}"));
    let failures: Vec<_> = seen.failures.iter().map(|(case, _)| case.to_string()).collect();
    assert!(failures.is_empty(), "{} orders fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_order_of_two_operations_ends_as_one_after_the_other() {
    let states = State::ALL.into_iter().filter(|state| *state != State::Sent);
    take(&states.collect::<Vec<_>>(), Size::OnePut, false, 1);
}

#[test]
fn every_order_of_two_operations_on_parts_ends_as_one_after_the_other() {
    take(&State::ALL, Size::Parts, false, PARTS_STRIDE);
}

#[test]
fn every_order_of_operations_on_two_nodes_ends_as_one_after_the_other() {
    take(&[State::New, State::Over, State::Dirty, State::Stored], Size::OnePut, true, 1);
}
