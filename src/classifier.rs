//! Whom does the end of a call speak of?

use crate::report::StatusCode;

/// Whom a call's status speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request, or nobody: an answer like any other.
    Nobody,
    /// How much the server has to do: load-aware policies give it less, and it is not ejected for it.
    Load,
    /// The server: load-aware policies give it less, and it counts towards its ejection.
    Server,
}

/// Says of each status code whom it speaks of; see [`Builder::classifier`](crate::Builder::classifier).
///
/// By default UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, UNKNOWN and DATA_LOSS speak of the server and
/// RESOURCE_EXHAUSTED of its load; NOT_FOUND, INVALID_ARGUMENT and the like are answers. An endpoint that answers as it
/// should must not be ejected for what it is asked.
///
/// A failure with a `grpc-retry-pushback-ms` speaks of load, whatever its code: the server was well enough to ask for
/// time.
///
/// ```
/// use equipoise::{Blame, Channel, Classifier, StatusCode};
///
/// // A service that answers ABORTED when it has lost its database, and UNKNOWN for bad requests.
/// let classifier = Classifier::default()
///     .with(StatusCode::ABORTED, Blame::Server)
///     .with(StatusCode::UNKNOWN, Blame::Nobody);
/// assert_eq!(classifier.blame(StatusCode::UNAVAILABLE), Blame::Server);
/// let channel = Channel::builder("static:127.0.0.1:50051")?
///     .classifier(classifier)
///     .build()?;
/// # Ok::<(), equipoise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classifier {
    // A bit for each code.
    server: u32,
    load: u32,
}

impl Default for Classifier {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Classifier {
    /// The default, where a constant is needed.
    pub(crate) const USUAL: Self = {
        const fn bit(code: StatusCode) -> u32 {
            1 << code.number()
        }
        Self {
            server: bit(StatusCode::UNAVAILABLE)
                | bit(StatusCode::DEADLINE_EXCEEDED)
                | bit(StatusCode::INTERNAL)
                | bit(StatusCode::UNKNOWN)
                | bit(StatusCode::DATA_LOSS),
            load: bit(StatusCode::RESOURCE_EXHAUSTED),
        }
    };

    /// The same, but for this code. Of OK nothing else can be said than that it is nobody's fault.
    pub fn with(mut self, code: StatusCode, blame: Blame) -> Self {
        let bit = match code {
            StatusCode::OK => 0,
            code => 1 << code.number(),
        };
        self.server &= !bit;
        self.load &= !bit;
        match blame {
            Blame::Nobody => {}
            Blame::Load => self.load |= bit,
            Blame::Server => self.server |= bit,
        }
        self
    }

    /// Whom `code` speaks of.
    #[inline]
    pub fn blame(&self, code: StatusCode) -> Blame {
        let bit = 1 << code.number();
        match (self.server & bit != 0, self.load & bit != 0) {
            (true, _) => Blame::Server,
            (false, true) => Blame::Load,
            (false, false) => Blame::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_codes_speak_of_the_server() {
        let usual = Classifier::default();
        for number in 0..StatusCode::COUNT as u8 {
            let code = StatusCode::new(number);
            let expected = match number {
                2 | 4 | 13 | 14 | 15 => Blame::Server,
                8 => Blame::Load,
                _ => Blame::Nobody,
            };
            assert_eq!(usual.blame(code), expected, "{number}");
            // The words of the front door mean the same.
            assert_eq!(
                code.is_server_fault(),
                expected != Blame::Nobody,
                "{number}"
            );
        }
    }

    #[test]
    fn each_code_can_be_told_otherwise_and_ok_cannot() {
        for number in 0..StatusCode::COUNT as u8 {
            let code = StatusCode::new(number);
            for blame in [Blame::Server, Blame::Load, Blame::Nobody] {
                let changed = Classifier::default().with(code, blame);
                let expected = match code {
                    StatusCode::OK => Blame::Nobody,
                    _ => blame,
                };
                assert_eq!(changed.blame(code), expected, "{number}");
                let others = (0..17).map(StatusCode::new).filter(|&other| other != code);
                for other in others {
                    assert_eq!(changed.blame(other), Classifier::default().blame(other));
                }
            }
        }
    }
}
