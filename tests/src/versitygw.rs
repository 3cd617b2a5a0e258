//! One versitygw over a folder for all tests of a test binary.

use std::sync::OnceLock;

use crate::servers::{Running, command, data_dir, free_port, start};
use crate::tools;

/// Its administrator.
pub const USER: &str = "weir-gateway";
/// The administrator's password.
pub const PASSWORD: &str = "weir-gateway-secret";

/// The versitygw of this process, started at the first call. It ends with the process.
pub fn shared() -> &'static Running {
    static VERSITYGW: OnceLock<Running> = OnceLock::new();
    VERSITYGW.get_or_init(|| {
        let (data, address) = (data_dir("versitygw"), format!("127.0.0.1:{}", free_port()));
        let mut server = command(&tools::path("versitygw"));
        server
            .args(["--access", USER, "--secret", PASSWORD, "--region", "us-east-1"])
            .args(["--port", &address, "--quiet", "posix"])
            .arg(&data);
        start(server, format!("http://{address}"), data)
    })
}
