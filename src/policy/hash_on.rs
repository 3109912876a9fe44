//! What of a request decides where it is placed.

use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::error::Error;

/// What one call is to be placed by, whatever the policy hashes otherwise: a request extension.
///
/// ```
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(equipoise::HashKey::bytes("cart-4711"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashKey(u64);

impl HashKey {
    /// The hash of these bytes: xxHash64 with seed 0, which gRPC's other implementations use.
    pub fn bytes(key: impl AsRef<[u8]>) -> Self {
        Self(xxh64(key.as_ref(), 0))
    }

    /// A hash made elsewhere; it should be spread over all 64 bits.
    pub const fn raw(hash: u64) -> Self {
        Self(hash)
    }

    pub(crate) const fn hash(self) -> u64 {
        self.0
    }
}

/// What of a request is hashed.
#[derive(Clone, Default)]
pub struct HashOn {
    parts: Arc<[Part]>,
}

/// One thing to look at.
enum Part {
    Metadata(String),
}

impl HashOn {
    /// The values of a metadata entry, joined by commas where there are several.
    pub fn metadata(name: impl Into<String>) -> Self {
        Self {
            parts: [Part::Metadata(name.into())].into(),
        }
    }

    /// Whether the names in it can be those of metadata.
    pub(crate) fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The hash of what `head` has of it; `None` where it has nothing.
    pub(crate) fn hash(&self, head: &http::Request<()>) -> Option<u64> {
        let Part::Metadata(name) = self.parts.first()?;
        let value = head.headers().get(name.as_str())?;
        Some(xxh64(value.as_bytes(), 0))
    }
}

impl fmt::Debug for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashOn").finish_non_exhaustive()
    }
}
