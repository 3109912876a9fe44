//! The first that can be reached, for every call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy, Unready};
use crate::endpoint::{Connectivity, EndpointId, interleave};
use crate::error::Error;
use crate::rng::Rng;
use crate::timestamp::Timestamp;

/// Gives every call to one endpoint, the first of the list that can be reached, until its connection is lost.
///
/// For a primary and its stand-ins, or for clients so many that one connection each is enough: gRPC's `pick_first`
/// (A61, A62, A113). Endpoints are dialled in the order of the list, families of addresses taking turns, each a
/// quarter of a second after the one before or as soon as that one has failed ("happy eyeballs"); the first to
/// connect wins, and the others are let go. When its connection is lost, the search begins again with the first
/// of the list: at once, and not with the next call as in gRPC. While the one that serves stays in the list, a new list
/// changes nothing; an endpoint that is first and has recovered gets no call before that.
///
/// When all have failed, calls fail, and all are tried again, each after its own backoff.
///
/// Of a list longer than [`max_endpoints`](crate::Builder::max_endpoints), who is left out does not follow from its
/// order: the first may be.
///
/// ```
/// use equipoise::policy::PickFirst;
/// use std::time::Duration;
///
/// let in_order = PickFirst::default();
/// let any = PickFirst::shuffled();
/// let patient = PickFirst::default().with_stagger(Duration::from_secs(1));
/// # let _ = (in_order, any);
///
/// let error = equipoise::Channel::builder("static:10.0.0.1:50051")?
///     .policy(patient.with_stagger(Duration::from_secs(3)))
///     .build()
///     .unwrap_err();
/// assert_eq!(error.to_string(), "pick first: stagger 3s is not in 100ms..=2s");
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PickFirst {
    stagger: Duration,
    shuffled: bool,
    /// Who serves.
    chosen: Option<EndpointId>,
    pass: Option<Pass>,
    /// Where a shuffle has put each endpoint: low before high.
    lots: BTreeMap<EndpointId, f64>,
}

/// A search for somebody who can be reached.
#[derive(Clone, Debug)]
struct Pass {
    order: Vec<EndpointId>,
    /// How many of them may be dialled so far; at least one.
    tried: usize,
    /// When the next one may, if the last of these has not failed before.
    due: Timestamp,
    /// Who was being dialled when the order changed.
    under_way: Vec<EndpointId>,
}

impl Pass {
    /// Who may be dialled so far.
    fn dialled(&self) -> impl Iterator<Item = EndpointId> {
        let tried = &self.order[..self.tried];
        let overtaken = self.under_way.iter().filter(|id| !tried.contains(id));
        tried.iter().chain(overtaken).copied()
    }
}

/// gRFC A61's bounds of the Connection Attempt Delay.
const STAGGERS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(2);

impl Default for PickFirst {
    /// In the order of the list, 250 ms apart.
    fn default() -> Self {
        Self {
            // RFC 8305's recommendation, and gRFC A61's default.
            stagger: Duration::from_millis(250),
            shuffled: false,
            chosen: None,
            pass: None,
            lots: BTreeMap::new(),
        }
    }
}

impl PickFirst {
    /// In an order of this channel's own, so that many clients spread over all endpoints; each is as likely to come
    /// first as its weight is a part of all weights (A113). Default: the order of the list.
    pub fn shuffled() -> Self {
        Self {
            shuffled: true,
            ..Self::default()
        }
    }

    /// How long one endpoint is dialled before the next joins in. Default 250 ms (RFC 8305); 100 ms ..= 2 s, as in
    /// gRPC, or the channel is not built. Several addresses of one endpoint have a stagger of their own.
    pub fn with_stagger(mut self, stagger: Duration) -> Self {
        self.stagger = stagger;
        self
    }

