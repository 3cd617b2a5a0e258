//! Programs that tests/setup builds.

use std::path::PathBuf;

/// Where they are: `$WEIR_TOOLS`, or a folder in the user's cache.
pub fn dir() -> PathBuf {
    match std::env::var_os("WEIR_TOOLS") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
            .join(".cache/weir-tests/bin"),
    }
}

/// One of them.
pub fn path(name: &str) -> PathBuf {
    let path = dir().join(name);
    assert!(path.exists(), "{} is missing: run tests/setup", path.display());
    path
}

/// One of the programs of the test cluster.
pub fn kube(name: &str) -> PathBuf {
    let work = match std::env::var_os("KUBE_WORK") {
        Some(work) => PathBuf::from(work),
        None => {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/weir-kube")
        }
    };
    let path = work.join("bin").join(name);
    assert!(path.exists(), "{} is missing: run tests/setup", path.display());
    path
}
