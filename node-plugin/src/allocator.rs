//! Settings of glibc's allocator, so that the process stays near `--memory-target`.
#![allow(unsafe_code)] // mallopt(3), before there are threads.

/// Bounds what the allocator keeps. Threads share two arenas, and allocations from 128 KiB on
/// (an HTTP client's buffers) are mappings that go back to the system when freed; by default the
/// threshold grows with the first such free, and holes in a dozen arenas doubled the resident
/// memory (docs/performance.md). It also makes fuser's 16 MiB request buffers, one a thread, take
/// only the pages that are used. Elsewhere than on glibc it does nothing.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 128 << 10),
        (libc::M_TRIM_THRESHOLD, 256 << 10),
    ] {
        // SAFETY: mallopt takes two integers; this is called before any thread is started.
        unsafe { libc::mallopt(parameter, value) };
    }
}
