//! Stands in a container for a node plugin that somebody has broken into: tries what it can, says
//! what came of it, and stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "it is a test; its output is what it is for"
)]

use std::path::{Path, PathBuf};

use weir_tests::attacks;

fn main() {
    let paths = |name: &str| -> Vec<PathBuf> {
        let value = std::env::var_os(name).unwrap_or_default();
        std::env::split_paths(&value).collect()
    };
    let socket = Path::new("/mounter/mounter.sock");
    let mut made = attacks::on_mounter(socket, &paths("TARGETS"), &paths("FILES"));
    made.extend(attacks::on_kernel(Path::new("/cache")));
    made.extend(attacks::on_files(&["/cache", "/csi"].map(Path::new)));
    for attack in &made {
        match &attack.outcome {
            Ok(()) => println!("SUCCEEDED {}", attack.name),
            Err(error) => println!("refused {}: {error}", attack.name),
        }
    }
    println!("{} attacks were made", made.len());
    loop {
        std::thread::park();
    }
}
