//! Recognises somebody who goes through the names of a directory one after the other, and says
//! which names come next.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use lru::LruCache;

use crate::sync::unpoisoned;

/// Directories followed at once.
const FOLLOWED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// A name this many further still belongs to the walk: several threads share one.
pub const REACH: usize = 16;

/// A thing in a directory, with its name.
pub type Named<T> = (Box<str>, T);

/// Which way the names are gone through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// In their order.
    Up,
    /// Against it, as a program that keeps a stack of directories does.
    Down,
}

/// When to follow, and how far.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Steps in order that make a walk.
    pub enough: u32,
    /// Most names to go ahead.
    pub max: usize,
}

/// The walks of a mount, by directory.
pub struct Walks {
    depth: Depth,
    dirs: Mutex<LruCache<u64, Walk>>,
}

#[derive(Debug)]
struct Walk {
    last: Box<str>,
    direction: Option<Direction>,
    streak: u32,
    /// The furthest name that was handed out, and how many names it is ahead of `last`.
    front: Box<str>,
    ahead: usize,
}

impl Walk {
    fn begin(name: &str) -> Self {
        Self { last: name.into(), direction: None, streak: 0, front: name.into(), ahead: 0 }
    }
}

/// What to do ahead of a walk.
#[derive(Debug, PartialEq, Eq)]
pub struct Ahead<T> {
    /// What `next` gave, with its names.
    pub names: Vec<Named<T>>,
    /// How many more were wanted: beyond the end of the directory.
    pub lacking: usize,
    /// Which way.
    pub direction: Direction,
}

impl Walks {
    /// Follows walks as `depth` says.
    pub fn new(depth: Depth) -> Self {
        Self { depth, dirs: Mutex::new(LruCache::new(FOLLOWED)) }
    }

    /// Whether somebody walks this directory.
    pub fn is_followed(&self, dir: u64) -> bool {
        self.lock().contains(&dir)
    }

    /// Which way this directory is walked, if it is.
    pub fn direction(&self, dir: u64) -> Option<Direction> {
        let dirs = self.lock();
        let walk = dirs.peek(&dir)?;
        walk.direction.filter(|_| walk.streak >= self.depth.enough)
    }

    /// Stops following.
    pub fn end(&self, dir: u64) {
        self.lock().pop(&dir);
    }

    /// Notes that `name` was used in the directory `dir`. `next(name, direction, count)` gives
    /// at most `count` things, with their names, that follow a name. Returns those to work on
    /// ahead, each once.
    pub fn stepped<T>(
        &self,
        dir: u64,
        name: &str,
        mut next: impl FnMut(&str, Direction, usize) -> Vec<Named<T>>,
    ) -> Option<Ahead<T>> {
        let mut dirs = self.lock();
        let Some(walk) = dirs.get_mut(&dir) else {
            dirs.put(dir, Walk::begin(name));
            return None;
        };
        let direction = match name.cmp(&walk.last) {
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Greater => Direction::Up,
            std::cmp::Ordering::Less => Direction::Down,
        };
        let near = next(&walk.last, direction, REACH);
        let steps = near.iter().position(|(near, _)| &**near == name);
        match (walk.direction, steps) {
            // One of several threads, a little behind.
            (Some(known), Some(_)) if known != direction => return None,
            (_, Some(steps)) => {
                walk.direction = Some(direction);
                walk.streak = walk.streak.saturating_add(1);
                walk.last = name.into();
                walk.ahead = walk.ahead.saturating_sub(steps + 1);
            }
            (_, None) => {
                *walk = Walk::begin(name);
                return None;
            }
        }
        if walk.streak < self.depth.enough {
            return None;
        }
        let depth = (4_usize << walk.streak.min(8)).min(self.depth.max);
        if walk.ahead * 2 > depth {
            return None;
        }
        if walk.ahead == 0 {
            walk.front = name.into();
        }
        let wanted = depth - walk.ahead;
        let found = next(&walk.front, direction, wanted);
        if let Some((front, _)) = found.last() {
            walk.front.clone_from(front);
        }
        // Beyond the end, too: what was asked for once is not asked for again.
        walk.ahead = depth;
        let lacking = wanted - found.len();
        Some(Ahead { names: found, lacking, direction })
    }

