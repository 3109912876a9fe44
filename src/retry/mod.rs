//! And if it fails?
//!
//! What a channel does beyond a call's first attempt, for the methods that are declared idempotent: tries it again when
//! it has failed ([`RetryPolicy`]), or sends it once more when it takes long ([`HedgingPolicy`]), by the rules of gRFC
//! A6. [`Attempts`] is one such call: a value that is told what became of each attempt and says what to do next.
//!
//! Nothing here makes an overload worse than it is: one [`RetryBudget`] bounds what all the calls of a channel
//! add, servers can ask for a pause or an end of it ([`Pushback`]), and [`Throttling`] keeps calls from servers that
//! refuse them anyway.
//!
//! A call that provably never reached a server goes elsewhere whatever its method is declared to be; that is the
//! channel's affair and counts for nothing here.

mod attempts;
mod budget;
mod policy;
mod pushback;
mod recent_latency;
mod throttle;
mod window;

pub use attempts::{Attempts, Step};
pub use budget::{Budget, RetryBudget};
pub use policy::{HedgingPolicy, RetryPolicy};
pub use pushback::Pushback;
pub use recent_latency::RecentLatency;
pub use throttle::{Throttle, Throttling};
