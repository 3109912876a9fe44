//! Where are they?
//!
//! A [`Resolver`] turns a [`Target`] into a stream of complete endpoint lists. It runs in a task of its
//! own, so the list is kept current whether or not calls are made. [`Dns`] looks names up.

mod dns;
mod refusal;

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::stream::BoxStream;
use tokio::sync::Notify;

use crate::endpoint::Endpoint;
use crate::error::ResolveError;
use crate::target::Target;

pub use dns::Dns;

/// Finds the endpoints of a target, and goes on finding them.
///
/// A resolver of one's own, fed by a channel:
///
/// ```
/// use equipoise::resolver::{Hints, Resolver, Update};
/// use equipoise::{Endpoint, ResolveError, Target};
/// use futures_util::stream::{self, BoxStream, StreamExt};
/// use tokio::sync::watch;
///
/// #[derive(Debug)]
/// struct Fed(watch::Receiver<Vec<Endpoint>>);
///
/// impl Resolver for Fed {
///     fn watch(&self, _: &Target, _: Hints) -> BoxStream<'static, Result<Update, ResolveError>> {
///         let mut lists = self.0.clone();
///         lists.mark_changed();
///         stream::unfold(lists, |mut lists| async {
///             lists.changed().await.ok()?;
///             let endpoints = lists.borrow_and_update().clone();
///             Some((Ok(Update { endpoints }), lists))
///         })
///         .boxed()
///     }
/// }
///
/// let (feed, lists) = watch::channel(Vec::new());
/// let channel = equipoise::Channel::builder("shop:cart")?.resolver(Fed(lists)).build()?;
/// feed.send_replace(vec![Endpoint::new("10.0.0.1:50051".parse::<equipoise::Address>()?)]);
/// # Ok::<(), equipoise::Error>(())
/// ```
pub trait Resolver: Send + Sync + Debug {
    /// A stream of what the target resolves to: the first item as soon as it is known, another with each
    /// change. An error is a state: the last good list stays in use and the stream goes on. A stream that
    /// ends means that the last list is final.
    fn watch(
        &self,
        target: &Target,
        hints: Hints,
    ) -> BoxStream<'static, Result<Update, ResolveError>>;

    /// Whether it can work for this target, with the settings it has; asked when the channel is built.
    /// Default: yes.
    ///
    /// # Errors
    ///
    /// Says what is wrong: the value and the rule.
    fn check(&self, target: &Target) -> Result<(), ResolveError> {
        let _ = target;
        Ok(())
    }
}

/// What a resolver found: always the complete list, never a difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Every endpoint there is. Duplicates are counted and the first of them used. None at all means that there
    /// is nobody, which takes effect after [`keep_last_good`](crate::Builder::keep_last_good).
    pub endpoints: Vec<Endpoint>,
}

/// The channel's wish that its resolver look again: a connection was lost or could not be made.
///
/// Wishes coalesce: any number of them while the resolver is busy is one. How often to heed them is the
/// resolver's choice.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    again: Arc<Notify>,
}

impl Hints {
    /// Waits for the next wish; at once when one is outstanding.
    pub async fn wanted(&self) {
        self.again.notified().await;
    }

    pub(crate) fn look_again(&self) {
        self.again.notify_one();
    }
}
