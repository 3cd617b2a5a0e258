//! Calls that wait for another process, for the system or for a disk, kept away from the threads that
//! run tasks.
//!
//! Such a call takes a [`MayBlock`], and there are few ways to one, so that no call can be made from a
//! task by mistake: [`aside`], on a thread that is there to wait; [`WaitingThreads`], for what many
//! ask for; [`Turns`] and [`in_place`], on a thread of the runtime's whose other tasks go to another
//! one meanwhile; and [`MayBlock::own_thread`] at the beginning of a thread of ours. It cannot be sent
//! to another thread, so a task that keeps one cannot be spawned.
//!
//! The runtime has a bounded number of threads that can take such tasks over, and what it begins by
//! itself (names of hosts are looked up so) needs some, too. So what a task does at a disk it does in
//! its turn ([`Turns`]): a disk that does not answer keeps as many threads as it has turns, and no more.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::sync::unpoisoned;

/// Most threads of either kind that [`aside`] and [`aside_for_mounts`] have. The mounter takes as many
/// connections, and makes more changes at once than one kind could ask for.
const ASIDE_THREADS: usize = 32;

/// Says that this thread may wait: it runs no tasks.
pub struct MayBlock {
    _of_this_thread: PhantomData<*const ()>,
}

impl MayBlock {
    const HERE: Self = Self { _of_this_thread: PhantomData };

    /// For a thread that was started to wait, at its beginning.
    pub fn own_thread() -> Self {
        debug_assert!(
            tokio::runtime::Handle::try_current().is_err(),
            "this thread may run tasks; use `aside`"
        );
        Self::HERE
    }
}

/// Tests of what needs one wait.
#[cfg(test)]
pub(crate) const MAY: &MayBlock = &MayBlock::HERE;

/// Does something that may wait on a thread that is there for it, while this task gives way. These
/// threads are not the runtime's own, which write to the cache's disk: neither waits for the other.
///
/// It needs tokio's runtime. What has begun goes on to its end, whether or not anybody waits for it.
pub async fn aside<T: Send + 'static>(work: impl FnOnce(&MayBlock) -> T + Send + 'static) -> T {
    static ASIDE: LazyLock<io::Result<WaitingThreads>> =
        LazyLock::new(|| WaitingThreads::new("weir-aside", ASIDE_THREADS));
    on(&ASIDE, work).await
}

/// As [`aside`], for what changes the system's mounts: a kernel that is busy with them may keep it for
/// long. It has threads of its own, so that whoever opens or closes a file does not wait behind it.
pub async fn aside_for_mounts<T: Send + 'static>(
    work: impl FnOnce(&MayBlock) -> T + Send + 'static,
) -> T {
    static ASIDE: LazyLock<io::Result<WaitingThreads>> =
        LazyLock::new(|| WaitingThreads::new("weir-mounts", ASIDE_THREADS));
    on(&ASIDE, work).await
}

async fn on<T: Send + 'static>(
    threads: &io::Result<WaitingThreads>,
    work: impl FnOnce(&MayBlock) -> T + Send + 'static,
) -> T {
    match threads {
        Ok(threads) => threads.work(&Handle::current(), work).await,
        Err(_) => match beside(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        },
    }
}

/// Does something that may wait in the place of the task that asks: what else its thread was to do goes
/// to another one. For what is done seldom; what many do takes [`Turns`].
///
/// A runtime of one thread has no other: there everything waits.
#[expect(clippy::disallowed_methods, reason = "this is the way to it")]
pub fn in_place<T>(work: impl FnOnce(&MayBlock) -> T) -> T {
    let flavor = Handle::try_current().map(|home| home.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::CurrentThread) => work(&MayBlock::HERE),
        _ => tokio::task::block_in_place(|| work(&MayBlock::HERE)),
    }
}

/// As [`aside`], on a thread of the runtime's that is there for it: for what is done once, and may
/// last as long as the process.
#[expect(clippy::disallowed_methods, reason = "this is the way to it")]
pub fn beside<T: Send + 'static>(
    work: impl FnOnce(&MayBlock) -> T + Send + 'static,
) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || work(&MayBlock::HERE))
}

/// What is asked of one thing, a disk, and not answered yet.
#[derive(Debug, Default)]
pub struct Unanswered {
    calls: Mutex<Calls>,
}

