//! Changes to an input.

use std::fmt;

use proptest::prelude::{Just, any};
use proptest::prop_oneof;
use proptest::strategy::Strategy;

/// What parsers stumble over.
const WORDS: [&[u8]; 33] = [
    b"\0",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"/",
    b"//",
    b".",
    b"..",
    b"/../",
    b"\"",
    b"\"\"",
    b"\\",
    b"\\012",
    b"%",
    b"%2f",
    b"%ff",
    b"+",
    b"-",
    b"--",
    b",",
    b"=",
    b":",
    b"W/",
    b"*",
    b"&#10;",
    b"\x1f",
    b"\x1b[2J",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"{",
    b"null",
    b"true",
];

/// Numbers at the ends of their kinds.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "99999",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "36028797018963968",
    "1e309",
    "NaN",
];

/// Longest part that is removed or repeated, in bytes.
const PART_MAX: usize = 64;

/// A change, at a place that is taken modulo the length of what there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edit {
    at: u16,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Set(u8),
    Insert([u8; 3]),
    Remove(u8),
    /// A part of this length so many times more.
    Repeat(u8, u8),
    /// A part of a real input: which, from where, how long.
    Splice(u8, u16, u8),
    /// One of [`WORDS`].
    Word(u8),
    /// One of [`NUMBERS`] in the place of the next number.
    Number(u8),
    Cut,
}

// What is printed is the input.
impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("edit")
    }
}

pub(super) fn any_edit() -> impl Strategy<Value = Edit> {
    let what = prop_oneof![
        any::<u8>().prop_map(What::Set),
        any::<[u8; 3]>().prop_map(What::Insert),
        any::<u8>().prop_map(What::Remove),
        any::<(u8, u8)>().prop_map(|(len, times)| What::Repeat(len, times)),
        any::<(u8, u16, u8)>().prop_map(|(which, from, len)| What::Splice(which, from, len)),
        any::<u8>().prop_map(What::Word),
        any::<u8>().prop_map(What::Number),
        Just(What::Cut),
    ];
    (any::<u16>(), what).prop_map(|(at, what)| Edit { at, what })
}

/// One of the real inputs with changes.
pub(super) fn apply(real: &[Vec<u8>], which: u8, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = chosen(real, which).to_vec();
    for edit in edits {
        one(&mut bytes, real, *edit);
    }
    bytes
}

fn chosen(real: &[Vec<u8>], which: u8) -> &[u8] {
    real.get(usize::from(which) % real.len().max(1)).map_or(&[], Vec::as_slice)
}

fn one(bytes: &mut Vec<u8>, real: &[Vec<u8>], edit: Edit) {
    let at = usize::from(edit.at) % (bytes.len() + 1);
    let end = |len: u8| bytes.len().min(at + 1 + usize::from(len) % PART_MAX);
    match edit.what {
        What::Set(byte) => {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        What::Insert(new) => insert(bytes, at, &new),
        What::Remove(len) => {
            let end = end(len);
            bytes.drain(at..end);
        }
        What::Repeat(len, times) => {
            let again = bytes[at..end(len)].repeat(usize::from(times) % PART_MAX);
            insert(bytes, at, &again);
        }
        What::Splice(which, from, len) => {
            let other = chosen(real, which);
            let from = usize::from(from) % (other.len() + 1);
            let end = other.len().min(from + usize::from(len));
            insert(bytes, at, &other[from..end]);
        }
        What::Word(which) => insert(bytes, at, WORDS[usize::from(which) % WORDS.len()]),
        What::Number(which) => {
            let Some(before) = bytes[at..].iter().position(u8::is_ascii_digit) else { return };
            let start = at + before;
            let len = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = NUMBERS[usize::from(which) % NUMBERS.len()];
            bytes.splice(start..start + len, number.bytes());
        }
        What::Cut => bytes.truncate(at),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.splice(at..at, new.iter().copied());
}
