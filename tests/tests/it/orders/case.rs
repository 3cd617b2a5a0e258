//! One order: two operations, the first of which is stopped at one of its requests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::sync::oneshot;
use weir_fuse::blocking::in_place;
use weir_fuse::model::ttl::MetadataTtl;
use weir_fuse::origin::faulty::{self, Fault, Gate};
use weir_fuse::origin::memory::MemoryOrigin;
use weir_tests::mount::cache_dir;
use weir_tests::node::{Node, NodeMount, NodeSettings};
use weir_tests::shell::Number;
use weir_tests::{PATIENCE, eventually, runtime};

use super::acts::{Act, Op, Size, pattern};
use super::model::{self, AWAY, DIR, FILE, MOVED_DIR, OTHER, Outcome, Step, Steps, World};
use super::seen;

/// How long the second operation has before it counts as held. Nothing depends on it but how many
/// orders are seen in which both go on.
const HELD: Duration = Duration::from_millis(40);

/// In which state the file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Created and written; nothing is stored.
    New,
    /// Opened over a version, and written.
    Over,
    /// Stored.
    Stored,
    /// Stored, and changed since.
    Dirty,
    /// Stored, and its name removed.
    Unlinked,
}

impl State {
    pub(super) const ALL: [Self; 5] =
        [Self::New, Self::Over, Self::Stored, Self::Dirty, Self::Unlinked];
}

/// An order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) state: State,
    pub(super) size: Size,
    pub(super) a: Op,
    pub(super) b: Op,
    /// The request of the first operation that is stopped, from 1; 0: it goes to its end first.
    pub(super) stop: usize,
    /// Whether the stop is after the request's effect, before its reply.
    pub(super) late: bool,
}

/// How an order ended.
pub(super) enum Ended {
    /// The first operation sends fewer requests.
    Never,
    /// As it may. `held`: the second one waited for the first.
    Done { held: bool },
}

/// A mount over an origin in memory, for many cases one after another.
pub(super) struct Place {
    node: Node,
    mount: Option<NodeMount>,
    root: PathBuf,
    cases: usize,
    _dirs: (TempDir, TempDir),
}

impl Place {
    pub(super) fn new() -> Self {
        let (cache, dir) = (cache_dir(), tempfile::tempdir().unwrap());
        // Others change the bucket: every name is asked for at each use.
        let settings = NodeSettings { ttl: MetadataTtl::Minimal, ..NodeSettings::default() };
        let node = Node::new(cache.path(), Arc::new(MemoryOrigin::new("bucket")), settings);
        let root = dir.path().join("mnt");
        let mount = Some(node.mount(&root));
        Self { node, mount, root, cases: 0, _dirs: (cache, dir) }
    }

    pub(super) fn close(mut self) {
        drop(self.mount.take());
        self.node.close();
    }

    /// What is below a case's own directory, but for the markers of directories.
    fn objects(&self, case: &str) -> BTreeMap<String, Bytes> {
        let all = self.node.memory.objects().into_iter();
        let below = all.filter_map(|(key, bytes)| Some((key.strip_prefix(case)?.into(), bytes)));
        below.filter(|(key, _): &(String, Bytes)| !key.is_empty() && !key.ends_with('/')).collect()
    }

    /// Whether nothing is being written or worked off; empty records are there for files to come.
    fn staging_is_empty(&self) -> bool {
        let dir = in_place(|may| self.node.engine.cache.stats(may)).disks[0].dir.join("staging");
        let mut entries = fs::read_dir(dir).unwrap().flatten();
        entries.all(|entry| {
            entry.path().extension().is_some_and(|of| of == "record")
                && entry.metadata().is_ok_and(|metadata| metadata.len() == 0)
        })
    }

    fn take_lost(&self) -> Vec<Bytes> {
        let rows = in_place(|may| self.node.engine.cache.lost(may)).into_iter();
        let take = |row: weir_fuse::cache::LostRow| {
            let bytes = fs::read(&row.path).unwrap();
            fs::remove_file(&row.path).unwrap();
            let _ = fs::remove_file(row.path.with_extension("json"));
            bytes.into()
        };
        rows.map(take).collect()
    }
}

/// An operation in a thread of its own.
struct Running(oneshot::Receiver<Outcome>);

impl Running {
    fn start(work: impl FnOnce() -> Outcome + Send + 'static) -> Self {
        let (tell, told) = oneshot::channel();
        std::thread::spawn(move || tell.send(work()));
        Self(told)
    }

    /// Its end, if it comes before `patience` is over or `unless` happens.
    fn end(
        &mut self,
        patience: Duration,
        unless: impl Future<Output = ()>,
    ) -> Result<Option<Outcome>, String> {
        runtime().block_on(async {
            tokio::select! {
                biased;
                ended = &mut self.0 => ended.map(Some).map_err(|_| "it panicked".into()),
                () = unless => Ok(None),
                () = tokio::time::sleep(patience) => Ok(None),
            }
        })
    }