    /// Begins a walk that came here from another directory: the first `ahead` names, up to
    /// `front`, were worked on already.
    pub fn came_from_elsewhere(&self, dir: u64, direction: Direction, front: &str, ahead: usize) {
        let walk = Walk {
            last: match direction {
                Direction::Up => "".into(),
                Direction::Down => char::MAX.to_string().into(),
            },
            direction: Some(direction),
            streak: self.depth.enough,
            front: front.into(),
            ahead,
        };
        self.lock().put(dir, walk);
    }

    /// Goes on ahead in a directory that is followed already, up to `count` names ahead. Returns
    /// how many were ahead before, and those to work on.
    pub fn extend<T>(
        &self,
        dir: u64,
        count: usize,
        next: impl FnOnce(&str, Direction, usize) -> Vec<Named<T>>,
    ) -> Option<(usize, Vec<Named<T>>)> {
        let mut dirs = self.lock();
        let walk = dirs.get_mut(&dir)?;
        let direction = walk.direction?;
        let before = walk.ahead.min(count);
        let found = next(&walk.front, direction, count - before);
        if let Some((front, _)) = found.last() {
            walk.front.clone_from(front);
        }
        walk.ahead += found.len();
        Some((before, found))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Walk>> {
        unpoisoned(self.dirs.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 26] = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r",
        "s", "t", "u", "v", "w", "x", "y", "z",
    ];

    fn next(from: &str, direction: Direction, count: usize) -> Vec<Named<()>> {
        let named = |name: &&str| (Box::from(*name), ());
        match direction {
            Direction::Up => NAMES.iter().filter(|n| **n > from).take(count).map(named).collect(),
            Direction::Down => {
                NAMES.iter().rev().filter(|n| **n < from).take(count).map(named).collect()
            }
        }
    }

    fn names(ahead: Ahead<()>) -> Vec<Box<str>> {
        ahead.names.into_iter().map(|(name, ())| name).collect()
    }

    #[test]
    fn each_name_ahead_of_a_walk_is_given_once_in_either_direction() {
        for down in [false, true] {
            let walks = Walks::new(Depth { enough: 2, max: 8 });
            let mut order = NAMES.to_vec();
            if down {
                order.reverse();
            }
            let mut given: Vec<Box<str>> = Vec::new();
            for (at, name) in order.iter().enumerate() {
                if let Some(ahead) = walks.stepped(1, name, next) {
                    assert!(at >= 2);
                    given.extend(names(ahead));
                }
                assert!(given.len() <= at + 8, "{at} {given:?}");
            }
            let given: Vec<&str> = given.iter().map(|name| &**name).collect();
            assert_eq!(given, order[3..], "{down}");
        }
    }

    #[test]
    fn a_thread_behind_changes_nothing_and_a_jump_ends_the_walk() {
        let walks = Walks::new(Depth { enough: 2, max: 4 });
        for name in ["a", "b"] {
            assert_eq!(walks.stepped(1, name, next), None);
        }
        let ahead = walks.stepped(1, "c", next).unwrap();
        assert_eq!(ahead.lacking, 0);
        assert_eq!(names(ahead), ["d", "e", "f", "g"].map(Box::from));
        assert_eq!(walks.stepped(1, "b", next), None);
        assert_eq!(names(walks.stepped(1, "e", next).unwrap()), ["h", "i"].map(Box::from));
        assert_eq!(walks.stepped(1, "z", next), None);
        assert_eq!(walks.stepped(1, "y", next), None);
    }

    #[test]
    fn the_end_of_a_directory_is_told_and_the_next_one_goes_on() {
        let walks = Walks::new(Depth { enough: 1, max: 8 });
        walks.stepped(1, "w", next);
        let ahead = walks.stepped(1, "x", next).unwrap();
        assert_eq!(ahead.lacking, 6);
        assert_eq!(names(ahead), ["y", "z"].map(Box::from));
        walks.came_from_elsewhere(2, Direction::Up, "f", 6);
        let gh = ["g", "h"].map(|name| (Box::from(name), ()));
        assert_eq!(walks.extend(2, 8, next), Some((6, gh.to_vec())));
        assert_eq!(walks.extend(3, 8, next), None);
        for name in ["a", "b", "c"] {
            assert_eq!(walks.stepped(2, name, next), None);
        }
        let ahead = walks.stepped(2, "d", next).unwrap();
        assert_eq!(names(ahead), ["i", "j", "k", "l"].map(Box::from));
    }
}
