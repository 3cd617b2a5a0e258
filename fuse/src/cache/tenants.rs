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
    owed: Mutex<HashMap<usize, Owed>>,
}

/// What a disk is to be told, in the order in which it happened: who was replaced does not come after
/// who replaced him.
#[derive(Default)]
struct Owed {
    news: VecDeque<News>,
    /// Whether it could not note what it was told last.
    fails: bool,
}

/// That somebody came, of whom a disk has not heard. Those who come as he did meanwhile are told of
/// with him, so that a disk that does not answer is owed little.
pub(super) struct News {
    pub(super) signer: Signer,
    arrivals: Vec<Arc<Arrival>>,
}

/// Those who are there.
#[derive(Default)]
struct Present {
    /// By identity.
    users: HashMap<String, User>,
    /// Who came last.
    last: String,
    /// How often that was somebody else than before.
    changes: u64,
}

/// Who has one identity, in this process.
#[derive(Default)]
struct User {
    mounts: usize,
    /// Of mounts, ended or not, of which some disk does not know yet.
    arrivals: usize,
}

/// What counts for a user.
#[derive(Clone, Copy)]
enum Counts {
    Mount,
    Arrival,
}

impl User {
    fn count(&mut self, of: Counts) -> &mut usize {
        match of {
            Counts::Mount => &mut self.mounts,
            Counts::Arrival => &mut self.arrivals,
        }
    }
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

/// Counts for a user until it is dropped.
struct Presence {
    tenants: Arc<Tenants>,
    identity: String,
    counts: Counts,
}

/// A mount that begins, while the disks are told of it. It is there until all have noted it, however
/// soon it ends: what one of them does not know of is to be known here.
pub(super) struct Arrival {
    tenants: Arc<Tenants>,
    signer: Signer,
    /// [`Present::changes`] when it came.
    changes: u64,
    told: Mutex<Told>,
    answers: watch::Sender<()>,
    /// Whether the mount has begun.
    begun: AtomicBool,
}

struct Told {
    /// What each disk has said.
    answers: Vec<Answer>,
    /// Until all have noted it.
    presence: Option<Presence>,
}

/// What a disk has said.
enum Answer {
    None,
    /// That it could not note it, for now.
    Failed,
    Noted(Standing),
}

impl Answer {
    fn standing(&self) -> Option<&Standing> {
        match self {
            Self::None | Self::Failed => None,
            Self::Noted(standing) => Some(standing),
        }
    }
}

impl Tenants {
    /// One mount more, of which so many disks are to be told.
    pub(super) fn arrive(
        self: &Arc<Self>,
        signer: &Signer,
        disks: usize,
    ) -> (Arc<Arrival>, Tenancy) {
        let identity = &signer.identity;
        let mut present = self.present();
        let presence = |counts, present: &mut Present| {
            *present.users.entry(identity.clone()).or_default().count(counts) += 1;
            Presence { tenants: self.clone(), identity: identity.clone(), counts }
        };
        let own = presence(Counts::Mount, &mut present);
        let untold = presence(Counts::Arrival, &mut present);
        if present.are_others_than(signer) {
            self.several.store(true, Ordering::Relaxed);
        }
        if present.last != *identity {
            identity.clone_into(&mut present.last);
            present.changes += 1;
        }
        let changes = present.changes;
        drop(present);
        let told =
            Told { answers: (0..disks).map(|_| Answer::None).collect(), presence: Some(untold) };
        let arrival = Arrival {
            tenants: self.clone(),
            signer: signer.clone(),
            changes,
            told: Mutex::new(told),
            answers: watch::Sender::default(),
            begun: AtomicBool::new(false),
        };
        let tenancy = Tenancy { several: self.several.clone(), former: Vec::new(), presence: own };
        (Arc::new(arrival), tenancy)
    }

    /// Whether somebody uses the bucket, has heard how he stands, or is told of.
    pub(super) fn are_known(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.several) > 1
    }

    /// Notes that a disk is to be told of somebody. `true`: nobody tells it what is noted, and who asked
    /// is to do so, by [`Tenants::next_news`] until there is none.
    pub(super) fn note_news(&self, disk: usize, signer: &Signer, arrival: &Arc<Arrival>) -> bool {
        let mut owed = self.owed();
        let is_told = owed.contains_key(&disk);
        let of_disk = owed.entry(disk).or_default();
        match of_disk.news.iter_mut().find(|news| news.signer == *signer) {
            Some(same) => {
                // Who has begun is not waited for, and what this one hears counts for him, too.
                same.arrivals.retain(|earlier| !earlier.begun.load(Ordering::Relaxed));
                same.arrivals.push(arrival.clone());
            }
            None => {
                let arrivals = vec![arrival.clone()];
                of_disk.news.push_back(News { signer: signer.clone(), arrivals });
            }
        }
        let fails = of_disk.fails;
        drop(owed);
        if fails {
            arrival.note(disk, None);
        }
        !is_told
    }

