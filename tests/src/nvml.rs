//! A libnvidia-ml.so that answers from a description of a machine (tests/fake-nvml).

use std::path::{Path, PathBuf};

/// The library, built beside this test.
pub fn library() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let library = own.ancestors().nth(2).unwrap().join("libweir_fake_nvml.so");
    assert!(
        library.exists(),
        "{} is not built: cargo build --workspace --all-targets",
        library.display()
    );
    library
}

/// The description of a machine.
pub fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fake-nvml/machines/{name}.json"))
}
