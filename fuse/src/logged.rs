//! Names of files in log lines. Who reads the log of a process that serves many tenants need not
//! learn what their files are called: there a name is shown as a number that is the same for equal
//! names, until the process ends.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// Set where names are shown as numbers.
static HASHER: OnceLock<RandomState> = OnceLock::new();

/// From now on this process logs numbers in place of names.
pub fn hide_names() {
    let _ = HASHER.set(RandomState::new());
}

/// A key, or a part of one, as a log line shows it.
pub struct LoggedName<'a>(pub &'a str);

impl fmt::Display for LoggedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self.0, HASHER.get(), f)
    }
}

fn show(name: &str, hasher: Option<&RandomState>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match hasher {
        None => f.write_str(name),
        Some(hasher) => write!(f, "#{:016x}", hasher.hash_one(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shown<'a>(&'a str, Option<&'a RandomState>);

    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            show(self.0, self.1, f)
        }
    }

    #[test]
    fn a_hidden_name_is_a_number_that_is_the_same_for_equal_names() {
        let hasher = RandomState::new();
        let hidden = |name| Shown(name, Some(&hasher)).to_string();
        assert_eq!(Shown("a/secret", None).to_string(), "a/secret");
        assert_eq!(hidden("a/secret"), hidden("a/secret"));
        assert_ne!(hidden("a/secret"), hidden("a/other"));
        assert!(!hidden("a/secret").contains("secret"));
        assert_ne!(hidden("a/secret"), Shown("a/secret", Some(&RandomState::new())).to_string());
    }
}
