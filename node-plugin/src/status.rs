//! `weir status`.

use std::fmt::Display;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use weir_fuse::model::ttl::MetadataTtl;

use crate::admin::{MountStatus, NodeStatus};
use crate::cli::{Output, StatusArgs};
use crate::config::size::Size;
use crate::exit::{Failure, Kind};
use crate::run_dir;
use egress::Prices;
pub(crate) use egress::price;

/// How long a process may take to answer, from first to last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, in bytes. A mount says some thousand.
const ANSWER_MAX: usize = 16 << 20;

/// Runs the command.
///
/// # Errors
/// Where there is no run directory to look into, or the answer cannot be printed.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let nodes: Vec<NodeStatus> = all()?.into_iter().map(|(_, node)| node).collect();
    match args.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(&nodes)
                .map_err(|e| Failure::new(Kind::Other, e.to_string()))?;
            println!("{text}");
        }
        Output::Text if nodes.is_empty() => println!("nothing is mounted"),
        Output::Text => {
            let region = args.region_price_per_gib;
            let prices = args.price_per_gib.map(|origin| Prices { origin, region });
            nodes.iter().for_each(|node| print!("{}", describe(node, prices)));
        }
    }
    Ok(())
}

/// Every process that answers, with its socket.
///
/// # Errors
/// What is wrong with the run directory.
pub fn all() -> Result<Vec<(PathBuf, NodeStatus)>, Failure> {
    Ok(run_dir::existing()?.map_or_else(Vec::new, |dir| all_in(&dir)))
}

/// Every process whose socket is in `dir`.
pub fn all_in(dir: &Path) -> Vec<(PathBuf, NodeStatus)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let sockets = entries.flatten().map(|entry| entry.path());
    let sockets = sockets.filter(|path| path.extension().is_some_and(|ext| ext == "sock"));
    sockets.filter_map(|path| ask(&path).map(|node| (path, node))).collect()
}

