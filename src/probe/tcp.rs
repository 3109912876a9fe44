//! Does an address still take connections?

use std::io;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::TcpCheck;
use crate::endpoint::Address;
use crate::report::{Health, Unfit};
use crate::rng::Rng;

/// The part of a pause by which chance makes it longer or shorter: a fleet of clients is not to knock in step.
const JITTER: f64 = 0.1;

/// What the checks of `address` say: serving at first, since it was just connected, and then each change.
pub(super) fn check(address: Address, check: TcpCheck, seed: u64) -> impl Stream<Item = Health> {
    let checker = Checker {
        address,
        check,
        rng: Rng::new(seed),
        row: Row::Well { failures: 0 },
        pause: None,
    };
    stream::unfold(checker, |mut checker| async move {
        let found = checker.next().await;
        Some((found, checker))
    })
}

struct Checker {
    address: Address,
    check: TcpCheck,
    rng: Rng,
    row: Row,
    /// What goes before the next check; nothing before the first word.
    pause: Option<Duration>,
}

impl Checker {
    /// The next change.
    async fn next(&mut self) -> Health {
        let interval = self.check.interval;
        let Some(mut pause) = self.pause else {
            // Servers that were connected together are not checked together.
            self.pause = Some(interval.mul_f64(self.rng.unit()));
            return Health::Serving;
        };
        loop {
            sleep(pause).await;
            pause = interval.mul_f64(1.0 + JITTER * (2.0 * self.rng.unit() - 1.0));
            self.pause = Some(pause);
            let found = match timeout(self.check.timeout, connect(&self.address)).await {
                Ok(Err(error)) if is_ours(&error) => continue,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("not connected within {:?}", self.check.timeout)),
                Ok(Ok(())) => Ok(()),
            };
            if self.row.turns(found.is_ok(), &self.check) {
                return match found {
                    Ok(()) => Health::Serving,
                    Err(why) => Health::NotServing(Unfit::Unreachable(why.into())),
                };
            }
        }
    }
}

/// What counts, and how many checks in a row have spoken against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Well { failures: u32 },
    Unwell { successes: u32 },
}

impl Row {
    /// Counts one check. `true` when the other state counts from now on.
    fn turns(&mut self, succeeded: bool, check: &TcpCheck) -> bool {
        *self = match (*self, succeeded) {
            (Self::Well { .. }, true) => Self::Well { failures: 0 },
            (Self::Unwell { .. }, false) => Self::Unwell { successes: 0 },
            (Self::Well { failures }, false) if failures + 1 < check.fall => Self::Well {
                failures: failures + 1,
            },
            (Self::Unwell { successes }, true) if successes + 1 < check.rise => Self::Unwell {
                successes: successes + 1,
            },
            (Self::Well { .. }, false) => {
                *self = Self::Unwell { successes: 0 };
                return true;
            }
            (Self::Unwell { .. }, true) => {
                *self = Self::Well { failures: 0 };
                return true;
            }
        };
        false
    }
}

/// Connects, and lets go at once.
async fn connect(address: &Address) -> io::Result<()> {
    match address {
        Address::Tcp(to) => TcpStream::connect(to).await.map(drop),
        #[cfg(unix)]
        Address::Unix(path) => tokio::net::UnixStream::connect(path).await.map(drop),
        #[cfg(not(unix))]
        Address::Unix(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no unix sockets",
        )),
    }
}

/// Whether it says nothing of the server, since we ran out of sockets or ports: the whole fleet would seem to be down.
fn is_ours(error: &io::Error) -> bool {
    // EMFILE and ENFILE have these numbers on every unix, and no name in std.
    let too_many_files = cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24));
    too_many_files || error.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    const QUICK: TcpCheck = TcpCheck {
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        fall: 3,
        rise: 2,
    };

    #[test]
    fn a_row_of_failures_fells_and_a_row_of_successes_raises() {
        let check = TcpCheck::default();
        let mut row = Row::Well { failures: 0 };
        let mut turns = Vec::new();
        for (nth, found) in (1..).zip("++--+---+-++-++--+".chars()) {
            if row.turns(found == '+', &check) {
                turns.push(nth);
            }
        }
        assert_eq!(turns, [8, 12]);
        let once = check.with_thresholds(1, 1).unwrap();
        assert!(row.turns(false, &once) && row.turns(true, &once));
    }

    #[tokio::test]
    async fn an_address_that_is_left_and_taken_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut found = Box::pin(check(address.into(), QUICK, 1));
        assert_eq!(found.next().await, Some(Health::Serving), "it is connected");
        // A few checks that find it.
        for _ in 0..3 {
            tokio::select! {
                other = found.next() => panic!("{other:?}"),
                knock = listener.accept() => drop(knock.unwrap()),
            }
        }
        drop(listener);
        let Some(Health::NotServing(Unfit::Unreachable(why))) = found.next().await else {
            panic!("nobody listens")
        };
        assert!(why.contains("refused"), "{why}");
        let listener = TcpListener::bind(address).await.unwrap();
        assert_eq!(found.next().await, Some(Health::Serving));
        drop(listener);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_unix_socket_likewise() {
        let path = std::env::temp_dir().join(format!("equipoise-tcp-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut found = Box::pin(check(Address::Unix(path.clone()), QUICK, 1));
        assert_eq!(found.next().await, Some(Health::Serving));
        tokio::select! {
            other = found.next() => panic!("{other:?}"),
            knock = listener.accept() => drop(knock.unwrap()),
        }
        drop(listener);
        let left = found.next().await.unwrap();
        assert!(
            matches!(left, Health::NotServing(Unfit::Unreachable(_))),
            "{left:?}"
        );
        std::fs::remove_file(&path).unwrap();
    }

    /// No server: TEST-NET-1 is routed nowhere, and the clock jumps over the waits.
    #[tokio::test(start_paused = true)]
    async fn silence_is_a_failure_after_the_timeout_and_pauses_vary() {
        let began = Instant::now();
        let slow = TcpCheck::default();
        let mut checker = Checker {
            address: "192.0.2.1:9".parse().unwrap(),
            check: slow,
            rng: Rng::new(7),
            row: Row::Well { failures: 0 },
            pause: None,
        };
        assert_eq!(checker.next().await, Health::Serving);
        assert_eq!(began.elapsed(), Duration::ZERO, "at once");
        let mut pauses = Vec::new();
        for _ in 0..200 {
            pauses.push(checker.pause.unwrap().as_secs_f64());
            checker.pause = None;
            checker.next().await;
        }
        let spread = |share: f64| pauses.iter().filter(|&&p| p < 10.0 * share).count();
        assert!((30..70).contains(&spread(0.25)), "{pauses:?}");
        assert_eq!(spread(1.0), 200);
    }

    #[test]
    fn what_is_our_own_doing_is_told_apart() {
        assert!(is_ours(&io::Error::from_raw_os_error(24)));
        assert!(is_ours(&io::Error::from(io::ErrorKind::AddrNotAvailable)));
        assert!(!is_ours(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
