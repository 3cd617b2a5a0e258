//! A file under change, taken through every order of what can happen to it.
//!
//! Futures are polled by hand, so that an operation can be stopped at any of its requests; an
//! origin that makes two steps of each request lets the stop be before its effect, or between
//! the effect and the reply. Nothing waits for a time: where a request would be repeated after
//! one, nobody gets on, and that is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod acts;
mod case;
mod check;
mod deltas;
mod inquiry;
mod lab;
mod live;
mod model;
mod ops;
mod orders;
mod poll;
mod renames;
mod renaming;
mod seen;
mod stepped;
mod table;

/// Bytes of a part.
const PART: usize = crate::model::blocks::BLOCK as usize;
