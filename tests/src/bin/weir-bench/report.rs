//! Medians, ratios, tables.

use serde::Serialize;

/// A work of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Work {
    /// Its name.
    pub(crate) name: &'static str,
    /// How it is counted.
    pub(crate) unit: &'static str,
    /// What limits it.
    pub(crate) limit: &'static str,
}

impl Work {
    /// A work that has no limit.
    pub(crate) const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, limit: "" }
    }

    /// The same, with what limits it.
    pub(crate) const fn beside(self, limit: &'static str) -> Self {
        Self { limit, ..self }
    }
}

/// All rounds of one contestant, or of the limit, in one work.
#[derive(Clone, Debug, Serialize)]
struct Series {
    work: Work,
    who: String,
    rounds: Vec<f64>,
}

/// Who the limit is in the figures.
pub(crate) const LIMIT: &str = "limit";

/// All figures of one run.
#[derive(Default, Debug, Serialize)]
pub(crate) struct Report {
    /// What the run was on.
    pub(crate) title: String,
    series: Vec<Series>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(title: String) -> Self {
        Self { title, series: Vec::new() }
    }

    /// Adds a round.
    pub(crate) fn add(&mut self, work: Work, who: &str, value: f64) {
        eprintln!("{who:>22}  {:44} {value:>12.1} {}", work.name, work.unit);
        match self.series.iter_mut().find(|s| s.work == work && s.who == who) {
            Some(series) => series.rounds.push(value),
            None => {
                self.series.push(Series { work, who: who.to_owned(), rounds: vec![value] });
            }
        }
    }

    fn median(&self, work: Work, who: &str) -> Option<f64> {
        let series = self.series.iter().find(|s| s.work == work && s.who == who)?;
        let mut rounds = series.rounds.clone();
        rounds.sort_by(f64::total_cmp);
        Some(rounds[rounds.len() / 2])
    }

    fn unique<T: PartialEq>(&self, of: impl Fn(&Series) -> T) -> Vec<T> {
        let mut all = Vec::new();
        for series in &self.series {
            let one = of(series);
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all
    }

    /// The table, in Markdown. A cell is a median, with its ratio to the limit where there is one.
    pub(crate) fn table(&self) -> String {
        let who: Vec<String> = self.unique(|s| s.who.clone());
        let who: Vec<_> = who.into_iter().filter(|w| w != LIMIT).collect();
        let mut out = format!("{}\n\n| work | limit |", self.title);
        who.iter().for_each(|w| out.push_str(&format!(" {w} |")));
        out.push_str("\n|---|---|");
        who.iter().for_each(|_| out.push_str("---|"));
        out.push('\n');
        for work in self.unique(|s| s.work) {
            let limit = self.median(work, LIMIT);
            let shown = limit
                .map_or("-".to_owned(), |l| format!("{} {} {}", number(l), work.unit, work.limit));
            out.push_str(&format!("| {} | {shown} |", work.name));
            for who in &who {
                let cell = match (self.median(work, who), limit) {
                    (None, _) => "-".to_owned(),
                    (Some(value), Some(limit)) => {
                        format!("**{:.2}** ({})", value / limit, number(value))
                    }
                    (Some(value), None) => format!("{} {}", number(value), work.unit),
                };
                out.push_str(&format!(" {cell} |"));
            }
            out.push('\n');
        }
        out
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.1} k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_the_ratio_of_medians() {
        let work = Work::new("w", "u").beside("raw");
        let mut report = Report::new("t".into());
        for value in [1.0, 100.0, 2.0] {
            report.add(work, LIMIT, value);
        }
        for value in [1.0, 0.5, 90.0] {
            report.add(work, "Weir", value);
        }
        assert!(
            report.table().contains("| w | 2.00 u raw | **0.50** (1.00) |"),
            "{}",
            report.table()
        );
    }
}
