//! The HTTP ports: what clients can do to them, and what they tell kubelet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use weir_csi::proto::ProbeRequest;
use weir_csi::proto::identity_client::IdentityClient;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, Setup, TestVolume, channel};
use weir_tests::failing_disk::FailingDisk;
use weir_tests::{PATIENCE, eventually, random_bytes, runtime};

/// Half requests: many more than a port keeps.
const HALVES: usize = 3000;
/// Connections that a port keeps.
const KEPT: usize = 64;

/// The address that a process has logged that it serves.
fn address(logs: impl Fn() -> String, what: &str) -> SocketAddr {
    let find = || {
        let logs = logs();
        let line = logs.lines().rfind(|line| line.contains(what))?;
        // Colours may stand around the words.
        let text = line.split("127.0.0.1:").nth(1)?;
        let port = text.chars().take_while(char::is_ascii_digit).collect::<String>();
        Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?)))
    };
    eventually("an address is logged", || find().is_some());
    find().unwrap()
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn half(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    // It may have been ended already.
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHo");
    stream
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn node_with_standby() -> (CsiNode, SocketAddr, SocketAddr) {
    let mut node = CsiNode::new(&Bucket::new(Server::Embedded));
    node.start_standby();
    let metrics = address(|| node.standby_logs(), "serving metrics");
    let health = address(|| node.standby_logs(), "serving probes");
    (node, metrics, health)
}

#[test]
fn half_requests_keep_neither_probe_nor_metrics_from_being_answered() {
    let (node, metrics, health) = node_with_standby();
    let before = descriptors(node.standby_pid());
    let mut most = before;
    for port in [metrics, health] {
        let mut halves: Vec<TcpStream> = Vec::new();
        for _ in 0..HALVES {
            halves.push(half(port));
            most = most.max(descriptors(node.standby_pid()));
            // Ours are limited, too; those that the server has ended are of no use.
            if halves.len() > KEPT * 8 {
                halves.remove(0);
            }
        }
        let page = get(port, if port == health { "/healthz" } else { "/metrics" }).unwrap();
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        assert!(most <= before + 2 * KEPT + 2, "{most} descriptors, {before} before");
        assert!(get(health, "/healthz").unwrap().ends_with("ok\n"));
        assert!(get(health, "/metrics").unwrap().starts_with("HTTP/1.1 404"));
    }
}

#[test]
fn who_says_nothing_more_is_sent_away_and_one_request_is_all() {
    let (_node, metrics, health) = node_with_standby();
    for port in [metrics, health] {
        let mut stream = half(port);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = Vec::new();
        // It ends, whatever is said before: only a hang is not an end.
        let end = stream.read_to_end(&mut text);
        assert!(end.is_ok() || end.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    }
    // `get` asks for a connection that is kept, and reads until its end.
    assert!(get(metrics, "/metrics").unwrap().contains("connection: close"));
    let long = format!("/{}", "x".repeat(64 << 10));
    let refused = get(metrics, &long);
    assert!(!matches!(&refused, Ok(page) if page.starts_with("HTTP/1.1 404")), "{refused:?}");
}

#[test]
fn out_of_descriptors_accept_is_not_tried_again_and_again() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let (node, metrics, _health) = node_with_standby();
    let pid = Pid::from_raw(i32::try_from(node.standby_pid()).unwrap());
    let limit = |current| {
        prlimit(pid, Resource::Nofile, Rlimit { current: Some(current), maximum: Some(1024) })
            .unwrap()
    };
    limit(descriptors(node.standby_pid()) as u64);
    let waiting: Vec<TcpStream> = (0..KEPT).map(|_| half(metrics)).collect();
    let failures = || node.standby_logs().matches("accept failed").count();
    eventually("accept fails", || failures() > 0);
    // Time for a loop that does not pause to show itself.
    std::thread::sleep(Duration::from_millis(500));
    let tried = failures();
    assert!(tried < 100, "{tried} attempts");
    limit(1024);
    drop(waiting);
    assert!(get(metrics, "/metrics").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn out_of_descriptors_the_plugins_socket_is_not_tried_again_and_again_either() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let node = CsiNode::new(&Bucket::new(Server::Embedded));
    let pid = node.node_pid();
    let number = Pid::from_raw(i32::try_from(pid).unwrap());
    let limit = |current| {
        prlimit(number, Resource::Nofile, Rlimit { current: Some(current), maximum: Some(4096) })
            .unwrap()
    };
    limit(descriptors(pid) as u64);
    let waiting: Vec<_> =
        (0..KEPT).filter_map(|_| UnixStream::connect(node.socket()).ok()).collect();
    let failures = || node.logs().matches("accept failed").count();
    eventually("accept fails", || failures() > 0);
    let (before, tried) = (cpu_ticks(pid), failures());
    std::thread::sleep(Duration::from_secs(2));
    // Of a hundred a second: a loop that does not pause takes a core.
    let (used, tried) = (cpu_ticks(pid) - before, failures() - tried);
    assert!(used < 100 && tried < 20, "{used} ticks, {tried} attempts");
    limit(4096);
    drop(waiting);
    let ready = runtime().block_on(async {
        let mut client = IdentityClient::new(channel(node.socket()).await);
        client.probe(ProbeRequest {}).await.unwrap().into_inner().ready
    });
    assert!(ready.is_some());
}

/// What a process has used of processors: proc_pid_stat(5).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(')').unwrap();
    let of = |field: usize| after.split_whitespace().nth(field).unwrap().parse::<u64>().unwrap();
    of(11) + of(12)
}

/// A disk in the place of another folder, until it is dropped.
struct InPlace(PathBuf);

impl InPlace {
    fn of(folder: PathBuf, disk: &FailingDisk) -> Self {
        rustix::mount::mount_bind(disk.path(), &folder).unwrap();
        Self(folder)
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_node_whose_disk_fails_is_not_ready_until_it_works_again() {
    let bucket = Bucket::new(Server::Embedded);
    let bytes = |n: u64| random_bytes(n, 100_000);
    (0..200).for_each(|n| drop(bucket.put(&format!("f{n}"), bytes(n))));
    let setup =
        Setup { node_flags: vec!["--health-listen=127.0.0.1:0".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    node.take_node().terminate();
    let disk = FailingDisk::new();
    let _in_place = InPlace::of(node.cache_dir(), &disk);
    node.start_node();
    let target = node.publish(&TestVolume::new(&bucket, "pod")).unwrap();
    let page = || get(address(|| node.logs(), "serving probes"), "/readyz").unwrap();
    eventually("the node is ready", || page().starts_with("HTTP/1.1 200"));
    let mut files = 0..200;
    let mut read = || {
        let n = files.next().unwrap();
        assert!(std::fs::read(target.join(format!("f{n}"))).unwrap() == bytes(n));
        std::thread::sleep(Duration::from_millis(100));
    };
    disk.fail(true);
    eventually("it is not", || {
        read();
        page().contains("no disk of the cache works")
    });
    disk.fail(false);
    eventually("it is again", || {
        read();
        page().starts_with("HTTP/1.1 200")
    });
    node.take_node().terminate();
}

#[test]
fn a_node_without_its_mounter_is_not_ready() {
    let bucket = Bucket::new(Server::Embedded);
    let setup =
        Setup { node_flags: vec!["--health-listen=127.0.0.1:0".into()], ..Setup::default() };
    let node = CsiNode::with(&bucket, setup);
    let health = address(|| node.logs(), "serving probes");
    let probe = |node: &CsiNode| {
        let socket = node.socket();
        runtime().block_on(async {
            let mut client = IdentityClient::new(channel(socket).await);
            client.probe(ProbeRequest {}).await.unwrap().into_inner().ready.unwrap()
        })
    };
    let page = || get(health, "/readyz").unwrap();
    eventually("the node is ready", || page().starts_with("HTTP/1.1 200"));
    assert!(probe(&node));

    node.take_mounter().kill();
    eventually("it is not", || page().starts_with("HTTP/1.1 503"));
    assert!(page().contains("the mounter is not connected"));
    assert!(!probe(&node));
    // That is no reason to start it anew.
    assert!(get(health, "/healthz").unwrap().starts_with("HTTP/1.1 200"));

    node.start_mounter();
    eventually("it is again", || page().starts_with("HTTP/1.1 200"));
    assert!(probe(&node));
}