/// When calls were begun, by their numbers.
#[derive(Debug, Default)]
struct Calls {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

/// A call that is not answered, until it is dropped.
#[must_use]
pub struct Call<'a> {
    of: &'a Unanswered,
    number: u64,
}

impl Unanswered {
    /// A call begins.
    pub fn call(&self) -> Call<'_> {
        Call { of: self, number: self.begin() }
    }

    /// How long the call that was begun first has lasted.
    pub fn longest(&self) -> Duration {
        let calls = unpoisoned(self.calls.lock());
        calls.since.first_key_value().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    fn begin(&self) -> u64 {
        let mut calls = unpoisoned(self.calls.lock());
        let number = calls.next;
        calls.next += 1;
        calls.since.insert(number, Instant::now());
        number
    }

    fn end(&self, number: u64) {
        unpoisoned(self.calls.lock()).since.remove(&number);
    }

    /// Lets the calls under way have begun so much earlier.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        for since in unpoisoned(self.calls.lock()).since.values_mut() {
            *since = since.checked_sub(by).unwrap_or(*since);
        }
    }
}

impl Call<'_> {
    /// There was an answer, and another call follows.
    pub fn next(&mut self) {
        self.of.end(self.number);
        self.number = self.of.begin();
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.of.end(self.number);
    }
}

/// What waits for one thing, a disk, at once: a bounded number of tasks. The others give way until it
/// is their turn.
#[derive(Debug)]
pub struct Turns {
    places: Arc<Semaphore>,
    unanswered: Arc<Unanswered>,
}

/// A turn, until it is dropped.
pub struct Turn {
    _place: OwnedSemaphorePermit,
}

impl Turns {
    /// At most so many at once.
    pub fn new(most: usize) -> Self {
        Self::at(most, Arc::default())
    }

    /// At most so many at once, at what has these calls unanswered.
    pub fn at(most: usize, unanswered: Arc<Unanswered>) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), unanswered }
    }

    /// Waits for a turn.
    pub async fn take(&self) -> Turn {
        match self.places.clone().acquire_owned().await {
            Ok(place) => Turn { _place: place },
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// A turn, where one is free.
    pub fn try_take(&self) -> Option<Turn> {
        self.places.clone().try_acquire_owned().ok().map(|place| Turn { _place: place })
    }

    /// A call of what is waited for begins: who has a turn may do more than that.
    pub fn call(&self) -> Call<'_> {
        self.unanswered.call()
    }

    /// Does something that may wait in the place of the task that asks, in its turn.
    pub async fn in_place<T>(&self, work: impl FnOnce(&MayBlock) -> T) -> T {
        let _turn = self.take().await;
        in_place(work)
    }

    /// Does something that may wait beside the task that asks, once its turn has come.
    pub async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&MayBlock) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let turn = self.take().await;
        beside(move |may| {
            let done = work(may);
            drop(turn);
            done
        })
    }
}

/// Threads that may wait, started when they are needed, up to a number. Work beyond it waits for
/// them in the order in which it came.
pub struct WaitingThreads {
    /// There until it is dropped. It runs no tasks: its threads are those that may wait.
    runtime: Option<Runtime>,
}

#[expect(clippy::disallowed_methods, reason = "this is the way to it")]
impl WaitingThreads {
    /// At most `most` threads of this name. One is started at once, so that where no other can be
    /// there is still one.
    ///
    /// # Errors
    /// That it cannot be started.
    pub fn new(name: &str, most: usize) -> io::Result<Self> {
        /// They are few, so that they can stay.
        const KEPT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        let mut builder = Builder::new_current_thread();
        builder.thread_name(name).max_blocking_threads(most).thread_keep_alive(KEPT);
        let runtime = builder.build()?;
        drop(runtime.spawn_blocking(|| ()));
        Ok(Self { runtime: Some(runtime) })
    }

