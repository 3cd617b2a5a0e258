//! One MinIO for all tests of a test binary.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{eventually, tools};

/// Its administrator.
pub const USER: &str = "weir-tests";
/// The administrator's password.
pub const PASSWORD: &str = "weir-tests-secret";

/// A running MinIO.
pub struct Minio {
    /// Its URL, on loopback.
    pub url: String,
    /// Its data: a folder made here is a bucket.
    pub data: PathBuf,
}

/// The MinIO of this process, started at the first call. It ends with the process.
pub fn shared() -> &'static Minio {
    static MINIO: OnceLock<Minio> = OnceLock::new();
    MINIO.get_or_init(|| {
        let data = tempfile::Builder::new().prefix("weir-minio-").tempdir_in("/var/tmp").unwrap();
        start(data.keep())
    })
}

/// A port of loopback that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn program() -> PathBuf {
    match std::env::var_os("WEIR_MINIO") {
        Some(given) => PathBuf::from(given),
        None => tools::path("minio"),
    }
}

/// Starts a MinIO over this folder, which is removed after the end of this process.
pub fn start(data: PathBuf) -> Minio {
    start_with(data, Vec::new())
}

/// Starts one with more settings in its environment.
pub fn start_with(data: PathBuf, settings: Vec<(String, String)>) -> Minio {
    launch(data, settings, None)
}

/// Starts one that speaks TLS. Its authority is the second value's `ca.crt`.
pub fn start_tls(data: PathBuf) -> (Minio, TempDir) {
    let certificates = tempfile::tempdir().unwrap();
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=weir-test-ca \
            -keyout ca.key -out ca.crt && \
        openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout private.key -out server.csr && \
        printf 'subjectAltName=IP:127.0.0.1\n' >ext && \
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
            -extfile ext -out public.crt";
    let made = Command::new("sh").args(["-c", script]).current_dir(certificates.path()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let minio = launch(data, Vec::new(), Some(certificates.path().to_owned()));
    (minio, certificates)
}

fn launch(data: PathBuf, settings: Vec<(String, String)>, tls: Option<PathBuf>) -> Minio {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let (certificates, scheme) = (tls.clone(), if tls.is_some() { "https" } else { "http" });
    let (folder, listen, parent) = (data.clone(), address.clone(), std::process::id());
    // The signal comes when the starting thread ends: this one lasts as long as the process.
    std::thread::spawn(move || {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program())
            .args(["server", "--quiet", "--address", &listen])
            .args(certificates.iter().flat_map(|dir| [OsStr::new("--certs-dir"), dir.as_os_str()]))
            .arg(&folder)
            .env("MINIO_ROOT_USER", USER)
            .env("MINIO_ROOT_PASSWORD", PASSWORD)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .envs(settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Removes the data after the process, even after a kill.
        let script = format!(
            "while kill -0 {parent} 2>/dev/null; do sleep 1; done; sleep 1; rm -rf '{}'",
            folder.display()
        );
        let _ = Command::new("setsid").args(["sh", "-c", &script]).spawn();
        let _ = child.wait();
    });
    let url = format!("{scheme}://{address}");
    // Before it knows its disks it answers 503, also where its health is asked for as "ready".
    eventually("MinIO refuses a stranger", || {
        let args = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        Command::new("curl").args(args).output().unwrap().stdout == b"403"
    });
    Minio { url, data }
}
