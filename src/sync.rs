//! What threads meet over, in the files whose protocols are model-checked: there (`tests/models`) a module of this
//! name stands for `loom`'s, and the files are the same.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Mutex, MutexGuard};
