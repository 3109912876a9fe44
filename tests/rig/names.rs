//! A name whose addresses the test decides.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a look-up of the name finds.
#[derive(Clone, Debug)]
pub enum Found {
    Addresses(Vec<SocketAddr>),
    /// There is no such name.
    Gone,
    /// The name server has a problem of its own.
    Failure,
}

/// One name; clones are the same.
#[derive(Clone, Debug)]
pub struct Name(Arc<Mutex<(Found, usize)>>);

impl Name {
    pub fn of(addresses: &[SocketAddr]) -> Self {
        Self::new(Found::Addresses(addresses.to_vec()))
    }

    pub fn new(found: Found) -> Self {
        Self(Arc::new(Mutex::new((found, 0))))
    }

    /// From now on it is found so.
    pub fn set(&self, found: Found) {
        self.state().0 = found;
    }

    /// The same, by its addresses.
    pub fn moves_to(&self, addresses: &[SocketAddr]) {
        self.set(Found::Addresses(addresses.to_vec()));
    }

    /// How many times it was looked up.
    pub fn asked(&self) -> usize {
        self.state().1
    }

    /// Looks it up, whatever it is called.
    pub fn look_up(
        &self,
    ) -> impl Fn(String, u16) -> Ready<io::Result<Vec<SocketAddr>>> + Send + Sync + use<> {
        let name = self.clone();
        move |_, _| {
            let mut state = name.state();
            state.1 += 1;
            ready(match &state.0 {
                Found::Addresses(addresses) => Ok(addresses.clone()),
                Found::Gone => Err(io::ErrorKind::NotFound.into()),
                Found::Failure => Err(io::Error::other("SERVFAIL")),
            })
        }
    }

    fn state(&self) -> MutexGuard<'_, (Found, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
