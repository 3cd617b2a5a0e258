//! Where the bytes that were read came from, and what it saved that few of them came from afar.

use crate::admin::Counters;
use crate::config::size::Size;

const GIB: f64 = (1_u64 << 30) as f64;

/// What a GiB that is read costs, in whatever currency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Prices {
    pub(super) origin: f64,
    pub(super) region: f64,
}

impl Prices {
    /// The difference between what all bytes would have cost at the origin and what they did cost. Below
    /// zero where the region costs more.
    fn saved(self, counters: &Counters) -> f64 {
        let node = counters.saved_bytes as f64 * self.origin;
        let region = counters.region_bytes as f64 * (self.origin - self.region);
        (node + region) / GIB
    }

    fn spent(self, counters: &Counters) -> f64 {
        let region = counters.region_bytes as f64 * self.region;
        (counters.origin_bytes as f64 * self.origin + region) / GIB
    }
}

/// A price for a command line: no less than nothing.
///
/// # Errors
/// That it is none.
pub(crate) fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("a price is a number that is not negative, such as 0.09".into()),
    }
}

/// Lines about the bytes of a process: which part of them which tier gave, and what was saved by that.
pub(super) fn describe(counters: &Counters, prices: Option<Prices>) -> String {
    let tiers = [
        ("on the node", counters.saved_bytes),
        ("from the region", counters.region_bytes),
        ("from the origin", counters.origin_bytes),
    ];
    let all = tiers.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if all == 0 {
        return String::new();
    }
    let share = |(place, bytes): (&str, u64)| {
        format!("{:.1} % {place} ({})", 100.0 * bytes as f64 / all as f64, Size(bytes))
    };
    let shares: Vec<_> = tiers.into_iter().filter(|(_, bytes)| *bytes > 0).map(share).collect();
    let mut out = format!("  bytes      {}\n", shares.join(", "));
    if let Some(prices) = prices {
        let (saved, spent) = (prices.saved(counters), prices.spent(counters));
        out.push_str(&format!("  egress     {saved:.2} saved, {spent:.2} spent\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn counters(node: u64, region: u64, origin: u64) -> Counters {
        Counters {
            cache_hits: 0,
            cache_misses: 0,
            saved_bytes: node,
            fetched_bytes: 0,
            origin_bytes: origin,
            region_bytes: region,
            stored_bytes: 0,
            uploads_in_flight: 0,
            memory_used: 0,
            memory_target: 0,
        }
    }

    #[test]
    fn each_tier_has_its_share_and_what_is_not_the_origins_is_saved() {
        let prices = Prices { origin: 0.09, region: 0.01 };
        let text = describe(&counters(100 * GIB, 50 * GIB, 50 * GIB), Some(prices));
        assert!(text.contains("50.0 % on the node (100 GiB), 25.0 % from the region"), "{text}");
        // 100 x 0.09 and 50 x 0.08; 50 x 0.09 and 50 x 0.01.
        assert!(text.contains("13.00 saved, 5.00 spent"), "{text}");
        let text = describe(&counters(0, 0, 2 * GIB), None);
        assert_eq!(text, "  bytes      100.0 % from the origin (2.0 GiB)\n");
        assert_eq!(describe(&counters(0, 0, 0), Some(prices)), "");
    }

    #[test]
    fn a_price_is_a_number_that_is_not_negative() {
        for (text, value) in [("0.09", Some(0.09)), ("0", Some(0.0)), ("-1", None), ("x", None)] {
            assert_eq!(price(text).ok(), value, "{text}");
        }
        assert!(price("inf").is_err() && price("NaN").is_err());
    }
}
