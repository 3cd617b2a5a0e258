//! Fuzzing of parsers: inputs that are near to real ones, by proptest, in ordinary tests. Each target
//! looks for as many seconds as `WEIR_FUZZ_SECONDS` says, one else; what it finds is made smaller and
//! printed, to become a real input of its corpus.

#![allow(clippy::panic, reason = "it is a part of tests, and how they fail")]

mod edit;
pub mod told;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestError, TestRunner};

/// Changes made to an input at once.
const EDITS_MAX: usize = 8;
/// How long a target looks, in seconds, where nothing is said.
const SECONDS: f64 = 1.0;
/// Inputs between two looks at the clock.
const AT_ONCE: u32 = 16;
/// Tries to make an input that fails smaller.
const SHRINKS_MAX: u32 = 2000;

/// Cuts the text of a corpus into its inputs, which are divided by lines of four dashes.
pub fn inputs(corpus: &[u8]) -> Vec<Vec<u8>> {
    const BETWEEN: &[u8] = b"\n----\n";
    let mut inputs = Vec::new();
    let mut rest = corpus;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN) {
        inputs.push(rest[..at].to_vec());
        rest = &rest[at + BETWEEN.len()..];
    }
    inputs.push(rest.strip_suffix(b"\n").unwrap_or(rest).to_vec());
    inputs
}

/// Checks the real inputs, then what is near to them until the time is over.
///
/// # Panics
/// Where `check` does, with the input that it does so for.
pub fn near<I: AsRef<[u8]>>(real: &[I], check: impl Fn(&[u8])) {
    let real: Vec<Vec<u8>> = real.iter().map(|input| input.as_ref().to_vec()).collect();
    real.iter().for_each(|input| check(input));
    let edits = (any::<u8>(), vec(edit::any_edit(), 0..=EDITS_MAX));
    let near = edits.prop_map(move |(which, edits)| Input(edit::apply(&real, which, &edits)));
    let config = Config {
        cases: AT_ONCE,
        max_shrink_iters: SHRINKS_MAX,
        failure_persistence: None,
        ..Config::default()
    };
    let until = Instant::now() + time();
    while Instant::now() < until {
        // One that has seen its cases sees no more.
        let done = TestRunner::new(config.clone()).run(&near, |Input(bytes)| {
            check(&bytes);
            Ok(())
        });
        match done {
            Ok(()) => {}
            Err(TestError::Fail(why, input)) => panic!("{input:?}: {why}"),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
}

/// Checks real texts, and what is near to them, as [`near`]; bytes that are no text are replaced.
///
/// # Panics
/// As [`near`].
pub fn near_texts<I: AsRef<[u8]>>(real: &[I], check: impl Fn(&str)) {
    near(real, |bytes| check(&String::from_utf8_lossy(bytes)));
}

fn time() -> Duration {
    let said = std::env::var("WEIR_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(said.unwrap_or(SECONDS))
}

/// An input, as it is printed.
#[derive(Clone)]
struct Input(Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_cut_at_its_lines_of_dashes() {
        assert_eq!(inputs(b"a\nb\n----\n\n----\nc\n"), [b"a\nb".to_vec(), vec![], b"c".to_vec()]);
    }

    #[test]
    fn what_is_wrong_near_to_a_real_input_is_found_and_printed() {
        for wrong in ["99999", "18446744073709551615", "1234512345"] {
            let found = std::panic::catch_unwind(|| {
                near_texts(&["sizes 12345 and 1"], |text| assert!(!text.contains(wrong)));
            });
            let why = found.unwrap_err();
            let why = why.downcast_ref::<String>().unwrap();
            assert!(why.contains(wrong), "{why}");
        }
    }
}