    /// Those in the list, in the order in which they are tried.
    fn order<'a>(&mut self, members: &'a [Member], rng: &mut Rng) -> Vec<&'a Member> {
        let mut listed: Vec<&Member> = members.iter().filter(|m| m.place.is_some()).collect();
        match self.shuffled {
            false => listed.sort_by_key(|member| member.place),
            true => {
                let lots = listed.iter().map(|member| {
                    // An exponential variate: the least of them belongs to each with the chance of its weight.
                    let lot = || -(1.0 - rng.unit()).ln() / f64::from(member.weight);
                    let known = self.lots.get(&member.id).copied();
                    (member.id, known.unwrap_or_else(lot))
                });
                self.lots = lots.collect();
                let lot = |member: &Member| self.lots.get(&member.id).copied().unwrap_or(0.0);
                listed.sort_by(|a, b| lot(a).total_cmp(&lot(b)).then(a.id.cmp(&b.id)));
            }
        }
        interleave(listed, |member| member.endpoint.address())
    }

    /// Takes the search as far as it may go by `now`.
    fn search(&mut self, order: &[&Member], now: Timestamp) -> &Pass {
        let ids = order.iter().map(|member| member.id);
        let stagger = self.stagger;
        let begin = |under_way| Pass {
            order: ids.clone().collect(),
            tried: 1,
            due: now + stagger,
            under_way,
        };
        let pass = self.pass.get_or_insert_with(|| begin(Vec::new()));
        if !pass.order.iter().copied().eq(ids.clone()) {
            *pass = begin(pass.dialled().collect());
        }
        // A dial that another order has overtaken is seen through; who fails waits for its turn.
        if !pass.under_way.is_empty() {
            let connecting = |m: &&&Member| m.state == Connectivity::Connecting;
            let connecting = order.iter().filter(connecting).map(|member| member.id);
            let connecting: BTreeSet<EndpointId> = connecting.collect();
            pass.under_way.retain(|id| connecting.contains(id));
        }
        while pass.tried < order.len() {
            let failed = order[pass.tried - 1].state == Connectivity::TransientFailure;
            if !failed && now < pass.due {
                break;
            }
            pass.tried += 1;
            pass.due = now + stagger;
        }
        pass
    }
}

impl Policy for PickFirst {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let order = self.order(members, rng);
        let ready = |member: &&Member| member.state == Connectivity::Ready;
        let chosen = |member: &&Member| Some(member.id) == self.chosen;
        let serves = |member: &&Member| ready(member) && chosen(member);
        let listed = order.iter().copied();
        let winner = listed.clone().find(serves).or(listed.clone().find(ready));
        if let Some(winner) = winner {
            self.chosen = Some(winner.id);
            self.pass = None;
            return Decision {
                picker: Arc::new(Only(winner.id)),
                connect: Connect::Exactly(vec![winner.id]),
                wake: None,
            };
        }
        // It has left the list, and stays until somebody who is in it is ready.
        let last = members.iter().find(serves);
        let last = last.or_else(|| members.iter().find(ready));
        self.chosen = last.map(|member| member.id);
        let failed = order
            .iter()
            .all(|member| member.state == Connectivity::TransientFailure);
        let mut connect: Vec<EndpointId> = self.chosen.into_iter().collect();
        let mut wake = None;
        match order.is_empty() {
            true => self.pass = None,
            false => {
                let pass = self.search(&order, now);
                connect.extend(pass.dialled());
                wake = (pass.tried < pass.order.len()).then_some(pass.due);
            }
        }
        let picker: Arc<dyn Picker> = match last {
            Some(last) => Arc::new(Only(last.id)),
            None if failed => Arc::new(Unready(PickResult::Fail)),
            None => Arc::new(Unready(PickResult::Queue { connect: None })),
        };
        Decision {
            picker,
            connect: Connect::Exactly(connect),
            wake,
        }
    }

    fn check(&self) -> Result<(), Error> {
        match STAGGERS.contains(&self.stagger) {
            true => Ok(()),
            false => Err(Error::config(format!(
                "pick first: stagger {:?} is not in {STAGGERS:?}",
                self.stagger
            ))),
        }
    }
}

/// The picker of one.
#[derive(Debug)]
struct Only(EndpointId);

impl Picker for Only {
    #[inline]
    fn pick(&self, _: &PickInfo<'_>) -> PickResult {
        PickResult::Pick(self.0)
    }
}

#[cfg(test)]
mod tests;
