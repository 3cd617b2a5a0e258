//! Walks the table of phases and operations: it says what it is to say, and what happens to a
//! real file agrees.

use std::sync::Arc;

use rustix::io::Errno;

use super::lab::{Bucket, Lab, Node};
use super::poll::{Hand, Polled, drive};
use crate::blocking::MAY;
use crate::model::blocks::BLOCK;
use crate::origin::faulty::Op;
use crate::write::WriteError;
use crate::write::draft::{Draft, Operation, Outcome, Phase, Refusal};
use crate::write::rename::Place;

/// More than a part.
const SIZE: usize = BLOCK as usize + 10;

/// The table once more, as text: a cell is changed here and there, or not at all.
/// a: carried out; n: nothing to do; w: waits for the gate; s: the origin is asked first;
/// S, N, E: refused as superseded, nameless, ended.
const TABLE: &str = "
    phase       write truncate commit finish unlink move resume
    Writing       a      a       a      a      a     a     a
    Committing    a      a       w      w      w     w     a
    InDoubt       a      a       s      s      s     s     a
    Stored        a      a       n      a      a     a     n
    Unlinked      a      a       n      a      N     N     n
    Superseded    S      S       S      a      S     S     a
    Sealed        E      E       n      n      a     a     n
";

fn cells() -> Vec<(Phase, Operation, Outcome)> {
    let mut cells = Vec::new();
    let lines = TABLE.lines().filter(|line| !line.trim().is_empty()).skip(1);
    for (line, phase) in lines.zip(Phase::ALL) {
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some(&*format!("{phase:?}")));
        for (word, operation) in words.zip(Operation::ALL) {
            cells.push((phase, operation, outcome_of(word)));
        }
    }
    assert_eq!(cells.len(), Phase::ALL.len() * Operation::ALL.len());
    cells
}

fn outcome_of(word: &str) -> Outcome {
    match word {
        "a" => Outcome::Apply,
        "n" => Outcome::Nothing,
        "w" => Outcome::Wait,
        "s" => Outcome::Settle,
        "S" => Outcome::Refuse(Refusal::Superseded),
        "N" => Outcome::Refuse(Refusal::Nameless),
        "E" => Outcome::Refuse(Refusal::Ended),
        other => panic!("no outcome is written {other:?}"),
    }
}

/// A file `d/f` in some phase.
struct Bench<'a> {
    lab: &'a Lab,
    bucket: Bucket,
    node: Node,
    draft: Arc<Draft>,
    /// Whoever has the gate.
    holder: Option<Hand<Result<(), WriteError>>>,
}

/// A future of the writer, with all that it needs.
macro_rules! of_writer {
    ($bench:expr, |$writer:ident, $draft:ident| $work:expr) => {{
        let ($writer, $draft) = ($bench.node.writer.clone(), $bench.draft.clone());
        async move { $work }
    }};
}

impl<'a> Bench<'a> {
    fn new(lab: &'a Lab, phase: Phase) -> Self {
        let bucket = lab.bucket();
        bucket.memory.insert("d/o", "other");
        let node = lab.node(&bucket);
        let draft = node.open(&node.dir("d").unwrap(), "f").unwrap();
        draft.write(MAY, 0, &vec![1; SIZE]).unwrap();
        let mut bench = Self { lab, bucket, node, draft, holder: None };
        bench.bring(phase);
        assert_eq!(bench.draft.phase(), phase);
        bench.bucket.stepped.begun();
        bench
    }

    fn bring(&mut self, phase: Phase) {
        match phase {
            Phase::Writing => {}
            Phase::Committing | Phase::InDoubt => {
                let mut holder = Hand::new(self.commit());
                while self.draft.phase() != phase {
                    assert_eq!(holder.poll(), Polled::Stepped);
                }
                // In doubt with the gate free: whoever sent it was dropped.
                self.holder = (phase == Phase::Committing).then_some(holder);
            }
            Phase::Stored => drive(self.commit()).unwrap(),
            Phase::Unlinked => {
                drive(self.commit()).unwrap();
                drive(self.unlink()).unwrap();
            }
            Phase::Superseded => {
                self.bucket.memory.insert("d/f", "of somebody else");
                drive(self.commit()).unwrap_err();
            }
            Phase::Sealed => drive(self.finish()).unwrap(),
        }
    }

    fn commit(&self) -> impl Future<Output = Result<(), WriteError>> + use<> {
        of_writer!(self, |writer, draft| writer.commit(&draft).await)
    }

    fn finish(&self) -> impl Future<Output = Result<(), WriteError>> + use<> {
        of_writer!(self, |writer, draft| {
            writer.finish(&draft).await;
            Ok(())
        })
    }

    fn unlink(&self) -> impl Future<Output = Result<(), WriteError>> + use<> {
        let dir = self.draft.node.place().0;
        of_writer!(self, |writer, _draft| writer.unlink(&dir, "f").await)
    }

    fn rename(&self) -> impl Future<Output = Result<(), WriteError>> + use<> {
        let dir = self.draft.node.place().0;
        of_writer!(self, |writer, _draft| {
            let (from, to) = (Place { dir: &dir, name: "f" }, Place { dir: &dir, name: "g" });
            writer.rename(from, to, false).await
        })
    }

