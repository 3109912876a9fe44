//! How much of their requests may calls keep?

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a frame is counted as besides its bytes: the cost of keeping it. Without it a stream of empty messages would
/// have no limit.
pub(super) const FRAME: usize = 64;

/// The most bytes that calls keep, each of them and all together. Each frame counts [`FRAME`] bytes more than it has.
#[derive(Clone, Copy, Debug)]
pub(in crate::channel) struct BufferLimits {
    pub(in crate::channel) per_call: usize,
    pub(in crate::channel) per_channel: usize,
}

impl Default for BufferLimits {
    /// 256 KiB for a call, as in grpc-go and gRPC's C-core, and 16 MiB for all calls of a channel, as in grpc-java.
    fn default() -> Self {
        Self {
            per_call: 256 << 10,
            per_channel: 16 << 20,
        }
    }
}

/// How much of their requests the calls of a channel may keep, so that they can be sent again.
#[derive(Debug)]
pub(in crate::channel) struct Allowance {
    limits: BufferLimits,
    held: AtomicUsize,
}

impl Allowance {
    pub(in crate::channel) fn new(limits: BufferLimits) -> Self {
        Self {
            limits,
            held: AtomicUsize::new(0),
        }
    }

    /// Bytes that calls hold now.
    #[cfg(test)]
    pub(in crate::channel) fn held(&self) -> usize {
        // Relaxed, here and below: the count guards no data.
        self.held.load(Ordering::Relaxed)
    }

    /// Takes so many bytes for a call that has `held`, if it may.
    pub(super) fn take(&self, bytes: usize, held: usize) -> bool {
        if held + bytes > self.limits.per_call {
            return false;
        }
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                all.checked_add(bytes)
                    .filter(|&all| all <= self.limits.per_channel)
            });
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}
