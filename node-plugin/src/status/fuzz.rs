use std::path::PathBuf;

use weir_fuse::feed::hearing::FeedStatus;
use weir_fuzz::near;

use super::*;
use crate::admin::{Counters, RegionStatus};
use crate::lost::folder::LostTotal;

fn node() -> NodeStatus {
    let counters = Counters {
        cache_hits: 5,
        cache_misses: 2,
        saved_bytes: 1 << 30,
        fetched_bytes: 1 << 20,
        origin_bytes: 1 << 10,
        region_bytes: 1 << 20,
        stored_bytes: 0,
        uploads_in_flight: 1,
        memory_used: 1 << 20,
        memory_target: 128 << 20,
    };
    let session = weir_fuse::engine::status::SessionStatus {
        prefix: "models/".into(),
        open_handles: 3,
        inodes: 7,
        writing: vec!["models/a".into(), "models/b\u{1b}[2J\nhits 100 %".into()],
        passthrough: true,
        origin_up: false,
        staleness_ms: 6250,
    };
    let mountpoint = PathBuf::from("/mnt");
    let mounts = vec![MountStatus { source: "s3://assets/models/".into(), mountpoint, session }];
    let disk = weir_fuse::cache::DiskStats {
        dir: "/var/cache/weir".into(),
        used_bytes: 5 << 30,
        staging_bytes: 0,
        max_bytes: 1 << 40,
        free_bytes: 1 << 39,
        versions: 3,
        problem: Some("it is full".into()),
        lost_bytes: 5,
    };
    NodeStatus {
        pid: 7,
        version: "0.1.0".into(),
        metrics: "127.0.0.1:9090".parse().ok(),
        mounts,
        cache: weir_fuse::cache::CacheStats { used_bytes: 5 << 30, versions: 3, disks: vec![disk] },
        counters,
        lost: LostTotal { files: 1, bytes: 5 },
        region: Some(RegionStatus { url: "http://ais:51080".into(), is_shut: true }),
        feed: Some(FeedStatus {
            servers: vec!["nats://feed:4222".into()],
            lives: true,
            heard_ms_ago: Some(700),
        }),
    }
}

/// Keys and folders hold what somebody chose; a process of another release answers, too.
#[test]
fn what_any_process_answers_is_shown_in_lines_that_a_terminal_shows_as_they_are() {
    near(&[serde_json::to_vec(&node()).unwrap()], |text| {
        let Ok(node) = serde_json::from_slice::<NodeStatus>(text) else { return };
        let shown = describe(&node);
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        let of_mounts: usize = node.mounts.iter().map(|m| 5 + m.session.writing.len()).sum();
        assert!(shown.lines().count() <= of_mounts + 3 * node.cache.disks.len() + 9, "{shown}");
    });
}
