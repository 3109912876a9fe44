//! The tower layer: balances over anything that dials a gRPC channel.

use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::target::Target;
use crate::transport::Connector;

use super::builder::Builder;
use super::plan::Plan;
use super::service::Channel;

/// Turns a [`Connector`] into a [`Channel`] over many endpoints.
///
/// Everything that can be wrong is found when the layer is built; attaching it cannot fail. Each
/// [`layer`](Layer::layer) makes a channel of its own, with its own endpoints, connections and figures.
///
/// ```
/// use equipoise::policy::RoundRobin;
/// use equipoise::transport::Http2Connector;
/// use equipoise::{BalanceLayer, Channel};
/// use tower_layer::Layer;
///
/// let layer = BalanceLayer::builder("static:127.0.0.1:50051,127.0.0.1:50052")?
///     .policy(RoundRobin::default())
///     .build()?;
/// let channel: Channel = layer.layer(Http2Connector::default());
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone)]
pub struct BalanceLayer {
    plan: Arc<Plan>,
}

impl BalanceLayer {
    /// Begins a layer to `target`; see [`Target`] for what can be written.
    ///
    /// # Errors
    ///
    /// When the target cannot be read; the error names the value and the rule.
    pub fn builder(target: impl AsRef<str>) -> Result<Builder<Self>, Error> {
        Builder::new(target.as_ref())
    }

    /// Begins a layer over a list of endpoints kept by hand.
    pub fn from_endpoints(endpoints: impl IntoIterator<Item = Endpoint>) -> Builder<Self> {
        Builder::over(Target::from_endpoints(endpoints.into_iter().collect()))
    }

    pub(super) fn new(plan: Plan) -> Self {
        Self {
            plan: Arc::new(plan),
        }
    }
}

impl<C: Connector> Layer<C> for BalanceLayer {
    type Service = Channel<C>;

    fn layer(&self, connector: C) -> Channel<C> {
        self.plan.channel(connector)
    }
}

impl fmt::Debug for BalanceLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceLayer")
            .field("target", &self.plan.target.to_string())
            .finish_non_exhaustive()
    }
}
