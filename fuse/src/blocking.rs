//! Calls that wait for another process or for the system, kept away from the threads that run tasks.
//!
//! Such a call takes a [`MayBlock`]. There are three ways to one, so that no call can be made from a
//! task by mistake: [`aside`], on a thread of tokio's that is there to wait; [`WaitingThreads`], for
//! what many ask for; and [`MayBlock::own_thread`] at the beginning of a thread of ours. It cannot be
//! sent to another thread, so a task that keeps one cannot be spawned.

use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

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

/// Does something that may wait on a thread that is there for it, while this task gives way. These
/// threads are not the runtime's own, which write to the cache's disk: neither waits for the other.
///
/// It needs tokio's runtime. What has begun goes on to its end, whether or not anybody waits for it.
pub async fn aside<T: Send + 'static>(work: impl FnOnce(&MayBlock) -> T + Send + 'static) -> T {
    /// Most of them. The mounter takes twice as many connections.
    const THREADS: usize = 32;
    static ASIDE: LazyLock<io::Result<WaitingThreads>> =
        LazyLock::new(|| WaitingThreads::new("weir-aside", THREADS));
    let (done, told) = oneshot::channel();
    let work = move |may: &MayBlock| {
        // Nobody may wait for it any more.
        let _ = done.send(catch_unwind(AssertUnwindSafe(|| work(may))));
    };
    let home = Handle::current();
    match &*ASIDE {
        Ok(threads) => threads.begin(&home, work),
        Err(_) => drop(home.spawn_blocking(move || work(&MayBlock::HERE))),
    }
    match told.await {
        Ok(Ok(done)) => done,
        Ok(Err(panic)) => resume_unwind(panic),
        // The threads are being taken down, and with them whoever waits here.
        Err(_) => std::future::pending().await,
    }
}

/// Threads that may wait, started when they are needed, up to a number. Work beyond it waits for
/// them in the order in which it came.
pub struct WaitingThreads {
    /// There until it is dropped. It runs no tasks: its threads are those that may wait.
    runtime: Option<Runtime>,
}

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

    #[test]
    fn a_thread_that_runs_tasks_is_none_of_its_own() {
        let _ = MayBlock::own_thread();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let task = runtime.spawn(async { _ = MayBlock::own_thread() });
        let refused = runtime.block_on(task).is_err();
        assert_eq!(refused, cfg!(debug_assertions));
    }
}
