//! One order: two operations, the first of which is stopped somewhere, and what must hold after.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;

use super::acts::{Act, Op, Size, pattern};
use super::lab::{Bucket, Lab, Node};
use super::model::{self, FILE, File, OTHER, Step, World};
use super::poll::{Hand, Polled, drive};
use crate::blocking::MAY;
use crate::origin::OriginError;
use crate::origin::faulty::{self, Fault};
use crate::write::draft::Draft;
use crate::write::{WriteError, Writer};

/// In which state the file is when the first operation begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Created and written; nothing is stored.
    New,
    /// Opened over a version, and written.
    Over,
    /// As new, and parts of it are sent.
    Sent,
    /// Stored.
    Stored,
    /// Stored, and changed since.
    Dirty,
    /// As new, and a commit was refused.
    Failed,
    /// Stored, and its name removed.
    Unlinked,
}

impl State {
    pub(super) const ALL: [Self; 7] = [
        Self::New,
        Self::Over,
        Self::Sent,
        Self::Stored,
        Self::Dirty,
        Self::Failed,
        Self::Unlinked,
    ];
}

/// An order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) state: State,
    pub(super) size: Size,
    pub(super) a: Op,
    pub(super) b: Op,
    /// Polls of the first operation before the second one begins.
    pub(super) polls: u32,
    /// Whether the first operation goes on afterwards; else it is dropped where it stands.
    pub(super) kept: bool,
    /// Whether the second operation is another node's.
    pub(super) apart: bool,
}

impl Case {
    /// Whether nobody but one process had to do with the file, so that it knows all of it.
    pub(super) fn is_alone(&self) -> bool {
        let of_others = |op| matches!(op, Op::Replace | Op::Delete | Op::Kill);
        self.kept && !self.apart && !of_others(self.a) && !of_others(self.b)
    }

    /// Whether bytes may change while the parts of the same file are sent.
    pub(super) fn may_weave(&self) -> bool {
        let changes = |op| matches!(op, Op::Write | Op::Shrink | Op::Grow);
        self.size == Size::Parts && self.kept && (changes(self.a) || changes(self.b))
    }

    /// Whether both operations are renames that know nothing of each other.
    pub(super) fn are_renames_apart(&self) -> bool {
        let renames = |op| matches!(op, Op::Away | Op::Over | Op::Dir);
        let alone = self.apart || self.state == State::Unlinked;
        self.kept && alone && renames(self.a) && renames(self.b)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.kept { "stopped" } else { "dropped" };
        let whose = if self.apart { " on another node" } else { "" };
        write!(
            f,
            "{:?} {:?}: {:?} {how} after {} polls, ",
            self.size, self.state, self.a, self.polls
        )?;
        write!(f, "then {:?}{whose}", self.b)
    }
}

/// A node with the file open.
pub(super) struct Seat {
    pub(super) node: Node,
    pub(super) draft: Option<Arc<Draft>>,
}

/// Where a case takes place.
pub(super) struct Bench<'a> {
    pub(super) lab: &'a Lab,
    pub(super) case: Case,
    pub(super) bucket: Bucket,
    pub(super) seats: Vec<Seat>,
    pub(super) world: World,
}

/// Tags of what is written by whom.
const FIRST: u8 = 1;
const OTHERS: u8 = 9;
const BEFORE: u8 = 17;
const OF_A: u8 = 33;
const OF_B: u8 = 65;
const SECOND: u8 = 129;
pub(super) const LAST: u8 = 200;

