//! Content-Range of an answer (RFC 9110, section 14.4).

use std::ops::Range;

use super::OriginError;

/// Which bytes a header says that an answer has, and of how many; `None` where it does not say that.
fn parse(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = header.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    (first <= last).then_some((first..last.checked_add(1)?, total))
}

/// Checks that an answer has the range of an object of `size` bytes that was asked for. Without the
/// header it has all bytes.
///
/// # Errors
/// [`OriginError::Changed`] where it is of an object of another size, and [`OriginError::BadBody`]
/// where it has other bytes.
pub(super) fn check(
    header: Option<&str>,
    asked: &Range<u64>,
    size: u64,
) -> Result<(), OriginError> {
    let other = |has: &str| {
        let text = format!("{has}, and bytes {} to {} were asked for", asked.start, asked.end);
        Err(OriginError::BadBody(text))
    };
    let Some(header) = header else {
        return if *asked == (0..size) { Ok(()) } else { other("it has all bytes") };
    };
    match parse(header) {
        None => other("its Content-Range is none"),
        Some((_, Some(total))) if total != size => Err(OriginError::Changed),
        Some((range, _)) if range == *asked => Ok(()),
        Some((range, _)) => other(&format!("it has bytes {} to {}", range.start, range.end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_of_an_object_of_that_size_will_do() {
        let with = |header| check(header, &(10..20), 100);
        with(Some("bytes 10-19/100")).unwrap();
        with(Some("bytes 10-19/*")).unwrap();
        assert!(matches!(with(Some("bytes 10-19/101")), Err(OriginError::Changed)));
        for header in [
            None,
            Some(""),
            Some("bytes"),
            Some("bytes 10-18/100"),
            Some("bytes 9-19/100"),
            Some("bytes 0-99/100"),
            Some("bytes 19-10/100"),
            Some("bytes +10-19/100"),
            Some("bytes 10-18446744073709551615/*"),
            Some("bytes */100"),
            Some("chars 10-19/100"),
        ] {
            assert!(matches!(with(header), Err(OriginError::BadBody(_))), "{header:?}");
        }
        check(None, &(0..100), 100).unwrap();
    }
}
