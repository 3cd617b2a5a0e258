//! Who uses a bucket through this cache.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::index::{Signer, Standing, former};
use crate::sync::{Mutex, MutexGuard};

/// How soon it is looked again which disks hang.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Those of one bucket.
#[derive(Default)]
pub(super) struct Tenants {
    several: Arc<AtomicBool>,
    present: Mutex<Present>,
    /// What each disk is still to be told of those who came, by its place.
    news: Mutex<HashMap<usize, VecDeque<News>>>,
}

/// That somebody came, of whom a disk has not heard. Those who come as he did meanwhile are told of
/// with him, so that a disk that does not answer is owed little.
struct News {
    signer: Signer,
    arrivals: Vec<Arc<Arrival>>,
}

/// Those who are there.
#[derive(Default)]
struct Present {
    /// How many mounts of this process have which identity.
    mounts: HashMap<String, usize>,
    /// Who came last.
    last: String,
    /// How often that was somebody else than before.
    changes: u64,
}

/// That a mount uses a bucket, until this is dropped.
pub struct Tenancy {
    /// Whether somebody else does, or did: then what is here may have been brought with credentials
    /// that reach further. So it is, too, while a disk has not said.
    pub several: Arc<AtomicBool>,
    /// What its identity was before, the latest first, as far as the disks have said.
    pub former: Vec<String>,
    presence: Presence,
}

/// Counts as a mount.
struct Presence {
    tenants: Arc<Tenants>,
    identity: String,
}

/// A mount that begins, while the disks are told of it. It is there until all have noted it, however
/// soon it ends: what one of them does not know of is to be known here.
pub(super) struct Arrival {
    tenants: Arc<Tenants>,
    /// Whether somebody else was there before.
    others: bool,
    /// [`Present::changes`] when it came.
    changes: u64,
    told: Mutex<Told>,
    answers: watch::Sender<()>,
}

struct Told {
    /// What each disk has said.
    standings: Vec<Option<Standing>>,
    /// Until all have.
    presence: Option<Presence>,
}

impl Tenants {
    /// One mount more, of which so many disks are to be told.
    pub(super) fn arrive(
        self: &Arc<Self>,
        identity: &str,
        disks: usize,
    ) -> (Arc<Arrival>, Tenancy) {
        let mut present = self.present();
        *present.mounts.entry(identity.to_owned()).or_default() += 2;
        let others = present.mounts.len() > 1;
        if present.last != identity {
            identity.clone_into(&mut present.last);
            present.changes += 1;
        }
        if others {
            self.several.store(true, Ordering::Relaxed);
        }
        let changes = present.changes;
        drop(present);
        let presence = || Presence { tenants: self.clone(), identity: identity.to_owned() };
        let standings = (0..disks).map(|_| None).collect();
        let told = Mutex::new(Told { standings, presence: Some(presence()) });
        let answers = watch::Sender::default();
        let arrival = Arrival { tenants: self.clone(), others, changes, told, answers };
        let tenancy =
            Tenancy { several: self.several.clone(), former: Vec::new(), presence: presence() };
        (Arc::new(arrival), tenancy)
    }