    /// What a disk is to be told next; to be given back to [`Tenants::note_told`].
    pub(super) fn next_news(&self, disk: usize) -> Option<News> {
        let mut owed = self.owed();
        let next = owed.get_mut(&disk).and_then(|of_disk| of_disk.news.pop_front());
        if next.is_none() {
            owed.remove(&disk);
        }
        next
    }

    /// Notes what a disk has answered; where that is nothing, it is to be told again.
    pub(super) fn note_told(&self, disk: usize, news: News, standing: Option<&Standing>) {
        let arrivals = news.arrivals.clone();
        if let Some(of_disk) = self.owed().get_mut(&disk) {
            of_disk.fails = standing.is_none();
            if standing.is_none() {
                of_disk.news.push_front(news);
            }
        }
        arrivals.iter().for_each(|arrival| arrival.note(disk, standing.cloned()));
    }

    /// Whether somebody has mounts.
    pub(super) fn lives(&self, identity: &str) -> bool {
        self.present().users.get(identity).is_some_and(|user| user.mounts > 0)
    }

    fn owed(&self) -> MutexGuard<'_, HashMap<usize, Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    /// Whether somebody else is there, or was and is not known to all disks. Those whose place is taken
    /// are nobody else, once they have no mounts.
    fn are_others_than(&self, signer: &Signer) -> bool {
        self.users.iter().any(|(identity, user)| {
            *identity != signer.identity && (user.mounts > 0 || !signer.replaces.contains(identity))
        })
    }
}