/// Asks one process. A socket that nobody listens to is removed.
fn ask(path: &Path) -> Option<NodeStatus> {
    let until = Instant::now() + PATIENCE;
    let mut stream = match connect(path) {
        Ok(stream) => stream,
        Err(Errno::CONNREFUSED) => {
            let _ = std::fs::remove_file(path);
            return None;
        }
        Err(_) => return None,
    };
    let text = read(&mut stream, until).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Connects, if that does not take longer than anybody is waited for.
fn connect(path: &Path) -> rustix::io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // It bounds connect(2), too (unix(7)).
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// What a process says until it ends, which is short, and said in time.
fn read(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || text.len() > ANSWER_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(read) => text.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A text that somebody chose, as a terminal can show it in a line.
fn shown(text: impl Display) -> String {
    let mut shown = String::new();
    for c in text.to_string().chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

fn describe(node: &NodeStatus, prices: Option<Prices>) -> String {
    let mut out = String::new();
    for mount in &node.mounts {
        out.push_str(&describe_mount(mount));
    }
    let (cache, counters) = (&node.cache, &node.counters);
    let opens = counters.cache_hits.saturating_add(counters.cache_misses);
    let ratio = match opens {
        0 => "no opens yet".to_owned(),
        opens => {
            format!("{:.1} % of {opens} opens", 100.0 * counters.cache_hits as f64 / opens as f64)
        }
    };
    for disk in &cache.disks {
        let limit = match disk.max_bytes {
            u64::MAX => format!("{} free on the disk", Size(disk.free_bytes)),
            max => format!("of {}", Size(max)),
        };
        out.push_str(&format!(
            "  cache      {} ({} in {} versions, {limit})\n",
            shown(disk.dir.display()),
            Size(disk.used_bytes),
            disk.versions,
        ));
        if let Some(problem) = &disk.problem {
            out.push_str(&format!("  PROBLEM    {}\n", shown(problem)));
        }
        if disk.lost_bytes > 0 {
            let lost = disk.dir.join("lost");
            let size = Size(disk.lost_bytes);
            out.push_str(&format!(
                "  LOST       {size} not stored, kept in {}\n",
                shown(lost.display())
            ));
        }
    }
    out.push_str(&format!(
        "  hits       {ratio}\n  \
         stored     {}\n  \
         uploads    {} in flight\n  memory     {} of {}\n  process    {} (weir {})\n",
        Size(counters.stored_bytes),
        counters.uploads_in_flight,
        Size(counters.memory_used),
        Size(counters.memory_target),
        node.pid,
        shown(&node.version),
    ));
    out.push_str(&egress::describe(counters, prices));
    for region in &node.regions {
        let stands = if region.is_shut { "fails, and is left alone" } else { "is asked first" };
        out.push_str(&format!("  region     {} {stands}\n", shown(&region.url)));
    }
    if let Some(feed) = &node.feed {
        let stands = if feed.lives { "lives" } else { "is silent: names live as without it" };
        let heard = feed
            .heard_ms_ago
            .map_or("nothing heard yet".to_owned(), |ms| format!("last heard {} ago", seconds(ms)));
        out.push_str(&format!(
            "  feed       {} {stands}; {heard}\n",
            shown(feed.servers.join(","))
        ));
    }
    if node.lost.files > 0 {
        out.push_str(&format!(
            "  LOST       {} files ({}) could not be stored; see weir lost list\n",
            node.lost.files,
            Size(node.lost.bytes),
        ));
    }
    if let Some(address) = node.metrics {
        out.push_str(&format!("  metrics    http://{address}/metrics\n"));
    }
    out
}

fn staleness(ms: u64) -> String {
    // What `indefinite` is.
    if Duration::from_millis(ms) >= MetadataTtl::Indefinite.duration() {
        return "changes by others are not seen".to_owned();
    }
    format!("a change by others is seen after {} at the latest", seconds(ms))
}

/// A time in seconds, as people read it.
fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn describe_mount(mount: &MountStatus) -> String {
    let session = &mount.session;
    let mut out = format!("{} on {}\n", shown(&mount.source), shown(mount.mountpoint.display()));
    out.push_str(&format!(
        "  origin     {}\n  reads      {}\n  open       {} handles, {} inodes known\n  \
         stale      {}\n",
        if session.origin_up { "answers" } else { "does not answer; showing what is remembered" },
        if session.passthrough { "by the kernel once cached" } else { "through the daemon" },
        session.open_handles,
        session.inodes,
        staleness(session.staleness_ms),
    ));
    for key in &session.writing {
        out.push_str(&format!("  writing    {}\n", shown(key)));
    }
    out
}

mod egress;
#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What is read of somebody who says the same again and again.
    fn read_of(text: &'static [u8], every: Duration, patience: Duration) -> io::Result<Vec<u8>> {
        let (mut mine, mut theirs) = UnixStream::pair()?;
        let says = std::thread::spawn(move || {
            let mut said = 0;
            while theirs.write_all(text).is_ok() {
                said += text.len();
                std::thread::sleep(every);
            }
            said
        });
        let heard = read(&mut mine, Instant::now() + patience);
        drop(mine);
        // What is in the socket's buffers was not read.
        assert!(says.join().unwrap() < ANSWER_MAX + (4 << 20));
        heard
    }

    #[test]
    fn who_speaks_without_end_is_not_listened_to_without_end() {
        let (hour, never) = (Duration::from_secs(3600), Duration::ZERO);
        assert!(read_of(&[b'x'; 1 << 20], never, hour).is_err());
        // Each byte in time, and yet too late.
        let (often, soon) = (Duration::from_millis(20), Duration::from_millis(300));
        assert!(read_of(b"x", often, soon).is_err());
    }

    #[test]
    fn a_long_answer_that_ends_is_heard() {
        let (mut mine, mut theirs) = UnixStream::pair().unwrap();
        let text = vec![b'x'; 4 << 20];
        let says = std::thread::spawn(move || theirs.write_all(&text));
        let heard = read(&mut mine, Instant::now() + Duration::from_secs(60)).unwrap();
        says.join().unwrap().unwrap();
        assert_eq!(heard.len(), 4 << 20);
    }
}
