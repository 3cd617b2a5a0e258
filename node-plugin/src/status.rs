//! `weir status`.

use std::fmt::Display;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::admin::{self, MountStatus, NodeStatus};
use crate::cli::{Output, StatusArgs};
use crate::config::size::Size;
use crate::exit::{Failure, Kind};

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// When the answer cannot be printed.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let nodes: Vec<NodeStatus> = all().into_iter().map(|(_, node)| node).collect();
    match args.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(&nodes)
                .map_err(|e| Failure::new(Kind::Other, e.to_string()))?;
            println!("{text}");
        }
        Output::Text if nodes.is_empty() => println!("nothing is mounted"),
        Output::Text => nodes.iter().for_each(|node| print!("{}", describe(node))),
    }
    Ok(())
}

/// Every process that answers, with its socket.
pub fn all() -> Vec<(PathBuf, NodeStatus)> {
    all_in(&admin::run_dir())
}

/// Every process whose socket is in `dir`.
pub fn all_in(dir: &Path) -> Vec<(PathBuf, NodeStatus)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let sockets = entries.flatten().map(|entry| entry.path());
    let sockets = sockets.filter(|path| path.extension().is_some_and(|ext| ext == "sock"));
    sockets.filter_map(|path| ask(&path).map(|node| (path, node))).collect()
}

/// Asks one process. A socket that nobody listens to is removed.
fn ask(path: &PathBuf) -> Option<NodeStatus> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            if error.kind() == std::io::ErrorKind::ConnectionRefused {
                let _ = std::fs::remove_file(path);
            }
            return None;
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
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

fn describe(node: &NodeStatus) -> String {
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
         saved      {} found in the cache, {} fetched, {} stored\n  \
         uploads    {} in flight\n  memory     {} of {}\n  process    {} (weir {})\n",
        Size(counters.saved_bytes),
        Size(counters.fetched_bytes),
        Size(counters.stored_bytes),
        counters.uploads_in_flight,
        Size(counters.memory_used),
        Size(counters.memory_target),
        node.pid,
        shown(&node.version),
    ));
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

fn describe_mount(mount: &MountStatus) -> String {
    let session = &mount.session;
    let mut out = format!("{} on {}\n", shown(&mount.source), shown(mount.mountpoint.display()));
    out.push_str(&format!(
        "  origin     {}\n  reads      {}\n  open       {} handles, {} inodes known\n",
        if session.origin_up { "answers" } else { "does not answer; showing what is remembered" },
        if session.passthrough { "by the kernel once cached" } else { "through the daemon" },
        session.open_handles,
        session.inodes,
    ));
    for key in &session.writing {
        out.push_str(&format!("  writing    {}\n", shown(key)));
    }
    out
}

#[cfg(test)]
mod fuzz;
