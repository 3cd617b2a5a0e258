//! How long what was learned from the origin is taken as true.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The lifetime of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetadataTtl {
    /// Ask the origin at every lookup and open.
    Minimal,
    /// This long.
    For(Duration),
    /// For as long as the mount lives: for buckets that nobody else changes.
    Indefinite,
}

/// The longest lifetime in seconds: what every clock can be moved by.
const LONGEST_S: f64 = 1e9;

impl MetadataTtl {
    /// The lifetime as a duration; `Indefinite` is ten years, which the kernel takes too.
    pub fn duration(self) -> Duration {
        match self {
            Self::Minimal => Duration::ZERO,
            Self::For(d) => d.min(Duration::from_secs_f64(LONGEST_S)),
            Self::Indefinite => Duration::from_secs(10 * 365 * 24 * 3600),
        }
    }
}

/// What a mount has where nothing else is said.
impl Default for MetadataTtl {
    fn default() -> Self {
        Self::For(Duration::from_secs(1))
    }
}

impl FromStr for MetadataTtl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "minimal" => Ok(Self::Minimal),
            "indefinite" => Ok(Self::Indefinite),
            _ => match text.parse::<f64>() {
                Ok(secs) if (0.0..=LONGEST_S).contains(&secs) => {
                    Ok(Self::For(Duration::from_secs_f64(secs)))
                }
                _ => Err(format!(
                    "{text:?} is not a number of seconds, \"indefinite\" or \"minimal\""
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_spellings_and_nothing_else() {
        assert_eq!("minimal".parse(), Ok(MetadataTtl::Minimal));
        assert_eq!("indefinite".parse(), Ok(MetadataTtl::Indefinite));
        assert_eq!("2.5".parse(), Ok(MetadataTtl::For(Duration::from_millis(2500))));
        for bad in ["", "-1", "soon", "NaN", "inf"] {
            assert!(bad.parse::<MetadataTtl>().is_err(), "{bad}");
        }
    }
}
