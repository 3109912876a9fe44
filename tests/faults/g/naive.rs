//! A policy without a memory: the fewest calls in flight, whatever became of the others.

use std::sync::Arc;

use equipoise::load::Load;
use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Picker, Policy};
use equipoise::rng::{Rng, scale};
use equipoise::{Connectivity, EndpointId, Timestamp};

#[derive(Clone, Debug)]
pub(super) struct Naive;

#[derive(Debug)]
struct Fewest(Vec<(EndpointId, Arc<Load>)>);

impl Policy for Naive {
    fn update(&mut self, members: &[Member], _: Timestamp, _: &mut Rng) -> Decision {
        let ready = members.iter();
        let ready = ready.filter(|member| member.state == Connectivity::Ready);
        let ready = ready.map(|member| (member.id, member.load.clone()));
        Decision {
            picker: Arc::new(Fewest(ready.collect())),
            connect: Connect::All,
            wake: None,
        }
    }
}

impl Picker for Fewest {
    fn pick(&self, info: &PickInfo<'_>) -> PickResult {
        // Each is read once: they change meanwhile.
        let loads = self.0.iter().map(|(id, load)| (*id, load.in_flight()));
        let (avoided, mut seats): (Vec<_>, Vec<_>) =
            loads.partition(|(id, _)| info.avoid.contains(id));
        if seats.is_empty() {
            seats = avoided;
        }
        let Some(least) = seats.iter().map(|(_, in_flight)| *in_flight).min() else {
            return PickResult::Queue { connect: None };
        };
        seats.retain(|(_, in_flight)| *in_flight == least);
        PickResult::Pick(seats[scale(info.random, seats.len())].0)
    }
}