    /// The operation. Names that do not lead to the file are no matter of its table: there it is
    /// what an operation by name does once it has found the file.
    fn operation(&self, operation: Operation) -> Hand<Result<(), WriteError>> {
        match operation {
            Operation::Write => {
                let done = self.draft.write(MAY, 3, b"xyz").map(|_| ());
                Hand::new(std::future::ready(done))
            }
            Operation::Truncate => Hand::new(std::future::ready(self.draft.truncate(MAY, 5))),
            Operation::Commit => Hand::new(self.commit()),
            Operation::Finish => Hand::new(self.finish()),
            Operation::Unlink | Operation::Move if !self.is_named() => {
                Hand::new(of_writer!(self, |writer, draft| {
                    writer.held(Some(&draft), operation).await.map(|_| ())
                }))
            }
            Operation::Unlink => Hand::new(self.unlink()),
            Operation::Move => Hand::new(self.rename()),
            Operation::Resume => unreachable!("that is for another process"),
        }
    }

    fn is_named(&self) -> bool {
        !matches!(self.draft.phase(), Phase::Unlinked | Phase::Superseded)
    }

    /// What the operation came to.
    fn outcome(&mut self, operation: Operation) -> Outcome {
        let before = (self.draft.phase(), self.draft.generation());
        let mut hand = self.operation(operation);
        let mut how = hand.poll();
        while how == Polled::Stepped {
            how = hand.poll();
        }
        if how == Polled::Waits {
            let mut holder = self.holder.take().expect("nobody else has the gate");
            hand.run(Some(&mut holder));
            hand.output().unwrap();
            self.check_effect(operation);
            return Outcome::Wait;
        }
        match hand.output().map_err(|error| error.errno()) {
            Err(Errno::STALE) => Outcome::Refuse(Refusal::Superseded),
            Err(Errno::NOENT) => Outcome::Refuse(Refusal::Nameless),
            Err(Errno::IO) => Outcome::Refuse(Refusal::Ended),
            Err(other) => panic!("{other:?}"),
            Ok(()) => self.success(operation, before),
        }
    }

    fn success(&self, operation: Operation, before: (Phase, u64)) -> Outcome {
        let begun = self.bucket.stepped.begun();
        let changed = (self.draft.phase(), self.draft.generation()) != before;
        if begun.is_empty() && !changed {
            return Outcome::Nothing;
        }
        self.check_effect(operation);
        // What was sealed is asked for to find its name.
        let asked = begun.iter().any(|(op, key)| *op == Op::Head && key == "d/f");
        match asked && before.0 != Phase::Sealed {
            true => Outcome::Settle,
            false => Outcome::Apply,
        }
    }

    fn check_effect(&self, operation: Operation) {
        let stored = |key| self.bucket.memory.bytes(key).map(|bytes| bytes.len());
        match operation {
            Operation::Write => assert_eq!(self.draft.read(MAY, 3, 3).unwrap(), b"xyz"),
            Operation::Truncate => assert_eq!(self.draft.size(), 5),
            Operation::Commit => assert_eq!(stored("d/f"), Some(SIZE)),
            Operation::Finish => assert_eq!(self.draft.phase(), Phase::Sealed),
            Operation::Unlink => assert_eq!(stored("d/f"), None),
            Operation::Move => assert_eq!((stored("d/f"), stored("d/g")), (None, Some(SIZE))),
            Operation::Resume => {}
        }
    }

    /// What a later process makes of it.
    fn resume(self) -> Outcome {
        let Self { lab, bucket, node, draft, holder } = self;
        let path = draft.path().to_owned();
        let leftovers = lab.kill(Some(&path), true, move || drop((node, draft, holder)));
        lab.node(&bucket).work_off(leftovers);
        assert!(lab.staged().is_empty(), "{:?}", lab.staged().keys());
        assert_eq!(bucket.memory.open_uploads(), 0);
        match &lab.take_lost()[..] {
            [] => Outcome::Nothing,
            [bytes] if *bytes == vec![1; SIZE] => Outcome::Apply,
            other => panic!("{} files are kept", other.len()),
        }
    }

    fn end(self) {
        drop(self.holder);
        let (writer, draft) = (self.node.writer, self.draft);
        drive(async move { writer.finish(&draft).await });
        self.lab.take_lost();
        assert!(self.lab.staged().is_empty());
    }
}

#[test]
fn every_cell_of_the_table_is_what_happens() {
    let lab = Lab::new();
    let _runtime = lab.enter();
    for (phase, operation, expected) in cells() {
        let cell = format!("{operation:?} while {phase:?}");
        assert_eq!(phase.outcome(operation), expected, "{cell}: the table has another");
        let mut bench = Bench::new(&lab, phase);
        let seen = match operation {
            Operation::Resume => bench.resume(),
            _ => {
                let seen = bench.outcome(operation);
                bench.end();
                seen
            }
        };
        assert_eq!(seen, expected, "{cell}: something else happens");
    }
}
