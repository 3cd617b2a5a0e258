//! One amount of which several take, so that no few of them take all: each may hold a third of what
//! it leaves free. Who is greedy beside others has a quarter, and each that comes after him less, of
//! what is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::sync::unpoisoned;

/// One part of so many of what is free may be held.
const PART: usize = 3;
/// One part of so many is left by who has nobody beside him, for whoever comes.
const LEFT_ALONE: usize = 8;
/// How long more is waited for by who holds some.
const PATIENCE: Duration = Duration::from_secs(2);

/// The amount.
pub(super) struct Pool {
    total: AtomicUsize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    used: usize,
    /// How many parties there are.
    parties: usize,
    by_name: HashMap<Box<str>, Weak<Party>>,
}

/// One of those who take. It counts as long as somebody holds it.
pub(super) struct Party {
    pool: Arc<Pool>,
    /// Changed while the pool's state is locked.
    held: AtomicUsize,
    /// Held by the one of its waiters who is next.
    turn: tokio::sync::Mutex<()>,
}

/// What a party took; given back when dropped.
pub(super) struct Held {
    party: Arc<Party>,
    amount: usize,
}

impl Pool {
    pub(super) fn new(total: usize) -> Arc<Self> {
        let total = AtomicUsize::new(total);
        Arc::new(Self { total, state: Mutex::default(), freed: Notify::new() })
    }

    /// Sets how much there is, from now on.
    pub(super) fn set_total(&self, total: usize) {
        self.total.store(total, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// How much is held, by all.
    pub(super) fn used(&self) -> usize {
        self.state().used
    }

    /// The party of this name.
    pub(super) fn party(self: &Arc<Self>, name: &str) -> Arc<Party> {
        let mut state = self.state();
        if let Some(party) = state.by_name.get(name).and_then(Weak::upgrade) {
            return party;
        }
        state.by_name.retain(|_, party| party.strong_count() > 0);
        state.parties += 1;
        let (pool, held) = (self.clone(), AtomicUsize::new(0));
        let party = Arc::new(Party { pool, held, turn: tokio::sync::Mutex::default() });
        state.by_name.insert(name.into(), Arc::downgrade(&party));
        party
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }
}

impl Party {
    /// Waits until it may take one, behind those of its own who wait already.
    pub(super) async fn take_one(self: &Arc<Self>) -> Held {
        let _turn = self.turn.lock().await;
        self.take(1).await
    }

    /// Waits until it may take so much.
    async fn take(self: &Arc<Self>, amount: usize) -> Held {
        loop {
            let freed = self.pool.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(held) = self.try_take(amount) {
                return held;
            }
            freed.await;
        }
    }

    /// Nothing, to which can be added.
    pub(super) fn nothing(self: &Arc<Self>) -> Held {
        Held { party: self.clone(), amount: 0 }
    }

    /// Takes so much now or not at all.
    fn try_take(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let mut state = self.pool.state();
        let total = self.pool.total.load(Ordering::Relaxed);
        let free = total.saturating_sub(state.used).checked_sub(amount)?;
        let held = self.held.load(Ordering::Relaxed) + amount;
        let most = match state.parties {
            1 => total - total / LEFT_ALONE,
            _ => free / PART,
        };
        // Whoever has nothing gets something while there is anything.
        if held > most.max(amount) {
            return None;
        }
        state.used += amount;
        self.held.store(held, Ordering::Relaxed);
        Some(Held { party: self.clone(), amount })
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.pool.state().parties -= 1;
        // Who is alone from now on may have more.
        self.pool.freed.notify_waiters();
    }
}

impl Held {
    /// Takes so much more, as soon as it may, but for [`PATIENCE`]; says whether it has. Those who wait
    /// hold what they have, so that some of them must give up.
    pub(super) async fn add(&mut self, amount: usize) -> bool {
        let taken = tokio::time::timeout(PATIENCE, self.party.take(amount)).await;
        let Ok(mut more) = taken else { return false };
        self.amount += std::mem::take(&mut more.amount);
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut state = self.party.pool.state();
        state.used -= self.amount;
        self.party.held.fetch_sub(self.amount, Ordering::Relaxed);
        drop(state);
        self.party.pool.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Takes one after the other until it may no more.
    fn greedy(party: &Arc<Party>) -> Vec<Held> {
        std::iter::from_fn(|| party.try_take(1)).collect()
    }

    #[test]
    fn each_has_a_part_of_what_it_leaves_and_who_has_nothing_gets_something() {
        let pool = Pool::new(64);
        let mut parties = vec![pool.party("one")];
        assert!(Arc::ptr_eq(&parties[0], &pool.party("one")));
        let all = greedy(&parties[0]);
        assert_eq!(all.len(), 56);
        parties.push(pool.party("two"));
        assert!(parties[0].try_take(1).is_none(), "it is not alone any more");
        assert_eq!(greedy(&parties[1]).len(), 2);
        drop(all);
        let mut held: Vec<_> = parties.iter().map(greedy).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [16, 12]);
        for n in 0..8 {
            parties.push(pool.party(&n.to_string()));
            held.push(greedy(&parties[n + 2]));
            assert!(!held[n + 2].is_empty(), "{n}");
        }
        let used: usize = held.iter().map(Vec::len).sum();
        assert!(used < 64, "ten have all");
        drop(held);
        let last = parties.pop().unwrap();
        drop(parties);
        assert_eq!(greedy(&last).len(), 56, "alone again");
    }

    #[test]
    fn who_waits_is_served_in_turn_when_something_is_given_back() {
        let pool = Pool::new(8);
        let (one, _two) = (pool.party("one"), pool.party("two"));
        let mut held = greedy(&one);
        assert_eq!(held.len(), 2);
        let mut first = Box::pin(one.take_one());
        let mut second = Box::pin(one.take_one());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        held.pop();
        assert!(second.as_mut().now_or_never().is_none(), "it passes who waits already");
        assert!(first.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_added_is_given_back() {
        let pool = Pool::new(80);
        let (one, two) = (pool.party("one"), pool.party("two"));
        let mut held = one.nothing();
        assert!(held.add(15).await && held.add(5).await && !held.add(1).await);
        let others = greedy(&two);
        assert_eq!(others.len(), 15);
        let mut more = two.nothing();
        let mut adding = Box::pin(more.add(1));
        assert!(adding.as_mut().now_or_never().is_none());
        drop(held);
        assert!(adding.await, "somebody has given back");
        assert_eq!(greedy(&two).len(), 4);
    }
}
