//! G17: the policy exchanged under load.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use equipoise::load::Scoring;
use equipoise::policy::{
    Adaptive, BoundedLoad, Decision, HashOn, LeastBandwidth, LeastRequest, LeastUtilization,
    Maglev, Member, PeakEwma, PickFirst, PickInfo, PickResult, Picker, Policy, Random, Rendezvous,
    RingHash, RoundRobin, WeightedRandom, WeightedRoundRobin,
};
use equipoise::rng::Rng;
use equipoise::{Channel, Timestamp};
use tonic::body::Body;
use tonic::codegen::Service;

use super::{SAY_HELLO, load};
use crate::balanced::{clean, ready, until};
use crate::rig::clean::{Footprint, alone};
use crate::rig::load::Load;
use crate::size::{self, figure};
use crate::{Fleet, reference};

/// How often the policy is exchanged.
const EXCHANGES: usize = 10;

const KEY: &str = "x-key";

/// Every kind of policy there is.
fn kinds() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(Adaptive::default()),
        Box::new(PeakEwma::default()),
        Box::new(LeastRequest::default()),
        Box::new(LeastRequest::full_scan()),
        Box::new(LeastBandwidth::default()),
        Box::new(LeastUtilization::default()),
        Box::new(RoundRobin::default()),
        Box::new(WeightedRoundRobin::default()),
        Box::new(WeightedRoundRobin::reported()),
        Box::new(Random),
        Box::new(WeightedRandom),
        Box::new(PickFirst::default()),
        Box::new(PickFirst::shuffled()),
        Box::new(RingHash::on_metadata(KEY)),
        Box::new(Maglev::on_metadata(KEY)),
        Box::new(Maglev::on_metadata(KEY).with_bounded_load(BoundedLoad::default())),
        Box::new(Rendezvous::on_metadata(KEY).with_top(2)),
    ]
}

/// A policy whose picks are counted.
#[derive(Debug)]
struct Counted {
    policy: Box<dyn Policy>,
    picks: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CountedPicker {
    picker: Arc<dyn Picker>,
    picks: Arc<AtomicU64>,
}

impl Policy for Counted {
    fn update(&mut self, members: &[Member], now: Timestamp, rng: &mut Rng) -> Decision {
        let mut decision = self.policy.update(members, now, rng);
        decision.picker = Arc::new(CountedPicker {
            picker: decision.picker,
            picks: self.picks.clone(),
        });
        decision
    }

    fn scoring(&self) -> Scoring {
        self.policy.scoring()
    }

    fn hash_on(&self) -> HashOn {
        self.policy.hash_on()
    }

    fn check(&self) -> Result<(), equipoise::Error> {
        self.policy.check()
    }
}

impl Picker for CountedPicker {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        // The channel asks about a call that there is not, too.
        if info.path == SAY_HELLO {
            // A counter on its own: nothing else is read in its order.
            self.picks.fetch_add(1, Ordering::Relaxed);
        }
        self.picker.pick(info)
    }
}

/// Which policy comes before which call: in each tenth of the load another one, at a point of chance.
struct Plan {
    exchanges: Vec<(u64, Box<dyn Policy>)>,
}

impl Plan {
    fn of(calls: u64) -> Self {
        let seed = size::seed();
        let mut rng = Rng::new(seed);
        let tenth = calls / EXCHANGES as u64;
        let mut kinds = kinds();
        let exchanges = (0..EXCHANGES as u64).map(|nth| {
            let policy = kinds.swap_remove(rng.below(kinds.len()));
            (nth * tenth + rng.word() % tenth, policy)
        });
        let exchanges: Vec<_> = exchanges.collect();
        println!("seed {seed}: {exchanges:?}");
        Self { exchanges }
    }

    /// The policy that is due before this call.
    fn due(&mut self, call: u64) -> Option<Box<dyn Policy>> {
        let (at, _) = self.exchanges.first()?;
        (*at == call).then(|| self.exchanges.remove(0).1)
    }
}

