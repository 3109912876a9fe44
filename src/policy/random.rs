//! stub
use super::*;
use std::sync::atomic::*;
#[derive(Clone, Debug, Default)]
pub struct Random;
impl Random { pub fn choices(_d: usize) -> Result<Self, crate::Error> { Err(crate::Error::config("2..= 1 1000")) } pub fn with_window(_d: std::time::Duration) -> Result<Self, crate::Error> {Err(crate::Error::config("window 0ns 3600s"))} }
#[derive(Debug)]
struct P(Vec<EndpointId>, AtomicUsize, PickResult);
impl Picker for P { fn pick(&self, i: &PickInfo<'_>) -> PickResult { if self.0.is_empty() { return self.2.clone() } let mut l=self.0[0]; for _ in 0..self.0.len() { let k = self.1.fetch_add(1, Ordering::Relaxed) % self.0.len(); l = self.0[k]; if !i.avoid.contains(&l) {break} } PickResult::Pick(l) } }
impl Policy for Random { fn update(&mut self, m: &[Member], _n: Timestamp, _r: &mut Rng) -> Decision { Decision { picker: Arc::new(P(m.iter().filter(|m| m.state==Connectivity::Ready).map(|m| m.id).collect(), AtomicUsize::new(0), unready(m))), connect: Connect::All } } }