    /// Does something that may wait, and gives what it comes to.
    pub async fn work<T: Send + 'static>(
        &self,
        home: &Handle,
        work: impl FnOnce(&MayBlock) -> T + Send + 'static,
    ) -> T {
        let (done, told) = oneshot::channel();
        self.begin(home, move |may| {
            // Nobody may wait for it any more.
            let _ = done.send(catch_unwind(AssertUnwindSafe(|| work(may))));
        });
        match told.await {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => resume_unwind(panic),
            // The threads are being taken down, and with them whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// Does something that may wait, soon. Where it panics, only it ends. Tasks that it begins are
    /// those of `home`.
    pub fn begin(&self, home: &Handle, work: impl FnOnce(&MayBlock) + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            let home = home.clone();
            runtime.spawn_blocking(move || {
                let _home = home.enter();
                work(&MayBlock::HERE);
            });
        }
    }
}

impl Drop for WaitingThreads {
    fn drop(&mut self) {
        // What waits for a disk that never answers is not waited for.
        self.runtime.take().map(Runtime::shutdown_background).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread_and_its_panic_is_the_callers() {
        let here = std::thread::current().id();
        let there = aside(|_| std::thread::current().id()).await;
        assert_ne!(here, there);
        let task = tokio::spawn(aside(|_| panic!("as it was")));
        assert!(task.await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn changes_of_mounts_that_are_stuck_leave_threads_to_whoever_opens_and_closes() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let stuck = (0..2 * ASIDE_THREADS).map(|_| {
            let gate = gate.clone();
            tokio::spawn(aside_for_mounts(move |_| gate.lock().unwrap().recv().unwrap_err()))
        });
        let stuck: Vec<_> = stuck.collect();
        tokio::task::yield_now().await;
        let others = (0..ASIDE_THREADS).map(|_| aside(|_| ()));
        for other in others {
            tokio::time::timeout(Duration::from_secs(60), other).await.unwrap();
        }
        drop(release);
        for change in stuck {
            change.await.unwrap();
        }
    }

    #[test]
    fn work_beyond_the_number_of_threads_waits_and_a_panic_takes_no_thread() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let threads = WaitingThreads::new("waits", 2).unwrap();
        let (begun, begins) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for n in 0..3 {
            let (begun, gate) = (begun.clone(), gate.clone());
            threads.begin(runtime.handle(), move |_| {
                begun.send(n).unwrap();
                let _ = gate.lock().unwrap().recv();
                panic!("as it was");
            });
        }
        let mut first = [begins.recv().unwrap(), begins.recv().unwrap()];
        first.sort_unstable();
        assert_eq!(first, [0, 1]);
        assert!(begins.recv_timeout(Duration::from_millis(50)).is_err(), "a third thread");
        drop(release);
        assert_eq!(begins.recv().unwrap(), 2);
    }

    /// What waits for one thing, and does not get it, leaves a thread to whoever waits for another.
    #[test]
    fn what_waits_for_one_thing_keeps_as_many_threads_as_it_has_turns() {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).max_blocking_threads(3).build().unwrap();
        let (hangs, answers) = (Arc::new(Turns::new(2)), Turns::new(2));
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (hangs, gate) = (hangs.clone(), gate.clone());
                let wait = async move { hangs.in_place(|_| gate.lock().unwrap().recv()).await };
                runtime.spawn(wait)
            })
            .collect();
        let (told, tells) = mpsc::channel();
        runtime.spawn(async move {
            let done = answers.in_place(|_| 1).await;
            told.send(done + answers.beside(|_| 1).await.await.unwrap())
        });
        let went_on = tells.recv_timeout(Duration::from_secs(30));
        drop(release);
        waiting.into_iter().for_each(|task| drop(runtime.block_on(task)));
        assert_eq!(went_on, Ok(2));
    }

    #[test]
    fn a_call_lasts_until_there_is_an_answer() {
        let disk = Unanswered::default();
        let mut walk = disk.call();
        disk.age(Duration::from_secs(60));
        assert!(disk.longest() >= Duration::from_secs(60));
        walk.next();
        assert!(disk.longest() < Duration::from_secs(60));
        drop(walk);
        assert_eq!(disk.longest(), Duration::ZERO);
    }

    #[test]
    fn a_thread_that_runs_tasks_is_none_of_its_own() {
        let _ = MayBlock::own_thread();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let task = runtime.spawn(async { _ = MayBlock::own_thread() });
        let refused = runtime.block_on(task).is_err();
        assert_eq!(refused, cfg!(debug_assertions));
    }
}