/// A channel whose calls have one of fifty keys each, and in whose place another may come.
#[derive(Clone)]
struct Keyed {
    channel: Arc<Mutex<Channel>>,
    turn: Arc<AtomicU64>,
}

impl Keyed {
    fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(Mutex::new(channel)),
            turn: Arc::default(),
        }
    }

    fn channel(&self) -> Channel {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.clone()
    }

    fn replace(&self, channel: Channel) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }
}

impl Service<http::Request<Body>> for Keyed {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel().poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // A counter on its own: nothing else is read in its order.
        let key = self.turn.fetch_add(1, Ordering::Relaxed) % 50;
        request.headers_mut().insert(KEY, key.into());
        self.channel().call(request)
    }
}

/// G17: whatever comes after whatever, nobody notices.
#[test]
fn g17_policies_exchanged_under_load() {
    alone(async {
        let before = Footprint::take();
        let fleet = Fleet::start(Duration::from_millis(1));
        let channel = ready(reference(&fleet.addresses())).await;
        let client = Keyed::new(channel.clone());
        let load = load(size::calls(1_000));
        let (mut plan, mut in_force) = (Plan::of(load.calls), Vec::new());
        let calls = load.run_with(client.clone(), |number| {
            if let Some(policy) = plan.due(number) {
                let picks = Arc::new(AtomicU64::new(0));
                in_force.push(picks.clone());
                let exchanged = channel.set_policy(Counted { policy, picks });
                exchanged.expect("each can work as it is");
            }
            ControlFlow::Continue(())
        });
        let mut calls = calls.await;
        assert_eq!(in_force.len(), EXCHANGES);
        let picks = |policy: &AtomicU64| policy.load(Ordering::Relaxed);
        // The last is in force in the end, however busy the machine was.
        let last = &in_force[EXCHANGES - 1];
        let more = Load {
            first: load.first + load.calls,
            ..load
        };
        let running = more.run_until_stopped(&client);
        until("the last policy is in force", || picks(last) > 0).await;
        calls.extend(running.stop().await);
        let verdict = fleet.ledger.audit(&calls);
        let all: Vec<u64> = in_force.iter().map(|policy| picks(policy)).collect();
        println!("{verdict}\n  picks of each policy: {all:?}");
        verdict.assert_unnoticed();
        // The exchanges took place. Two that come within some milliseconds are one.
        let used = all.iter().filter(|&&picks| picks > 0).count();
        figure("policies that chose, of 10", used as f64, "");
        assert!(used >= EXCHANGES / 2, "{all:?}");
        drop(client);
        clean(channel, fleet, &before).await;
    });
}

/// G17, the control: whoever ends its channel for each exchange and then makes another fails calls in between.
#[test]
fn g17_control_a_channel_for_each_policy_fails_calls() {
    alone(async {
        let fleet = Fleet::start(Duration::from_millis(1));
        let addresses = fleet.addresses();
        let client = Keyed::new(ready(reference(&addresses)).await);
        let load = load(1_000);
        let (mut plan, mut exchanges) = (Plan::of(load.calls), Vec::new());
        let calls = load.run_with(client.clone(), |number| {
            if let Some(policy) = plan.due(number) {
                let (client, addresses) = (client.clone(), addresses.clone());
                exchanges.push(tokio::spawn(async move {
                    client.channel().close().await;
                    let channel = reference(&addresses).build().expect("in range");
                    channel.set_policy(policy).expect("it can work as it is");
                    client.replace(channel);
                }));
            }
            ControlFlow::Continue(())
        });
        let verdict = fleet.ledger.audit(&calls.await);
        println!("{verdict}");
        for exchange in exchanges {
            exchange.await.expect("no panic");
        }
        verdict.assert_true();
        assert!(verdict.failed > 0, "{verdict}");
        assert_eq!(verdict.executed[0], verdict.failed, "{verdict}");
    });
}
