//! How many keys change hands when the list does?

use std::sync::Arc;

use equipoise::{Endpoint, Timestamp};

use super::client::{Client, endpoint};
use super::contenders::{Contender, Weights};
use super::scenario::{Change, Keys, Server};
use super::workload::key;

/// Keys that are followed, the most frequent ones: the shares of 10,000 are known to half a per cent.
const FOLLOWED: u64 = 10_000;

/// One change of the list, and what it did to the keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moves {
    /// Keys that have another owner than before, as a part of all.
    pub moved: f64,
    /// Those that had to have none: their owner stays, and the new one is not new.
    pub needless: f64,
}

/// A client without calls, connected to everyone, that is asked for the owner of every key.
#[derive(Debug)]
pub struct Observer {
    client: Client,
    keys: Vec<u64>,
    owners: Vec<Option<usize>>,
    weights: Weights,
    servers: usize,
    moves: Vec<Moves>,
}

impl Observer {
    pub fn new(contender: &Contender, endpoints: &[Arc<Endpoint>], keys: Keys) -> Self {
        let mut observer = Self {
            client: Client::new(contender, endpoints, 0),
            keys: (0..keys.distinct.min(FOLLOWED)).map(key).collect(),
            owners: Vec::new(),
            weights: contender.weights,
            servers: endpoints.len(),
            moves: Vec::new(),
        };
        observer.owners = observer.ask(Timestamp::ZERO);
        observer
    }

    /// The list has changed; `added` is the server that is new, if one is.
    pub fn see(&mut self, change: Change, added: Option<&Server>, now: Timestamp) {
        let (mut gone, mut new) = (None, None);
        match (change, added) {
            (Change::Kill(server), _) => {
                self.client.lose(server);
                gone = Some(server);
            }
            (Change::Remove(server), _) => {
                self.client.remove(server);
                gone = Some(server);
            }
            (Change::Add(_), Some(server)) => {
                let number = self.servers;
                self.servers += 1;
                self.client.add(endpoint(number, server, self.weights));
                new = Some(number);
            }
            (Change::Add(_) | Change::Slow { .. }, _) => return,
        }
        let owners = self.ask(now);
        let moved = |(before, after): &(&Option<usize>, &Option<usize>)| before != after;
        let pairs = || self.owners.iter().zip(&owners).filter(moved);
        let needless =
            pairs().filter(|(before, after)| **before != gone && (**after != new || new.is_none()));
        let all = self.keys.len() as f64;
        self.moves.push(Moves {
            moved: pairs().count() as f64 / all,
            needless: needless.count() as f64 / all,
        });
        self.owners = owners;
    }

    /// Connects to everyone who can be reached, and asks.
    fn ask(&mut self, now: Timestamp) -> Vec<Option<usize>> {
        self.client.connect_all(now);
        let owner = |&key: &u64| self.client.owner(key, now);
        self.keys.iter().map(owner).collect()
    }

    /// What it has seen, one for each change.
    pub fn moves(self) -> Vec<Moves> {
        self.moves
    }
}
