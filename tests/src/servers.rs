//! S3 servers in processes of their own, which end with the process of the tests.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::eventually;

/// A running server.
pub struct Running {
    /// Its URL, on loopback.
    pub url: String,
    /// Its data: a folder made here is a bucket.
    pub data: PathBuf,
}

/// A port of loopback that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder for a server's data.
pub fn data_dir(server: &str) -> PathBuf {
    let prefix = format!("weir-{server}-");
    tempfile::Builder::new().prefix(&prefix).tempdir_in("/var/tmp").unwrap().keep()
}

/// A program that the kernel kills when the thread ends that starts it.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts a server of this URL over this folder, which is removed after the end of this process.
pub(crate) fn start(mut server: Command, url: String, data: PathBuf) -> Running {
    let (folder, parent) = (data.clone(), std::process::id());
    // This thread lasts as long as the process.
    std::thread::spawn(move || {
        let mut child = server.spawn().unwrap();
        // Removes the data after the process, even after a kill.
        let script = format!(
            "while kill -0 {parent} 2>/dev/null; do sleep 1; done; sleep 1; rm -rf '{}'",
            folder.display()
        );
        let _ = Command::new("setsid").args(["sh", "-c", &script]).spawn();
        let _ = child.wait();
    });
    // Before it knows its disks MinIO answers 503, also where its health is asked for as "ready".
    eventually("the server refuses a stranger", || {
        let args = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        Command::new("curl").args(args).output().unwrap().stdout == b"403"
    });
    Running { url, data }
}
