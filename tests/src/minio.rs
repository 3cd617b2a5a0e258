//! One MinIO for all tests of a test binary.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::servers::{self, Running, command, data_dir, free_port};
use crate::tools;

/// Its administrator.
pub const USER: &str = "weir-tests";
/// The administrator's password.
pub const PASSWORD: &str = "weir-tests-secret";

/// The MinIO of this process, started at the first call. It ends with the process.
pub fn shared() -> &'static Running {
    static MINIO: OnceLock<Running> = OnceLock::new();
    MINIO.get_or_init(|| start(data_dir("minio")))
}

fn program() -> PathBuf {
    match std::env::var_os("WEIR_MINIO") {
        Some(given) => PathBuf::from(given),
        None => tools::path("minio"),
    }
}

/// Starts a MinIO over this folder, which is removed after the end of this process.
pub fn start(data: PathBuf) -> Running {
    start_with(data, Vec::new())
}

/// Starts one with more settings in its environment.
pub fn start_with(data: PathBuf, settings: Vec<(String, String)>) -> Running {
    launch(data, settings, None)
}

/// A certificate for 127.0.0.1, `public.crt` with `private.key`, of an authority of its own, `ca.crt`.
pub fn certificate() -> TempDir {
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
    certificates
}

/// Starts one that speaks TLS. Its authority is the second value's `ca.crt`.
pub fn start_tls(data: PathBuf) -> (Running, TempDir) {
    let certificates = certificate();
    let minio = launch(data, Vec::new(), Some(certificates.path().to_owned()));
    (minio, certificates)
}

fn launch(data: PathBuf, settings: Vec<(String, String)>, tls: Option<PathBuf>) -> Running {
    let address = format!("127.0.0.1:{}", free_port());
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut server = command(&program());
    server
        .args(["server", "--quiet", "--address", &address])
        .args(tls.iter().flat_map(|dir| [OsStr::new("--certs-dir"), dir.as_os_str()]))
        .arg(&data)
        .env("MINIO_ROOT_USER", USER)
        .env("MINIO_ROOT_PASSWORD", PASSWORD)
        .env("MINIO_BROWSER", "off")
        .env("MINIO_UPDATE", "off")
        .envs(settings);
    servers::start(server, format!("{scheme}://{address}"), data)
}
