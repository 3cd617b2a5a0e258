//! How far ahead of a reader to fetch: pure arithmetic.

use std::ops::Range;

use crate::model::blocks::BLOCK;

/// First window of a file read from its start.
const FIRST: u64 = 4 * BLOCK;
/// Smallest window of a walk that was recognised.
const SMALL: u64 = 8 * BLOCK;
/// A read this near to where the last one ended goes on with it: readahead is unordered.
const NEAR: u64 = 16 * BLOCK;

/// Follows the reads of one open file.
#[derive(Debug)]
pub struct Window {
    /// Where the furthest read of the present walk ended.
    next: u64,
    window: u64,
    max: u64,
    /// Fetches beyond this are already asked for.
    asked: u64,
    started: bool,
}

impl Window {
    /// `max` is the widest window in bytes.
    pub fn new(max: u64) -> Self {
        Self { next: 0, window: 0, max, asked: 0, started: false }
    }

    /// Notes a read; says how many bytes beyond it to fetch along with it.
    pub fn read(&mut self, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len);
        let near =
            offset <= self.next.saturating_add(NEAR) && end.saturating_add(NEAR) >= self.next;
        if !self.started {
            self.started = true;
            // From the start: likely a whole read. From elsewhere: likely a random one.
            self.window = if offset == 0 { FIRST.min(self.max) } else { 0 };
            self.next = end;
            self.asked = end;
        } else if near {
            if end > self.next {
                self.window = (self.window * 2).clamp(SMALL.min(self.max), self.max);
                self.next = end;
            }
        } else {
            // A jump. What comes next tells whether it is the start of another walk.
            self.window = 0;
            self.next = end;
            self.asked = end;
        }
        self.window
    }

    /// What to fetch now, beyond what was asked for, in `part`-sized pieces; empty if nothing.
    pub fn ahead(&mut self, part: u64, size: u64) -> Range<u64> {
        let unit = (self.window / 4).clamp(BLOCK, part.max(BLOCK));
        let unit = unit - unit % BLOCK;
        let target = (self.next.saturating_add(self.window)).min(size);
        let end = if target == size { size } else { target - target % unit };
        let start = self.asked.max(self.next);
        if self.window == 0 || end <= start {
            return start..start;
        }
        self.asked = end;
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sequential_reader_gets_a_growing_window_in_whole_parts() {
        let mut window = Window::new(64 * MIB);
        let (mut at, mut asked) = (0, 0);
        for _ in 0..4000 {
            window.read(at, BLOCK);
            at += BLOCK;
            let ahead = window.ahead(8 * MIB, 1 << 40);
            if !ahead.is_empty() {
                assert!(ahead.start >= asked && ahead.start.is_multiple_of(BLOCK));
                asked = ahead.end;
            }
        }
        assert!(asked >= at + 48 * MIB, "{asked} {at}");
        assert!(asked <= at + 64 * MIB);
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut window = Window::new(64 * MIB);
        for n in [900, 7, 500, 100, 800] {
            assert_eq!(window.read(n * 10 * MIB, 4096), 0);
            assert!(window.ahead(8 * MIB, 1 << 40).is_empty());
        }
    }

    #[test]
    fn faults_that_walk_upwards_are_followed_wherever_they_start() {
        let mut window = Window::new(64 * MIB);
        window.read(700 * MIB, BLOCK);
        let mut fetched = 0;
        for n in 1..50 {
            window.read(700 * MIB + n * BLOCK, BLOCK);
            let ahead = window.ahead(8 * MIB, 1 << 40);
            fetched += ahead.end - ahead.start;
        }
        assert!(fetched > 16 * MIB, "{fetched}");
    }

    #[test]
    fn the_window_ends_with_the_file() {
        let mut window = Window::new(64 * MIB);
        let size = 3 * MIB + 5;
        for n in 0..24 {
            window.read(n * BLOCK, BLOCK);
            assert!(window.ahead(8 * MIB, size).end <= size);
        }
    }
}
