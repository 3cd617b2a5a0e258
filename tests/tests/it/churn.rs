//! Pods that come and go at random on a node whose plugin and mounter are killed meanwhile: each
//! reads its own bytes, and in the end nothing is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use weir_fuse::blocking::MayBlock;
use weir_node::mounter::client::Mounter;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::eventually;

/// How long it goes on in seconds, unless `WEIR_CHURN_SECONDS` says so.
const SECONDS: u64 = 40;
const VOLUMES: u64 = 300;
const PODS: u64 = 110;
/// Who asks as kubelet would: that many volumes at once.
const WORKERS: u64 = 8;
/// When a call is repeated that was refused.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long both processes live between two ends.
const LIFE_MS: std::ops::Range<u64> = 500..3000;

/// A node that is in use while it is restarted.
struct Scene {
    node: CsiNode,
    bucket: Bucket,
    is_over: AtomicBool,
    shown: AtomicUsize,
    refused: AtomicUsize,
    reopened: AtomicUsize,
}

impl Scene {
    fn volume(&self, number: u64, pod: &str) -> TestVolume {
        let volume = TestVolume::new(&self.bucket, pod).attribute("prefix", &format!("v{number}/"));
        TestVolume { id: format!("v{number}"), ..volume }
    }

    /// Has a pod of this worker come or go, at random, again and again. Leaves those that are there.
    fn work(&self, worker: u64, seed: u64) -> BTreeMap<String, u64> {
        let mut random = StdRng::seed_from_u64(seed + worker);
        let mut pods = BTreeMap::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let pod = format!("pod{}", random.random_range(0..PODS / WORKERS) * WORKERS + worker);
            match pods.get(&pod).copied() {
                None => {
                    let number = random.random_range(0..VOLUMES);
                    let volume = self.volume(number, &pod);
                    match self.node.publish(&volume) {
                        Ok(target) => self.look(&target, number),
                        // Kubelet takes away what may be half done.
                        Err(_) => self.refuse(),
                    }
                    pods.insert(pod, number);
                }
                Some(number) => {
                    let volume = self.volume(number, &pod);
                    // Kubelet asks for all volumes again, whenever it likes.
                    if random.random_bool(0.5)
                        && let Ok(target) = self.node.publish(&volume)
                    {
                        self.look(&target, number);
                    }
                    match self.node.unpublish(&volume) {
                        Ok(()) => {
                            assert!(!self.node.target(&pod).exists(), "{pod} is left");
                            pods.remove(&pod);
                        }
                        Err(_) => self.refuse(),
                    }
                }
            }
        }
        pods
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(AGAIN_AFTER);
    }

    /// Reads what a pod is shown. What was opened at a plugin that is killed must be opened again.
    fn look(&self, target: &Path, number: u64) {
        let reopened = |error: &io::Error| {
            error.raw_os_error() == Some(Errno::BADF.raw_os_error()) && {
                self.reopened.fetch_add(1, Ordering::Relaxed) < usize::MAX
            }
        };
        let read = loop {
            match fs::read_to_string(target.join("id")) {
                Err(error) if reopened(&error) => {}
                read => break read,
            }
        };
        assert_eq!(read.unwrap(), format!("bytes of {number}"), "{target:?}");
        self.shown.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends one of the two processes, in one way or another, and starts it again.
    fn strike(&self, random: &mut StdRng) -> &'static str {
        let node = &self.node;
        let backs = || node.logs().matches("the mounter is back").count();
        match random.random_range(0..3) {
            0 => {
                node.take_node().kill();
                node.start_node();
                "node killed"
            }
            1 => {
                node.take_node().terminate();
                node.start_node();
                "node ended"
            }
            _ => {
                let before = backs();
                node.take_mounter().kill();
                node.start_mounter();
                // Who ends the other one before that takes all connections away.
                eventually("the mounter knows of all sessions", || backs() > before);
                "mounter killed"
            }
        }
    }
}

#[test]
fn pods_come_and_go_while_node_and_mounter_are_killed() {
    let seconds = std::env::var("WEIR_CHURN_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let seed: u64 = rand::random();
    let bucket = Bucket::new(Server::Minio);
    for number in 0..VOLUMES {
        bucket.put(&format!("v{number}/id"), format!("bytes of {number}"));
    }
    let scene = Scene {
        node: CsiNode::new(&bucket),
        bucket,
        is_over: AtomicBool::new(false),
        shown: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        reopened: AtomicUsize::new(0),
    };
    let mut random = StdRng::seed_from_u64(seed);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut struck = BTreeMap::<&str, usize>::new();
    let left = std::thread::scope(|scope| {
        let scene = &scene;
        let worker = |worker| scope.spawn(move || scene.work(worker, seed));
        let workers: Vec<_> = (0..WORKERS).map(worker).collect();
        // Processes live as long as the thread that has started them: this one.
        while Instant::now() < until && !workers.iter().any(|worker| worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(random.random_range(LIFE_MS)));
            *struck.entry(scene.strike(&mut random)).or_default() += 1;
        }
        scene.is_over.store(true, Ordering::Relaxed);
        let joined = workers.into_iter().map(|worker| worker.join());
        let pods: Result<Vec<_>, _> = joined.collect();
        pods.unwrap_or_else(|_| panic!("a pod met something else; seed {seed}, {struck:?}"))
    });
    let seen = [scene.shown, scene.refused, scene.reopened].map(AtomicUsize::into_inner);
    let [shown, refused, reopened] = seen;
    println!("seed {seed}: {struck:?}, {shown} read, {refused} refused, {reopened} opened again");
    assert!(shown > 0, "nothing was shown");
    let node = scene.node;
    let volume = |number, pod: &str| {
        let volume = TestVolume::new(&scene.bucket, pod);
        TestVolume { id: format!("v{number}"), ..volume }
    };
    for (pod, number) in left.into_iter().flatten() {
        node.unpublish(&volume(number, &pod)).unwrap();
    }
    assert_eq!(node.mounts(), Vec::<PathBuf>::new(), "seed {seed}");
    let mounter = Mounter::new(&node.join("mounter.sock"), "who looks".into());
    let kept = mounter.sessions(&MayBlock::own_thread()).unwrap();
    assert_eq!(kept, Vec::<String>::new(), "seed {seed}");
    let folders = fs::read_dir(node.join("sessions")).unwrap().count();
    assert_eq!(folders, 0, "seed {seed}");
}
