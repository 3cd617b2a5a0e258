//! Everything that can meet at a session, at every point where one of the two waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::*;
use crate::kubernetes::events::Subject;
use crate::node::claims::Claims;
use crate::node::mailbox::Mailboxes;

const ID: &str = "session";
const A: &str = "/a";
const B: &str = "/b";

/// A session that is none.
struct Fake {
    number: u32,
    targets: Mutex<BTreeSet<PathBuf>>,
    ended: AtomicBool,
}

fn published() -> Published {
    Published { volume_id: "volume".into(), read_only: false, subject: Subject::default() }
}

impl Fake {
    fn all(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.targets.lock().unwrap()
    }
}

impl Live for Fake {
    fn targets(&self) -> Vec<(PathBuf, Published)> {
        self.all().iter().map(|target| (target.clone(), published())).collect()
    }

    fn shown(&self, target: PathBuf, _: Published) {
        self.all().insert(target);
    }

    fn hidden(&self, target: &Path) -> bool {
        let mut all = self.all();
        all.remove(target);
        all.is_empty()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// What a mounter and a kernel would have.
#[derive(Default)]
struct Kernel {
    /// Sessions made so far.
    made: u32,
    /// Those that are mounted.
    mounted: BTreeSet<u32>,
    /// What is seen at targets.
    shown: BTreeMap<PathBuf, u32>,
    /// What a next engine would be told.
    custody: BTreeMap<u32, Vec<PathBuf>>,
}

#[derive(Default)]
struct Bench {
    kernel: Mutex<Kernel>,
    noted: Mutex<Option<Arc<Fake>>>,
    claims: Claims,
    mailboxes: Mailboxes<()>,
    /// Steps taken, the one to wait at, and the one that fails.
    steps: Mutex<(usize, Option<usize>, Option<usize>)>,
    reached: Notify,
    go: Notify,
    /// How often bytes are not stored yet.
    unstored: Mutex<u32>,
    /// Whether the next mount, or what is to be hidden next, is a fault of ours.
    panics: AtomicBool,
}

impl Bench {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap()
    }

    async fn step(&self) -> io::Result<()> {
        let (waits, fails) = {
            let mut steps = self.steps.lock().unwrap();
            let now = steps.0;
            steps.0 += 1;
            (steps.1 == Some(now), steps.2 == Some(now))
        };
        if waits {
            self.reached.notify_one();
            self.go.notified().await;
        }
        if fails { Err(io::Error::other("it fails")) } else { Ok(()) }
    }

    fn may_panic(&self) {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as a fault of ours would be");
    }

    async fn publish(self: &Arc<Self>, target: &str) -> Result<(), Error> {
        let target = PathBuf::from(target);
        self.claims.begin(&target, (ID, "volume"), false).unwrap();
        let wanted = Wanted { target, published: published(), volume: () };
        let (reply, answer) = oneshot::channel();
        self.mailboxes.send(self, ID, Message::Publish(Box::new(wanted), reply));
        answer.await.unwrap_or_else(|_| Err(Error::Internal("no answer".into())))
    }

    async fn unpublish(self: &Arc<Self>, target: &str) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.mailboxes.send(self, ID, Message::Unpublish(target.into(), reply));
        answer.await.unwrap_or_else(|_| Err(Error::Internal("no answer".into())))
    }

    /// Somebody unmounts the session everywhere, and its task hears of it.
    fn lose(self: &Arc<Self>) {
        self.cut();
        self.mailboxes.send(self, ID, Message::Lost);
    }

    /// Somebody unmounts the session everywhere.
    fn cut(&self) {
        if let Some(session) = self.noted(ID) {
            session.ended.store(true, Ordering::SeqCst);
            let mut kernel = self.kernel();
            kernel.mounted.remove(&session.number);
            kernel.shown.retain(|_, number| *number != session.number);
        }
    }

