//! What can be wrong with what the user asked for, and why a place could not be reached.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Why a channel could not be built, connected or changed.
///
/// Opaque: ask the `is_*` methods. The text names the value and the rule it broke; its wording is
/// not a promise.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Config,
    Unavailable,
    Closed,
}

impl Error {
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Config,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn target(target: &str, rule: impl fmt::Display) -> Self {
        Self::config(format!("target {target:?}: {rule}"))
    }

    pub(crate) fn address(address: &str, rule: impl fmt::Display) -> Self {
        Self::config(format!("address {address:?}: {rule}"))
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Unavailable,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn closed() -> Self {
        Self {
            kind: Kind::Closed,
            message: "the channel is closed".into(),
            source: None,
        }
    }

    /// A target, address, weight, duration or policy that cannot be used as given.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// No endpoint could be reached.
    pub fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    /// The channel was closed before.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_ref()
            .map(|s| &**s as &(dyn StdError + 'static))
    }
}

/// Why one attempt to reach one address failed, or why a connection ended.
#[derive(Clone, Debug)]
pub struct ConnectError {
    message: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl ConnectError {
    /// A failure in the connector's own words: lower case, naming what was tried.
    pub fn new(message: impl Into<Arc<str>>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// The same with what caused it.
    pub fn with_source(
        message: impl Into<Arc<str>>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(Arc::new(source)),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for ConnectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_ref()
            .map(|s| &**s as &(dyn StdError + 'static))
    }
}

/// Why a resolver has no answer just now. A state, never the end: the last good list stays in use.
#[derive(Clone, Debug)]
pub struct ResolveError {
    message: Arc<str>,
}

impl ResolveError {
    /// A failure in the resolver's own words: lower case, naming what was asked.
    pub fn new(message: impl Into<Arc<str>>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for ResolveError {}