impl Case {
    /// Takes the order. `None`: the first operation is done before so many polls.
    ///
    /// # Panics
    /// Where something is seen that may not be.
    pub(super) fn run(self, lab: &Lab) -> Option<()> {
        let mut bench = Bench::new(lab, self);
        let (act_a, act_b) =
            (bench.act(self.a, 0, OF_A), bench.act(self.b, self.apart.into(), OF_B));
        let mut ended = None;
        if self.a == Op::Kill {
            if self.polls > 0 || !self.kept {
                bench.give_up();
                return None;
            }
            bench.kill(0, None);
            let b = bench.second(&act_b, None);
            ended = Some((Ok(()), b));
        }
        let (ra, rb) = match ended {
            Some(ended) => ended,
            None => {
                let mut a = bench.start(&act_a);
                for _ in 0..self.polls {
                    if a.is_done() {
                        drop(a);
                        bench.give_up();
                        return None;
                    }
                    assert_ne!(a.poll(), Polled::Waits, "the first waits for somebody");
                }
                if self.kept {
                    bench.kept(a, &act_b)
                } else if a.is_done() {
                    bench.give_up();
                    return None;
                } else {
                    drop(a);
                    if self.b != Op::Kill || self.apart {
                        lab.forget_renames();
                    }
                    (Ok(()), bench.second(&act_b, None))
                }
            }
        };
        let killed = self.b == Op::Kill;
        let (steps_a, steps_b) = (act_a.steps(!self.kept || killed), act_b.steps(false));
        // A process that is killed leaves what it had begun as one that is dropped does.
        let goes_on = self.kept && (self.apart || !killed);
        let allowed = match goes_on {
            true => model::ends(&bench.world, &steps_a, &steps_b),
            false => model::ends_dropped(&bench.world, &steps_a, &steps_b),
        };
        // A removal whose end is not known is found to have happened once the name is gone.
        let late = (!self.kept && self.apart && self.a == Op::Unlink).then(|| {
            let mut world = bench.world.clone();
            let b = model::all(&mut world, &steps_b);
            let _ = model::all(&mut world, &steps_a);
            (world, Ok(()), b)
        });
        let allowed = allowed.into_iter().chain(late).collect();
        let whole = self.kept && !killed;
        bench.check(allowed, whole.then_some(ra), rb);
        Some(())
    }
}

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab, case: Case) -> Self {
        let (bucket, size) = (lab.bucket(), case.size);
        bucket.memory.insert(OTHER, pattern(OTHERS, size.bytes()));
        bucket.memory.insert("e/there", "so that the directory is");
        if case.state == State::Over {
            bucket.memory.insert(FILE, pattern(BEFORE, size.bytes()));
        }
        let world = World {
            bucket: bucket.objects(),
            files: Vec::new(),
            lost: Vec::new(),
            history: Vec::new(),
        };
        let mut bench = Self { lab, case, bucket, seats: Vec::new(), world };
        bench.sit(FIRST);
        bench.bring();
        if case.apart {
            bench.sit(SECOND);
        }
        bench
    }

    /// Opens and writes the file on one more node.
    fn sit(&mut self, tag: u8) {
        let node = self.lab.node(&self.bucket);
        let draft = node.open(&node.dir("d").unwrap(), "f").unwrap();
        let bytes = pattern(tag, self.case.size.bytes());
        let mut passed = Vec::new();
        for piece in (0..bytes.len()).step_by(100_000) {
            let end = bytes.len().min(piece + 100_000);
            passed.extend(draft.write(MAY, piece as u64, &bytes[piece..end]).unwrap());
        }
        if self.case.state == State::Sent && !passed.is_empty() {
            let (writer, draft) = (node.writer.clone(), draft.clone());
            drive(async move { writer.pass(&draft, passed).await });
            assert_eq!(self.bucket.memory.open_uploads(), self.seats.len() + 1);
        }
        let seen = self.world.bucket.get(FILE).cloned();
        self.world.files.push(File::new(bytes.clone(), seen));
        self.world.history.push(bytes);
        self.seats.push(Seat { node, draft: Some(draft) });
    }

    /// Brings the first node's file into its state.
    fn bring(&mut self) {
        let (commit, size) = (Step::Commit { tells: false }, self.case.size);
        let (writer, draft) = (self.seats[0].node.writer.clone(), self.seats[0].draft.clone());
        let draft = draft.unwrap();
        match self.case.state {
            State::New | State::Over | State::Sent => return,
            State::Failed => {
                let op =
                    if size == Size::OnePut { faulty::Op::Put } else { faulty::Op::UploadPart };
                let refusal = OriginError::Denied("AccessDenied".into());
                self.bucket.faulty.inject_once(op, Fault::Fail(refusal));
                commit_of(&writer, &draft).unwrap_err();
                draft.report(draft.generation());
                self.world.files[0].told = Some(self.world.files[0].bytes.clone());
                return;
            }
            State::Stored | State::Dirty | State::Unlinked => {}
        }
        commit_of(&writer, &draft).unwrap();
        self.world.step(0, &commit).unwrap();
        if self.case.state == State::Dirty {
            let data = pattern(FIRST + 1, 50);
            draft.write(MAY, 5, &data).unwrap();
            self.world.step(0, &Step::Write { offset: 5, data }).unwrap();
        }
        if self.case.state == State::Unlinked {
            let dir = draft.node.place().0;
            drive(async move { writer.unlink(&dir, "f").await }).unwrap();
            self.world.step(0, &Step::Unlink).unwrap();
        }
    }

    fn act(&self, op: Op, node: usize, tag: u8) -> Act {
        Act { op, size: self.case.size, node, tag }
    }

    fn start(&self, act: &Act) -> Hand<Result<(), WriteError>> {
        let seat = &self.seats[act.node];
        act.start(&self.bucket, &seat.node, seat.draft.as_ref())
    }

    /// The second operation, with the first one kept.
    fn kept(
        &mut self,
        mut a: Hand<Result<(), WriteError>>,
        act_b: &Act,
    ) -> (model::Outcome, model::Outcome) {
        if act_b.op == Op::Kill {
            let same = act_b.node == 0;
            if same {
                self.kill(act_b.node, Some(a));
                return (Ok(()), Ok(()));
            }
            self.kill(act_b.node, None);
            a.run(None::<&mut Hand<()>>);
            return (errno_of(a.output()), Ok(()));
        }
        let b = self.second(act_b, Some(&mut a));
        a.run(None::<&mut Hand<()>>);
        (errno_of(a.output()), b)
    }

    fn second(
        &mut self,
        act: &Act,
        first: Option<&mut Hand<Result<(), WriteError>>>,
    ) -> model::Outcome {
        if act.op == Op::Kill {
            self.kill(act.node, None);
            return Ok(());
        }
        let mut b = self.start(act);
        b.run(first);
        errno_of(b.output())
    }

    fn kill(&mut self, number: usize, under_way: Option<Hand<Result<(), WriteError>>>) {
        let seat = self.seats.remove(number);
        let path = seat.draft.as_ref().map(|draft| draft.path().to_owned());
        // The first operation is of the first node.
        let leftovers = self.lab.kill(path.as_deref(), number == 0, || {
            drop(under_way);
            drop(seat.draft);
            drop(seat.node);
        });
        let node = self.lab.node(&self.bucket);
        node.work_off(leftovers);
        self.seats.insert(number, Seat { node, draft: None });
    }

    /// Ends what an order that is none has begun.
    fn give_up(self) {
        self.finish();
        self.lab.take_lost();
    }

    pub(super) fn finish(&self) {
        for seat in &self.seats {
            if let Some(draft) = &seat.draft {
                let (writer, draft) = (seat.node.writer.clone(), draft.clone());
                drive(async move { writer.finish(&draft).await });
            }
        }
    }
}

fn commit_of(writer: &Arc<Writer>, draft: &Arc<Draft>) -> Result<(), WriteError> {
    let (writer, draft) = (writer.clone(), draft.clone());
    drive(async move { writer.commit(&draft).await })
}

fn errno_of(done: Result<(), WriteError>) -> Result<(), Errno> {
    done.map_err(|error| error.errno())
}
