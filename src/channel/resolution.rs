//! What has become of the question where the endpoints are?

use std::time::Duration;

use crate::balancer::Event;
use crate::error::ResolveError;
use crate::timestamp::Timestamp;

/// How current the endpoint list is, at one moment; see [`Channel::resolution`](crate::Channel::resolution).
///
/// A resolver that fails takes nobody away, so this is where it shows. An `age` above a few refresh
/// intervals means that calls go by a list that nobody vouches for any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resolution {
    /// How long ago the resolver last gave the list that is in use. It rises while the resolver errs, and while
    /// it answers that there is nobody and the last list is [kept](crate::Builder::keep_last_good). `None`
    /// before the first list.
    pub age: Option<Duration>,
    /// How many times in a row the resolver has erred.
    pub failures: u64,
    /// The last of these errors; `None` once it answers again.
    pub last_error: Option<String>,
    /// The resolver says that there is nobody: how long the last list stays in use still. `None` while it
    /// finds somebody, and once its empty list has taken effect.
    pub kept_for: Option<Duration>,
}

/// What was last heard of the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    listed: Option<Timestamp>,
    over_limit: usize,
    failures: u64,
    last_error: Option<ResolveError>,
    kept_until: Option<Timestamp>,
}

impl Heard {
    /// Takes note of an event of the resolver's, and logs what is new about it: a resolver that says the
    /// same again and again is no news. Other events are not its affair.
    pub(super) fn note(&mut self, event: &Event, now: Timestamp) {
        match event {
            Event::Resolved {
                endpoints,
                added,
                removed,
                duplicates,
                over_limit,
            } => {
                let recovered = self.failures > 0 || self.kept_until.is_some();
                let changed = added + removed > 0 || self.listed.is_none();
                match changed || recovered {
                    true => {
                        tracing::info!(target: "equipoise", endpoints, added, removed, duplicates, "endpoint list");
                    }
                    false => {
                        tracing::debug!(target: "equipoise", endpoints, duplicates, "same endpoint list");
                    }
                }
                if *over_limit > 0 && *over_limit != self.over_limit {
                    tracing::warn!(target: "equipoise", over_limit, "endpoint list longer than max_endpoints; the rest is left out");
                }
                *self = Self {
                    listed: Some(now),
                    over_limit: *over_limit,
                    ..Self::default()
                };
            }
            Event::Kept { endpoints, until } => {
                if self.kept_until.is_none() {
                    let keep = until.since(now);
                    tracing::warn!(target: "equipoise", endpoints, ?keep, "the resolver found no endpoints; the last list stays in use for now");
                }
                self.kept_until = Some(*until);
                (self.failures, self.last_error) = (0, None);
            }
            Event::ResolveFailed(error) => {
                match (self.failures, self.listed) {
                    (0, Some(_)) => {
                        tracing::warn!(target: "equipoise", %error, "resolver failed; the last list stays in use");
                    }
                    (0, None) => {
                        tracing::warn!(target: "equipoise", %error, "resolver failed; there is no list yet");
                    }
                    (failures, _) => {
                        tracing::debug!(target: "equipoise", %error, failures, "resolver failed again");
                    }
                }
                self.failures += 1;
                self.last_error = Some(error.clone());
            }
            Event::Endpoint { .. }
            | Event::Channel { .. }
            | Event::Standing { .. }
            | Event::Health { .. }
            | Event::Panic { .. }
            | Event::Switched { .. }
            | Event::Panicked { .. } => {}
        }
    }

    /// What an operator is told of it.
    pub(super) fn at(&self, now: Timestamp) -> Resolution {
        Resolution {
            age: self.listed.map(|at| now.since(at)),
            failures: self.failures,
            last_error: self.last_error.as_ref().map(ToString::to_string),
            kept_for: self.kept_until.map(|until| until.since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    const LISTED: Event = Event::Resolved {
        endpoints: 2,
        added: 0,
        removed: 0,
        duplicates: 0,
        over_limit: 0,
    };

    #[test]
    fn the_list_ages_until_the_resolver_gives_it_again() {
        let mut heard = Heard::default();
        let failed = Event::ResolveFailed(ResolveError::new("no such name"));
        let secs = Duration::from_secs;
        let error = || Some("no such name".to_owned());
        let shown = |heard: &Heard, now| {
            let shown = heard.at(at(now));
            (shown.age, shown.failures, shown.last_error, shown.kept_for)
        };
        assert_eq!(shown(&heard, 1), (None, 0, None, None));
        heard.note(&failed, at(2));
        assert_eq!(shown(&heard, 3), (None, 1, error(), None));
        heard.note(&LISTED, at(10));
        assert_eq!(shown(&heard, 15), (Some(secs(5)), 0, None, None));
        heard.note(&failed, at(20));
        heard.note(&failed, at(30));
        assert_eq!(shown(&heard, 30), (Some(secs(20)), 2, error(), None));
        // It answers, if only that there is nobody.
        let kept = Event::Kept {
            endpoints: 2,
            until: at(100),
        };
        heard.note(&kept, at(40));
        let kept_for = Some(secs(55));
        assert_eq!(shown(&heard, 45), (Some(secs(35)), 0, None, kept_for));
        heard.note(&failed, at(50));
        let kept_for = Some(secs(40));
        assert_eq!(shown(&heard, 60), (Some(secs(50)), 1, error(), kept_for));
        heard.note(&LISTED, at(70));
        assert_eq!(shown(&heard, 70), (Some(secs(0)), 0, None, None));
    }
}