    /// Waits until all messages are done with.
    async fn rest(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    /// What is seen, what is kept and what is known are the same.
    fn check(&self, case: &str, is_kept: bool) {
        let (kernel, noted) = (self.kernel(), self.noted(ID));
        let number = noted.as_ref().map(|session| session.number);
        assert_eq!(kernel.mounted, number.into_iter().collect(), "{case}: mounted");
        let of = |session: &Arc<Fake>| session.all().clone().into_iter().collect::<Vec<_>>();
        let targets: Vec<_> = noted.as_ref().map(of).unwrap_or_default();
        let shown: Vec<_> = kernel.shown.keys().cloned().collect();
        assert_eq!(shown, targets, "{case}: shown");
        assert!(kernel.shown.values().all(|shown| Some(*shown) == number), "{case}: of another");
        for target in [A, B].map(Path::new) {
            let claimed = self.claims.session_at(target).is_some();
            let shown = kernel.shown.contains_key(target);
            // A target whose unpublish failed is asked for again, and leads here.
            assert!(claimed >= shown, "{case}: {target:?} is shown, but not claimed");
            assert!(!is_kept || claimed == shown, "{case}: {target:?} is claimed for ever");
        }
        let stray = |kept: &&u32| Some(**kept) != number;
        assert_eq!(kernel.custody.keys().find(stray), None, "{case}: kept, and not served");
        match noted {
            Some(session) if is_kept => {
                assert_eq!(kernel.custody[&session.number], targets, "{case}: custody");
            }
            Some(_) => {}
            None => assert!(self.mailboxes.is_empty(), "{case}: a task without a session"),
        }
    }
}

#[async_trait]
impl World for Bench {
    type Session = Fake;
    type Volume = ();

    async fn make(&self, _: &str, (): &()) -> Result<Arc<Fake>, Error> {
        self.step().await.map_err(|error| Error::Internal(error.to_string()))?;
        self.may_panic();
        let mut kernel = self.kernel();
        assert!(kernel.mounted.is_empty(), "mounted already");
        kernel.made += 1;
        let number = kernel.made;
        kernel.mounted.insert(number);
        Ok(Arc::new(Fake { number, targets: Mutex::default(), ended: AtomicBool::new(false) }))
    }

    async fn adopt(&self, id: &str) -> Option<Arc<Fake>> {
        self.make(id, &()).await.ok()
    }

    async fn refresh(&self, _: &Arc<Fake>, (): &()) {
        let _ = self.step().await;
    }

    fn published_again(&self, _: &Arc<Fake>, _: &Published, _: &Wanted<()>) -> Result<(), Error> {
        Ok(())
    }

    async fn show(&self, session: &Arc<Fake>, wanted: &Wanted<()>) -> io::Result<()> {
        self.step().await?;
        let mut kernel = self.kernel();
        if !kernel.mounted.contains(&session.number) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let covered = kernel.shown.insert(wanted.target.clone(), session.number);
        assert_eq!(covered, None, "something is covered");
        Ok(())
    }

    async fn hide(&self, target: &Path) -> io::Result<()> {
        self.step().await?;
        self.may_panic();
        self.kernel().shown.remove(target);
        Ok(())
    }

    async fn keep(&self, session: &Arc<Fake>) -> io::Result<()> {
        self.step().await?;
        let targets = session.all().iter().cloned().collect();
        self.kernel().custody.insert(session.number, targets);
        Ok(())
    }

    async fn store(&self, _: &Arc<Fake>) -> Result<(), Error> {
        let not_yet = |_| Error::Unavailable("not stored yet".into());
        self.step().await.map_err(not_yet)?;
        let mut unstored = self.unstored.lock().unwrap();
        match *unstored {
            0 => Ok(()),
            _ => {
                *unstored -= 1;
                Err(Error::Unavailable("not stored yet".into()))
            }
        }
    }

