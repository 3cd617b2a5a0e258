//! Walks the table of what an open meets: it says what it is to say, and what a session without a
//! kernel does agrees, for threads that are seen and for those that are not.

mod bench;
mod rules;

use super::*;
use bench::{Bench, Lab};

/// The table once more, as text: a cell is changed here and there, or not at all. Of each pair
/// the left is for a first attempt, the right for a retry.
/// j: joins, b: a file under change begins, w: waits for the end of the one before, s: ESTALE,
/// n: ESTALE and a new inode, r: as n, and the name is reserved, B: EBUSY, u: EOPNOTSUPP.
const TABLE: &str = "
    name    inode             Read  Update  Append  Truncate
    Own     Blank             s/s   s/s     s/s     s/s
    Own     Closed(Empty)     j/j   b/b     b/b     b/b
    Own     Closed(Small)     j/j   j/j     u/u     b/b
    Own     Closed(Large)     j/j   j/j     u/u     b/b
    Own     Streaming(Empty)  j/j   b/b     b/b     b/b
    Own     Streaming(Small)  j/j   j/j     u/u     b/b
    Own     Streaming(Large)  j/j   j/j     u/u     r/B
    Own     Passable          n/j   j/j     u/u     r/B
    Own     Cached            j/j   r/B     u/u     r/B
    Own     Draft             j/j   j/j     j/j     j/j
    Own     Finishing         j/j   w/w     w/w     w/w
    Own     Sealed(Empty)     j/j   b/b     b/b     b/b
    Own     Sealed(Small)     j/j   j/j     u/u     b/b
    Own     Sealed(Large)     j/j   j/j     u/u     r/B
    Own     Superseded        s/s   s/s     s/s     s/s
    Other   Blank             s/s   s/s     s/s     s/s
    Other   Closed(Empty)     s/j   s/s     s/s     s/s
    Other   Closed(Small)     s/j   s/s     s/s     s/s
    Other   Closed(Large)     s/j   s/s     s/s     s/s
    Other   Streaming(Empty)  s/j   s/s     s/s     s/s
    Other   Streaming(Small)  s/j   s/s     s/s     s/s
    Other   Streaming(Large)  s/j   s/s     s/s     s/s
    Other   Passable          s/j   s/s     s/s     s/s
    Other   Cached            s/j   s/s     s/s     s/s
    Other   Draft             s/j   s/s     s/s     s/s
    Other   Finishing         s/j   s/s     s/s     s/s
    Other   Sealed(Empty)     s/j   s/s     s/s     s/s
    Other   Sealed(Small)     s/j   s/s     s/s     s/s
    Other   Sealed(Large)     s/j   s/s     s/s     s/s
    Other   Superseded        s/s   s/s     s/s     s/s
";

const REQUESTS: [Request; 4] = [Request::Read, Request::Update, Request::Append, Request::Truncate];

struct Cell {
    meets: (Name, Inode),
    request: Request,
    attempt: Attempt,
    expected: Admission,
}

fn inodes() -> Vec<Inode> {
    let sized = |of: fn(Size) -> Inode| [Size::Empty, Size::Small, Size::Large].map(of);
    let mut all = vec![Inode::Blank];
    all.extend(sized(Inode::Closed));
    all.extend(sized(Inode::Streaming));
    all.extend([Inode::Passable, Inode::Cached, Inode::Draft, Inode::Finishing]);
    all.extend(sized(Inode::Sealed));
    all.push(Inode::Superseded);
    all
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut lines = TABLE.lines().filter(|line| !line.trim().is_empty()).skip(1);
    for name in [Name::Own, Name::Other] {
        for inode in inodes() {
            let mut words = lines.next().expect("a line for each").split_whitespace();
            assert_eq!(words.next(), Some(&*format!("{name:?}")));
            assert_eq!(words.next(), Some(&*format!("{inode:?}")));
            for (request, pair) in REQUESTS.into_iter().zip(words) {
                let (first, retry) = pair.split_once('/').expect("a pair");
                for (attempt, word) in [(Attempt::First, first), (Attempt::Retry, retry)] {
                    let expected = admission_of(word);
                    cells.push(Cell { meets: (name, inode), request, attempt, expected });
                }
            }
        }
    }
    assert!(lines.next().is_none());
    assert_eq!(cells.len(), 2 * inodes().len() * REQUESTS.len() * 2);
    cells
}

fn admission_of(word: &str) -> Admission {
    match word {
        "j" => Admission::Join,
        "b" => Admission::Begin,
        "w" => Admission::Wait,
        "s" => Admission::Refuse(Refusal::Stale),
        "n" => Admission::Refuse(Refusal::NewInode),
        "r" => Admission::Refuse(Refusal::Reservation),
        "B" => Admission::Refuse(Refusal::Busy),
        "u" => Admission::Refuse(Refusal::Unsupported),
        other => panic!("nothing is written {other:?}"),
    }
}

/// Whether a session can come to it: a name does not lead to an inode with nothing to show.
fn is_reachable((name, inode): (Name, Inode)) -> bool {
    name == Name::Other || !matches!(inode, Inode::Blank | Inode::Superseded)
}

#[test]
fn every_cell_of_the_table_is_what_it_says() {
    for Cell { meets, request, attempt, expected } in cells() {
        let seen = admission(meets, request, attempt);
        assert_eq!(seen, expected, "{request:?} of {meets:?}, {attempt:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_of_the_table_is_what_an_open_comes_to() {
    let lab = Lab::new();
    for Cell { meets, request, attempt, expected } in cells() {
        // Of a pid namespace that is not seen, and another.
        for thread in [0, 1] {
            if !is_reachable(meets) {
                continue;
            }
            let cell = format!("{request:?} of {meets:?}, {attempt:?}, thread {thread}");
            let bench = Bench::new(&lab, meets).await;
            let seen = bench.open(request, attempt, thread, &cell).await;
            assert_eq!(seen, expected, "{cell}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_meets_a_name_that_is_free_or_taken() {
    use Admission::{Begin, Refuse};
    let lab = Lab::new();
    for (taken, exclusive, expected) in [
        (false, false, Begin),
        (false, true, Begin),
        (true, false, Refuse(Refusal::Stale)),
        (true, true, Refuse(Refusal::Exists)),
    ] {
        assert_eq!(creation(taken, exclusive), expected);
        let bench = Bench::new(&lab, (Name::Own, Inode::Closed(Size::Small))).await;
        let name = if taken { bench::NAME } else { "free" };
        let flags = OpenRequest { write: true, exclusive, thread: 1, ..OpenRequest::default() };
        let seen = match bench.session.create(bench::ROOT, name, &flags).await {
            Ok((attr, _)) => {
                assert!(bench.session.writer.draft(attr.ino).is_some());
                Begin
            }
            Err(Errno::STALE) => Refuse(Refusal::Stale),
            Err(Errno::EXIST) => Refuse(Refusal::Exists),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(seen, expected, "taken {taken}, exclusive {exclusive}");
    }
}
