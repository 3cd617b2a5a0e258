//! Weir's CSI services over narrow traits of their own. Nothing of them is written yet: the
//! stand-alone mount comes first, and this crate's place in the graph is kept.