    fn join(mut self, what: &str) -> Result<Outcome, String> {
        let ended = self.end(PATIENCE, std::future::pending())?;
        ended.ok_or_else(|| format!("{what} never comes back"))
    }
}

/// What the file is, and where.
struct Stage {
    /// Key prefix of the case.
    case: String,
    root: PathBuf,
    file: Number,
    world: World,
}

impl Case {
    fn act(&self, op: Op, tag: u8) -> Act {
        Act { op, size: self.size, node: 0, tag }
    }

    /// Takes the order.
    pub(super) fn run(self, place: &mut Place) -> Result<Ended, String> {
        place.cases += 1;
        let mut stage = self.stage(place)?;
        let (act_a, act_b) = (self.act(self.a, 33), self.act(self.b, 65));
        let gate = Gate::new();
        if self.stop > 0 {
            let stall = if self.late { Fault::StallReply } else { Fault::Stall };
            place.node.faulty.inject_nth(faulty::Op::Any, self.stop, stall(gate.clone()));
        }
        let mut a = stage.start(&act_a, place);
        let unless = async {
            match self.stop {
                0 => std::future::pending().await,
                _ => gate.reached().await,
            }
        };
        let early = a.end(PATIENCE, unless)?;
        let never = early.is_some() && self.stop > 0;
        place.node.faulty.forget_faults();
        let (mut held, mut ends) = (false, None);
        if !never {
            let mut b = stage.start(&act_b, place);
            let rb = b.end(HELD, std::future::pending())?;
            held = rb.is_none();
            gate.open();
            let rb = rb.map_or_else(|| b.join("the second"), Ok)?;
            ends = Some((early.map_or_else(|| a.join("the first"), Ok)?, rb));
        }
        let is_closed = self.a == Op::Finish || (self.b == Op::Finish && !never);
        let last = if is_closed { Ok(()) } else { errno(stage.file.close()) };
        eventually("all is worked off", || place.staging_is_empty());
        let lost = place.take_lost();
        let Some((ra, rb)) = ends else { return Ok(Ended::Never) };
        let bucket = place.objects(&stage.case);
        let (steps_a, steps_b) = (steps(&act_a), steps(&act_b));
        let mut allowed = match self.stop {
            0 => one_after_the_other(&stage.world, &steps_a, &steps_b),
            _ => model::ends(&stage.world, &steps_a, &steps_b),
        };
        for (world, a, b) in &mut allowed {
            repeat(world, &act_a, a);
            repeat(world, &act_b, b);
        }
        let fits = |(world, a, b): &mut model::End| {
            let closed = if is_closed { Ok(()) } else { model::all(world, &steps(&CLOSE)) };
            let _ = (world.step(0, &Step::Finish), world.step(0, &Step::End));
            let same = seen::fits(world, &bucket, &lost, self.is_alone(), false);
            same && (*a, *b, closed) == (ra, rb, last)
        };
        let loose = self.are_renames_apart() && seen::is_whole(&stage.world, &bucket);
        if !loose && !allowed.iter_mut().any(fits) {
            let told =
                |(world, a, b): &model::End| seen::told(&world.bucket, &world.lost, (Some(*a), *b));
            let ends: Vec<_> = allowed.iter().map(told).collect();
            return Err(format!(
                "held {held}, seen is\n  {} close {last:?}\nallowed is\n  {}",
                seen::told(&bucket, &lost, (Some(ra), rb)),
                ends.join("\n  ")
            ));
        }
        stage.check_view(&bucket)?;
        stage.check_use(place)?;
        stage.world.files.clear();
        Ok(Ended::Done { held })
    }

    /// Whether nobody but one process had to do with the file.
    fn is_alone(&self) -> bool {
        ![self.a, self.b].iter().any(|op| matches!(op, Op::Replace | Op::Delete))
    }

    /// Whether both are renames of files that are not under change.
    fn are_renames_apart(&self) -> bool {
        let renames = |op| matches!(op, Op::Away | Op::Over | Op::Dir);
        self.state == State::Unlinked && renames(self.a) && renames(self.b)
    }