    async fn end(&self, session: &Arc<Fake>) -> Result<(), Error> {
        self.step().await.map_err(|error| Error::Internal(error.to_string()))?;
        assert!(session.all().is_empty(), "ended while it is shown");
        let mut kernel = self.kernel();
        kernel.mounted.remove(&session.number);
        kernel.custody.remove(&session.number);
        drop(kernel);
        session.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn clear(&self, session: &Arc<Fake>, _: &str) {
        let _ = self.step().await;
        let mut kernel = self.kernel();
        kernel.mounted.remove(&session.number);
        kernel.custody.remove(&session.number);
        kernel.shown.retain(|_, number| *number != session.number);
        session.ended.store(true, Ordering::SeqCst);
    }

    fn noted(&self, _: &str) -> Option<Arc<Fake>> {
        self.noted.lock().unwrap().clone()
    }

    fn note(self: &Arc<Self>, _: &str, session: Option<&Arc<Fake>>) {
        *self.noted.lock().unwrap() = session.cloned();
    }

    fn answered(&self, target: &Path, is_shown: bool) {
        self.claims.end(target, is_shown);
    }

    fn released(&self, target: &Path) {
        self.claims.release(target);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Publish(&'static str),
    Unpublish(&'static str),
    /// The mounter starts anew.
    Keep,
    Lose,
}

const ACTS: [Act; 6] =
    [Act::Publish(A), Act::Publish(B), Act::Unpublish(A), Act::Unpublish(B), Act::Keep, Act::Lose];

impl Act {
    async fn run(self, bench: Arc<Bench>) -> Result<(), Error> {
        match self {
            Self::Publish(target) => bench.publish(target).await,
            Self::Unpublish(target) => bench.unpublish(target).await,
            Self::Keep => {
                bench.kernel().custody.clear();
                let (reply, answer) = oneshot::channel();
                bench.mailboxes.send(&bench, ID, Message::Keep(reply));
                answer.await.unwrap()
            }
            Self::Lose => {
                bench.lose();
                Ok(())
            }
        }
    }

    /// What is seen where it acted, once it is done.
    fn is_done(self, bench: &Bench) -> bool {
        let kernel = bench.kernel();
        match self {
            Self::Publish(target) => kernel.shown.contains_key(Path::new(target)),
            Self::Unpublish(target) => !kernel.shown.contains_key(Path::new(target)),
            Self::Keep | Self::Lose => true,
        }
    }
}

/// Two acts, the second when the first is at its step `at`, with one step that fails. Says whether
/// the first has so many steps.
async fn meet(served: &[&str], acts: (Act, Act), at: usize, fails: Option<usize>) -> bool {
    let bench = Arc::new(Bench::default());
    for target in served {
        bench.publish(target).await.unwrap();
    }
    bench.rest().await;
    *bench.steps.lock().unwrap() = (0, Some(at), fails);
    let case = format!("{served:?} {acts:?} at {at}, failing {fails:?}");
    let first = tokio::spawn(acts.0.run(bench.clone()));
    let quiet = async {
        // All that can run has run, and nothing waits at the step.
        bench.rest().await;
        bench.rest().await;
    };
    let is_there = tokio::select! {
        biased;
        () = bench.reached.notified() => true,
        () = quiet => false,
    };
    let second = tokio::spawn(acts.1.run(bench.clone()));
    bench.rest().await;
    bench.go.notify_one();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    bench.rest().await;
    let has_failed = fails.is_some();
    assert!(has_failed || (first.is_ok() && second.is_ok()), "{case}: {first:?} {second:?}");
    if second.is_ok() {
        assert!(acts.1.is_done(&bench), "{case}: the second has succeeded, and is not done");
    }
    bench.check(&case, !has_failed);
    // Whatever has failed: what is tried again succeeds, and in the end nothing is left.
    *bench.steps.lock().unwrap() = (0, None, None);
    bench.publish(A).await.unwrap();
    bench.unpublish(B).await.unwrap();
    bench.check(&format!("{case}: and again"), false);
    bench.unpublish(A).await.unwrap();
    bench.rest().await;
    bench.check(&format!("{case}: and over"), true);
    assert!(bench.noted(ID).is_none(), "{case}: something is left");
    is_there
}

#[tokio::test]
async fn whatever_meets_at_any_point_ends_in_what_was_asked_for() {
    let mut met = 0;
    let starts: [&[&str]; 3] = [&[], &[A], &[A, B]];
    for served in starts {
        for first in ACTS {
            for second in ACTS {
                for fails in std::iter::once(None).chain((0..8).map(Some)) {
                    for at in 0.. {
                        if !meet(served, (first, second), at, fails).await {
                            break;
                        }
                        met += 1;
                    }
                }
            }
        }
    }
    // A change of the tasks may change it; that nothing met would be a fault of this test.
    assert!(met > 500, "{met}");
}

#[tokio::test]
async fn who_publishes_while_bytes_are_stored_waits_for_none_of_it() {
    let bench = Arc::new(Bench::default());
    bench.publish(A).await.unwrap();
    bench.rest().await;
    let session = bench.noted(ID).unwrap();
    // The second step of an unpublish is the wait.
    *bench.steps.lock().unwrap() = (0, Some(1), None);
    let ending = tokio::spawn(Act::Unpublish(A).run(bench.clone()));
    bench.reached.notified().await;
    bench.publish(B).await.unwrap();
    ending.await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&session, &bench.noted(ID).unwrap()));
    bench.check("shown again", true);
}

#[tokio::test]
async fn kubelet_is_told_until_bytes_are_stored_and_nothing_waits_meanwhile() {
    let bench = Arc::new(Bench::default());
    bench.publish(A).await.unwrap();
    *bench.unstored.lock().unwrap() = 2;
    for _ in 0..2 {
        assert!(matches!(bench.unpublish(A).await, Err(Error::Unavailable(_))));
        assert!(bench.noted(ID).is_some());
    }
    bench.unpublish(A).await.unwrap();
    bench.rest().await;
    bench.check("stored", true);
    assert!(bench.noted(ID).is_none());
}

#[tokio::test]
async fn a_connection_that_is_lost_is_cleared_away_without_being_asked_for() {
    let bench = Arc::new(Bench::default());
    bench.publish(A).await.unwrap();
    bench.lose();
    bench.rest().await;
    bench.check("lost", true);
    assert!(bench.noted(ID).is_none());
    // Nor is anybody shown it who comes before that is known.
    bench.publish(A).await.unwrap();
    bench.cut();
    bench.publish(A).await.unwrap();
    bench.rest().await;
    assert_eq!(bench.kernel().made, 3);
    bench.check("made anew", true);
}

#[tokio::test]
async fn a_task_that_panics_is_followed_by_another() {
    let bench = Arc::new(Bench::default());
    bench.panics.store(true, Ordering::SeqCst);
    assert!(bench.publish(A).await.is_err());
    bench.claims.end(Path::new(A), false);
    tokio::time::timeout(Duration::from_secs(60), bench.publish(A)).await.unwrap().unwrap();
    bench.rest().await;
    bench.check("after a panic", true);
}

#[tokio::test]
async fn what_a_task_that_panics_has_served_is_ended_by_the_next_one() {
    let bench = Arc::new(Bench::default());
    bench.publish(A).await.unwrap();
    bench.panics.store(true, Ordering::SeqCst);
    assert!(bench.unpublish(A).await.is_err());
    // Who comes meanwhile is shown the same session, and kubelet asks again.
    bench.publish(B).await.unwrap();
    assert_eq!(bench.kernel().made, 1);
    bench.unpublish(A).await.unwrap();
    bench.unpublish(B).await.unwrap();
    bench.rest().await;
    bench.check("after a panic", true);
    assert!(bench.noted(ID).is_none());
}

#[tokio::test]
async fn what_the_mounter_cannot_keep_is_not_shown() {
    let bench = Arc::new(Bench::default());
    // It is made, shown, and then kept.
    *bench.steps.lock().unwrap() = (0, None, Some(2));
    assert!(bench.publish(A).await.is_err());
    bench.rest().await;
    bench.check("the first", true);
    assert!(bench.noted(ID).is_none());
    bench.publish(A).await.unwrap();
    // The keys are refreshed, it is shown, and then kept.
    *bench.steps.lock().unwrap() = (0, None, Some(2));
    assert!(bench.publish(B).await.is_err());
    bench.rest().await;
    bench.check("the second", false);
    assert_eq!(bench.noted(ID).unwrap().targets().len(), 1);
}
