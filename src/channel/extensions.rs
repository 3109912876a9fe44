//! What a caller can ask of one call, and what it learns of it, as request and response extensions.

use std::fmt;
use std::sync::Arc;

use crate::endpoint::{Address, Endpoint};

/// Makes this call wait until an endpoint is ready, up to its deadline, instead of failing when none is.
///
/// Only picking waits: once the call is on a connection, it ends like any other.
///
/// ```
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(equipoise::WaitForReady);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WaitForReady;

/// Names the endpoint that should take this call, whatever the policy says.
///
/// ```
/// use equipoise::{Address, Override};
///
/// let address: Address = "10.0.0.7:50051".parse()?;
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(Override::strict(address));
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Override {
    pub(super) address: Address,
    pub(super) strict: bool,
}

impl Override {
    /// The endpoint with this address if it can take the call now, else whomever the policy picks.
    pub fn prefer(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            strict: false,
        }
    }

    /// The endpoint with this address or nobody: the call waits while it connects, and ends
    /// UNAVAILABLE when it has failed or is not in the list. It goes there also where the endpoint is ejected or says
    /// that it is not serving: a caller that names it knows.
    pub fn strict(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            strict: true,
        }
    }
}

/// Addresses that this call should stay away from while there is anybody else.
#[derive(Clone, Debug, Default)]
pub struct Avoid(pub Vec<Address>);

/// Who served a call, in the extensions of its response.
///
/// On an error made by the channel itself, the metadata entries `equipoise-endpoint` and
/// `equipoise-attempts` say the same; a server's own error is never edited.
///
/// ```no_run
/// # fn show<T>(response: tonic::Response<T>) {
/// if let Some(served) = response.extensions().get::<equipoise::Served>() {
///     println!("{} after {} attempts", served.endpoint().address(), served.attempts());
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Served {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) attempts: u32,
}

impl Served {
    /// The endpoint that answered.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How many endpoints were tried, the one that answered included.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Served by {} in attempt {}",
            self.endpoint.address(),
            self.attempts
        )
    }
}
