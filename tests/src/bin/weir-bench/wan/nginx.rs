//! nginx as a caching proxy before the bucket: `proxy_cache` with slices, as its documentation has it for
//! large objects (ngx_http_slice_module).

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use weir_tests::eventually;
use weir_tests::servers::free_port;

/// A running nginx.
pub(super) struct Nginx {
    pub(super) address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Nginx {
    /// Starts one before this origin, with nothing in its cache.
    pub(super) fn start(origin: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("weir-nginx-").tempdir_in("/var/tmp").unwrap();
        let (path, port) = (dir.path().display(), free_port());
        let config = format!(
            "user root;\nworker_processes 2;\npid {path}/pid;\nerror_log {path}/errors;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n\
             access_log off;\n\
             proxy_temp_path {path}/temp;\n\
             client_body_temp_path {path}/body;\nfastcgi_temp_path {path}/f;\n\
             uwsgi_temp_path {path}/u;\nscgi_temp_path {path}/s;\n\
             proxy_cache_path {path}/cache levels=1:2 keys_zone=objects:64m max_size=8g;\n\
             upstream origin {{ server {origin}; keepalive 64; }}\n\
             server {{\n\
             listen 127.0.0.1:{port};\n\
             location / {{\n\
             slice 1m;\n\
             proxy_pass http://origin;\n\
             proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\";\n\
             proxy_set_header Range $slice_range;\n\
             proxy_cache objects;\n\
             proxy_cache_key $uri$slice_range;\n\
             proxy_cache_valid 200 206 1h;\n\
             proxy_cache_lock on;\n\
             }}\n}}\n}}\n"
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nginx", "-g", "daemon off;", "-c"]).arg(&file);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("nginx listens", || TcpStream::connect(address).is_ok());
        Self { address, child, _dir: dir }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