    fn stage(&self, place: &Place) -> Result<Stage, String> {
        let (case, size) = (format!("c{}/", place.cases), self.size.bytes());
        let (memory, root) = (&place.node.memory, place.root.join(&case));
        memory.insert(&format!("{case}{OTHER}"), pattern(9, size));
        memory.insert(&format!("{case}e/there"), "so that the directory is");
        if self.state == State::Over {
            memory.insert(&format!("{case}{FILE}"), pattern(17, size));
        }
        let mut world = World {
            bucket: place.objects(&case),
            files: Vec::new(),
            lost: Vec::new(),
            history: Vec::new(),
        };
        let failed = |error: io::Error| format!("on its way to {:?}: {error}", self.state);
        let bytes = pattern(1, size);
        let file = Number::of(File::create(root.join(FILE)).map_err(failed)?);
        file.write_at(&bytes, 0).map_err(failed)?;
        world.files.push(model::File::new(bytes.clone(), world.bucket.get(FILE).cloned()));
        world.history.push(bytes);
        let step = |world: &mut World, step: &Step| world.step(0, step).map_err(io::Error::from);
        if matches!(self.state, State::Stored | State::Dirty | State::Unlinked) {
            file.sync().map_err(failed)?;
            step(&mut world, &Step::Commit { tells: true }).map_err(failed)?;
        }
        if self.state == State::Dirty {
            let data = pattern(2, 50);
            file.write_at(&data, 5).map_err(failed)?;
            step(&mut world, &Step::Write { offset: 5, data }).map_err(failed)?;
        }
        if self.state == State::Unlinked {
            fs::remove_file(root.join(FILE)).map_err(failed)?;
            step(&mut world, &Step::Unlink).map_err(failed)?;
        }
        Ok(Stage { case, root, file, world })
    }
}

/// A close, as far as its answer goes; what the release does then is not told to anybody.
const CLOSE: Act = Act { op: Op::Finish, size: Size::OnePut, node: 0, tag: 0 };

fn steps(act: &Act) -> Steps {
    match act.op {
        Op::Finish => {
            let steps = vec![Step::Begin, Step::Commit { tells: true }];
            Steps { node: act.node, steps, gated: true }
        }
        _ => act.steps(false),
    }
}

/// The kernel repeats once what it asks for by a path and is told ESTALE: names then lead to what
/// is there.
fn repeat(world: &mut World, act: &Act, ended: &mut Outcome) {
    let by_name = matches!(act.op, Op::Unlink | Op::Away | Op::Over | Op::Dir);
    if by_name && *ended == Err(Errno::STALE) {
        *ended = model::all(world, &steps(act));
    }
}

fn one_after_the_other(world: &World, a: &Steps, b: &Steps) -> Vec<model::End> {
    let mut world = world.clone();
    let ra = model::all(&mut world, a);
    let rb = model::all(&mut world, b);
    vec![(world, ra, rb)]
}

fn errno(done: io::Result<()>) -> Outcome {
    let of = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    done.map_err(of)
}

impl Stage {
    fn start(&self, act: &Act, place: &Place) -> Running {
        let (act, root, file, case) = (*act, self.root.clone(), self.file, self.case.clone());
        let memory = place.node.memory.clone();
        Running::start(move || errno(by_call(&act, &root, file, &memory, &case)))
    }

    /// The mount shows what is in the bucket.
    fn check_view(&self, bucket: &BTreeMap<String, Bytes>) -> Result<(), String> {
        for key in bucket.keys().map(String::as_str).chain([FILE, AWAY]) {
            let shown = match fs::read(self.root.join(key)) {
                Ok(bytes) => Some(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(format!("{key} is not shown: {error}")),
            };
            if shown.as_deref() != bucket.get(key).map(|bytes| &bytes[..]) {
                return Err(format!("{key} is shown with {:?} bytes", shown.map(|b| b.len())));
            }
        }
        Ok(())
    }

    /// The name can be written anew.
    fn check_use(&self, place: &Place) -> Result<(), String> {
        let bytes = pattern(200, 100);
        let written = fs::create_dir_all(self.root.join("d"))
            .and_then(|()| fs::write(self.root.join(FILE), &bytes));
        written.map_err(|error| format!("the name is of no use any more: {error}"))?;
        match place.node.memory.bytes(&format!("{}{FILE}", self.case)) {
            Some(stored) if stored == bytes => Ok(()),
            stored => Err(format!("written anew, stored are {:?} bytes", stored.map(|b| b.len()))),
        }
    }
}

/// The operation as calls of a process, or as what others do.
fn by_call(
    act: &Act,
    root: &Path,
    file: Number,
    memory: &MemoryOrigin,
    case: &str,
) -> io::Result<()> {
    let below = |name: &str| root.join(name.trim_end_matches('/'));
    match act.op {
        Op::Write => act.written().into_iter().try_for_each(|(at, data)| file.write_at(&data, at)),
        Op::Shrink => file.resize(act.size.bytes() / 2),
        Op::Grow => file.resize(act.size.larger()),
        Op::Fsync => file.sync(),
        Op::Finish => file.close(),
        Op::Unlink => fs::remove_file(below(FILE)),
        Op::Away => fs::rename(below(FILE), below(AWAY)),
        Op::Over => fs::rename(below(OTHER), below(FILE)),
        Op::Dir => fs::rename(below(DIR), below(MOVED_DIR)),
        Op::Replace => {
            memory.insert(&format!("{case}{FILE}"), act.replacement());
            Ok(())
        }
        Op::Delete => {
            memory.remove(&format!("{case}{FILE}"));
            Ok(())
        }
        Op::Kill => Err(Errno::NOSYS.into()),
    }
}
