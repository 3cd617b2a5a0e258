//! Calls that wait for another process or for the system, kept away from the threads that run tasks.
//!
//! Such a call takes a [`MayBlock`]. There are two ways to one, so that no call can be made from a
//! task by mistake: [`aside`], on a thread of tokio's that is there to wait, and [`MayBlock::own_thread`]
//! at the beginning of a thread of ours. It cannot be sent to another thread, so a task that keeps
//! one cannot be spawned.

use std::marker::PhantomData;

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

/// Does something that may wait on a thread that is there for it, while this task gives way.
///
/// It needs tokio's runtime. What has begun goes on to its end, whether or not anybody waits for it.
pub async fn aside<T: Send + 'static>(work: impl FnOnce(&MayBlock) -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(move || work(&MayBlock::HERE)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being taken down, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
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
    fn a_thread_that_runs_tasks_is_none_of_its_own() {
        let _ = MayBlock::own_thread();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let task = runtime.spawn(async { _ = MayBlock::own_thread() });
        let refused = runtime.block_on(task).is_err();
        assert_eq!(refused, cfg!(debug_assertions));
    }
}