impl Arrival {
    /// Takes notice of what a disk says; with `None`, that it could not note the mount yet.
    pub(super) fn note(&self, disk: usize, standing: Option<Standing>) {
        let mut told = self.told();
        if let Some(said) = told.answers.get_mut(disk) {
            match standing {
                Some(standing) => *said = Answer::Noted(standing),
                // It may have noted it meanwhile.
                None if said.standing().is_some() => {}
                None => *said = Answer::Failed,
            }
        }
        if told.answers.iter().all(|answer| answer.standing().is_some()) {
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
        let mut each = told.answers.iter().enumerate();
        each.all(|(disk, said)| !matches!(said, Answer::None) || hangs(disk))
    }

    /// Lets the mount begin with what is known now. It counts as one of several until all disks have
    /// said that it is alone.
    pub(super) fn begin(&self, tenancy: &mut Tenancy) {
        let told = self.told();
        self.begun.store(true, Ordering::Relaxed);
        if told.presence.is_some() {
            self.conclude(&told);
        }
        let standings = told.answers.iter().filter_map(Answer::standing);
        let names = standings.flat_map(|standing| &standing.former);
        tenancy.former = former(names, tenancy.identity());
    }

    fn conclude(&self, told: &Told) {
        let present = self.tenants.present();
        let is_alone = |said: &Answer| said.standing().is_some_and(|said| said.alone);
        // Who came before is there still, or known to the disks, which were told of him before; who came
        // later knows of this one, and this one of him by that.
        let alone = !present.are_others_than(&self.signer)
            && present.changes == self.changes
            && told.answers.iter().all(is_alone);
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
        if let Some(user) = present.users.get_mut(&self.identity) {
            *user.count(self.counts) -= 1;
            if user.mounts + user.arrivals == 0 {
                present.users.remove(&self.identity);
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
        tenants.arrive(&signer(identity, &[]), 1)
    }

    fn signer(identity: &str, replaces: &[&str]) -> Signer {
        let replaces: Vec<_> = replaces.iter().map(|name| (*name).to_owned()).collect();
        Signer { identity: identity.to_owned(), former: replaces.clone(), replaces }
    }

    /// Whether somebody counts as alone who comes now, where the disk knows of nobody else.
    fn is_alone(tenants: &Arc<Tenants>, identity: &str) -> bool {
        let (arrival, mut tenancy) = arrive(tenants, identity);
        arrival.note(0, Some(alone()));
        arrival.begin(&mut tenancy);
        !tenancy.several.load(Ordering::Relaxed)
    }

    #[test]
    fn a_disk_that_has_not_said_may_know_somebody_else() {
        let tenants: Arc<Tenants> = Arc::default();
        let (arrival, mut tenancy) = tenants.arrive(&signer("one", &[]), 2);
        arrival.note(1, Some(alone()));
        arrival.begin(&mut tenancy);
        assert!(tenancy.several.load(Ordering::Relaxed));
        arrival.note(0, Some(alone()));
        assert!(!tenancy.several.load(Ordering::Relaxed));
        let (arrival, mut tenancy) = tenants.arrive(&signer("one", &[]), 2);
        arrival.note(1, Some(alone()));
        arrival.begin(&mut tenancy);
        let former = vec!["before".to_owned()];
        arrival.note(0, Some(Standing { alone: false, former }));
        assert!(tenancy.several.load(Ordering::Relaxed));
    }

    #[test]
    fn who_came_while_a_disk_did_not_answer_is_known_after_he_has_ended() {
        let tenants = Arc::default();
        let (arrival, mut tenancy) = arrive(&tenants, "one");
        arrival.begin(&mut tenancy);
        drop(tenancy);
        assert!(!is_alone(&tenants, "two"), "the disk does not know of him yet");
        arrival.note(0, Some(alone()));
        assert!(is_alone(&tenants, "two"), "it does");
    }

    #[test]
    fn who_hears_late_that_he_was_alone_may_not_be_any_more() {
        let tenants = Arc::default();
        let (late, one) = arrive(&tenants, "one");
        assert!(!is_alone(&tenants, "two"), "the other is there");
        // Whoever came since has gone again.
        late.note(0, Some(alone()));
        assert!(one.several.load(Ordering::Relaxed));
        drop(one);
        assert!(is_alone(&tenants, "one"));
        // Mounts of one identity are nobody else to one another.
        let (late, one) = arrive(&tenants, "one");
        assert!(is_alone(&tenants, "one"));
        late.note(0, Some(alone()));
        assert!(!one.several.load(Ordering::Relaxed));
    }

    #[test]
    fn a_disk_is_told_of_each_in_the_order_in_which_they_came_and_of_equal_ones_once() {
        let tenants: Arc<Tenants> = Arc::default();
        let mut tenancies = Vec::new();
        let mut note = |disk, identity: &str| {
            let signer = signer(identity, &[]);
            let (arrival, mut tenancy) = tenants.arrive(&signer, 2);
            let tells = tenants.note_news(disk, &signer, &arrival);
            arrival.begin(&mut tenancy);
            tenancies.push(tenancy);
            tells
        };
        assert!(note(0, "one"));
        assert!(note(1, "one"), "another disk");
        for identity in ["two", "one", "two", "three", "one"] {
            assert!(!note(0, identity), "somebody tells it already");
        }
        let told = || tenants.next_news(0).map(|news| (news.signer.identity, news.arrivals.len()));
        // Of those who have begun, the last is told how he stands.
        assert_eq!(told(), Some(("one".to_owned(), 1)));
        // What is being told is not added to.
        assert!(!note(0, "one"));
        assert_eq!(told(), Some(("two".to_owned(), 1)));
        assert_eq!(told(), Some(("three".to_owned(), 1)));
        assert_eq!(told(), Some(("one".to_owned(), 1)));
        assert_eq!(told(), None);
        assert!(note(0, "one"), "nobody tells it any more");
    }

    #[test]
    fn who_waits_for_a_disk_is_told_with_all_that_came_as_he_did() {
        let tenants: Arc<Tenants> = Arc::default();
        let (one, _first) = arrive(&tenants, "one");
        let (again, _second) = arrive(&tenants, "one");
        assert!(tenants.note_news(0, &signer("one", &[]), &one));
        assert!(!tenants.note_news(0, &signer("one", &[]), &again));
        let news = tenants.next_news(0).unwrap();
        tenants.note_told(0, news, Some(&alone()));
        assert!(one.is_said(|_| false) && again.is_said(|_| false));
    }

    #[test]
    fn a_disk_that_could_not_note_somebody_is_told_again_and_until_then_he_is_somebody_else() {
        let tenants: Arc<Tenants> = Arc::default();
        let (one, mut tenancy) = arrive(&tenants, "one");
        assert!(tenants.note_news(0, &signer("one", &[]), &one));
        let news = tenants.next_news(0).unwrap();
        tenants.note_told(0, news, None);
        // He does not wait for it, nor does whoever comes now.
        assert!(one.is_said(|_| false));
        one.begin(&mut tenancy);
        let (two, mut other) = arrive(&tenants, "two");
        assert!(!tenants.note_news(0, &signer("two", &[]), &two));
        assert!(two.is_said(|_| false));
        two.begin(&mut other);
        drop((tenancy, other));
        assert!(!is_alone(&tenants, "three"), "the disk knows of neither");
        let mut told = Vec::new();
        while let Some(news) = tenants.next_news(0) {
            told.push(news.signer.identity.clone());
            tenants.note_told(0, news, Some(&alone()));
        }
        assert_eq!(told, ["one", "two"]);
        assert!(is_alone(&tenants, "three"));
    }

    #[test]
    fn whose_keys_were_replaced_while_a_disk_did_not_answer_is_nobody_else_once_he_has_no_mounts() {
        let tenants: Arc<Tenants> = Arc::default();
        let (before, mut tenancy) = arrive(&tenants, "one");
        before.begin(&mut tenancy);
        let (early, mut second) = tenants.arrive(&signer("two", &["one"]), 1);
        early.begin(&mut second);
        assert!(tenants.lives("one"));
        early.note(0, Some(alone()));
        assert!(second.several.load(Ordering::Relaxed), "there is a mount with those before");
        drop(tenancy);
        assert!(!tenants.lives("one"), "that a disk does not know of him keeps nobody");
        let (after, mut third) = tenants.arrive(&signer("two", &["one"]), 1);
        after.begin(&mut third);
        assert!(third.several.load(Ordering::Relaxed), "the disk has not said");
        after.note(0, Some(alone()));
        assert!(!third.several.load(Ordering::Relaxed));
    }
}