    /// Whether somebody uses the bucket, has heard how he stands, or is told of.
    pub(super) fn are_known(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.several) > 1
    }

    /// Notes that a disk is to be told of somebody. `true`: nobody tells it what is noted, and who asked
    /// is to do so, by [`Tenants::next_news`] until there is none.
    pub(super) fn note_news(&self, disk: usize, signer: &Signer, arrival: &Arc<Arrival>) -> bool {
        let mut news = self.news();
        let is_told = news.contains_key(&disk);
        let of_disk = news.entry(disk).or_default();
        match of_disk.iter_mut().find(|news| news.signer == *signer) {
            Some(same) => same.arrivals.push(arrival.clone()),
            None => {
                let arrivals = vec![arrival.clone()];
                of_disk.push_back(News { signer: signer.clone(), arrivals });
            }
        }
        !is_told
    }

    /// What a disk is to be told next, in the order in which it happened: who was replaced does not come
    /// after who replaced him.
    pub(super) fn next_news(&self, disk: usize) -> Option<(Signer, Vec<Arc<Arrival>>)> {
        let mut news = self.news();
        let next = news.get_mut(&disk).and_then(VecDeque::pop_front);
        if next.is_none() {
            news.remove(&disk);
        }
        next.map(|News { signer, arrivals }| (signer, arrivals))
    }

    /// Whether somebody has mounts.
    pub(super) fn lives(&self, identity: &str) -> bool {
        self.present().mounts.contains_key(identity)
    }

    fn news(&self) -> MutexGuard<'_, HashMap<usize, VecDeque<News>>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// Takes notice of what a disk says.
    pub(super) fn note(&self, disk: usize, standing: Standing) {
        let mut told = self.told();
        if let Some(said) = told.standings.get_mut(disk) {
            *said = Some(standing);
        }
        if told.standings.iter().all(Option::is_some) {
            self.conclude(&told);
            drop(told.presence.take());
        }
        drop(told);
        self.answers.send_replace(());
    }

    /// Waits until each disk has said how it stands, or is one that hangs.
    pub(super) async fn until_said(&self, hangs: impl Fn(usize) -> bool) {
        let mut answers = self.answers.subscribe();
        while !self.is_said(&hangs) {
            let _ = tokio::time::timeout(LOOK_AGAIN, answers.changed()).await;
        }
    }

    fn is_said(&self, hangs: impl Fn(usize) -> bool) -> bool {
        let told = self.told();
        told.standings.iter().enumerate().all(|(disk, said)| said.is_some() || hangs(disk))
    }

    /// Lets the mount begin with what is known now. It counts as one of several until all disks have
    /// said that it is alone.
    pub(super) fn begin(&self, tenancy: &mut Tenancy) {
        let told = self.told();
        if told.standings.iter().any(Option::is_none) {
            self.conclude(&told);
        }
        let names = told.standings.iter().flatten().flat_map(|standing| &standing.former);
        tenancy.former = former(names, tenancy.identity());
    }

    fn conclude(&self, told: &Told) {
        let present = self.tenants.present();
        let is_alone = |said: &Option<Standing>| said.as_ref().is_some_and(|said| said.alone);
        // Who came later knows of this one, and this one of him by that.
        let alone =
            !self.others && present.changes == self.changes && told.standings.iter().all(is_alone);
        self.tenants.several.store(!alone, Ordering::Relaxed);
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenancy {
    /// Whose it is.
    pub fn identity(&self) -> &str {
        &self.presence.identity
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.tenants.present();
        if let Some(count) = present.mounts.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                present.mounts.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a disk says that knows of nobody else.
    fn alone() -> Standing {
        Standing { alone: true, former: Vec::new() }
    }

    fn arrive(tenants: &Arc<Tenants>, identity: &str) -> (Arc<Arrival>, Tenancy) {
        tenants.arrive(identity, 1)
    }

    /// Whether somebody counts as alone who comes now, where the disk knows of nobody else.
    fn is_alone(tenants: &Arc<Tenants>, identity: &str) -> bool {
        let (arrival, mut tenancy) = arrive(tenants, identity);
        arrival.note(0, alone());
        arrival.begin(&mut tenancy);
        !tenancy.several.load(Ordering::Relaxed)
    }

    #[test]
    fn a_disk_that_has_not_said_may_know_somebody_else() {
        let tenants: Arc<Tenants> = Arc::default();
        let (arrival, mut tenancy) = tenants.arrive("one", 2);
        arrival.note(1, alone());
        arrival.begin(&mut tenancy);
        assert!(tenancy.several.load(Ordering::Relaxed));
        arrival.note(0, alone());
        assert!(!tenancy.several.load(Ordering::Relaxed));
        let (arrival, mut tenancy) = tenants.arrive("one", 2);
        arrival.note(1, alone());
        arrival.begin(&mut tenancy);
        let former = vec!["before".to_owned()];
        arrival.note(0, Standing { alone: false, former });
        assert!(tenancy.several.load(Ordering::Relaxed));
    }

    #[test]
    fn who_came_while_a_disk_did_not_answer_is_known_after_he_has_ended() {
        let tenants = Arc::default();
        let (arrival, mut tenancy) = arrive(&tenants, "one");
        arrival.begin(&mut tenancy);
        drop(tenancy);
        assert!(!is_alone(&tenants, "two"), "the disk does not know of him yet");
        arrival.note(0, alone());
        assert!(is_alone(&tenants, "two"), "it does");
    }

    #[test]
    fn who_hears_late_that_he_was_alone_may_not_be_any_more() {
        let tenants = Arc::default();
        let (late, one) = arrive(&tenants, "one");
        assert!(!is_alone(&tenants, "two"), "the other is there");
        // Whoever came since has gone again.
        late.note(0, alone());
        assert!(one.several.load(Ordering::Relaxed));
        drop(one);
        assert!(is_alone(&tenants, "one"));
        // Mounts of one identity are nobody else to one another.
        let (late, one) = arrive(&tenants, "one");
        assert!(is_alone(&tenants, "one"));
        late.note(0, alone());
        assert!(!one.several.load(Ordering::Relaxed));
    }

    #[test]
    fn a_disk_is_told_of_each_in_the_order_in_which_they_came_and_of_equal_ones_once() {
        let tenants: Arc<Tenants> = Arc::default();
        let signer = |identity: &str| Signer { identity: identity.into(), ..Signer::default() };
        let mut tenancies = Vec::new();
        let mut note = |disk, identity: &str| {
            let (arrival, tenancy) = tenants.arrive(identity, 2);
            tenancies.push(tenancy);
            tenants.note_news(disk, &signer(identity), &arrival)
        };
        assert!(note(0, "one"));
        assert!(note(1, "one"), "another disk");
        for identity in ["two", "one", "two", "three", "one"] {
            assert!(!note(0, identity), "somebody tells it already");
        }
        let told = || tenants.next_news(0).map(|(signer, of)| (signer.identity, of.len()));
        assert_eq!(told(), Some(("one".to_owned(), 3)));
        // What is being told is not added to.
        assert!(!note(0, "one"));
        assert_eq!(told(), Some(("two".to_owned(), 2)));
        assert_eq!(told(), Some(("three".to_owned(), 1)));
        assert_eq!(told(), Some(("one".to_owned(), 1)));
        assert_eq!(told(), None);
        assert!(note(0, "one"), "nobody tells it any more");
    }
}
