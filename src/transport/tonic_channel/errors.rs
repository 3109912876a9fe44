//! What the errors of tonic's channels mean for a call. They wrap each other several deep; what matters is found
//! along the chain of sources.

use std::error::Error;
use std::fmt;
use std::io;

use tonic::Status;

use super::super::Reached;
use super::super::failure::{Failure, Phase, judge};
use super::super::link::Link;

/// tonic asked for a second connection.
#[derive(Debug)]
pub(super) struct Spent;

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection has ended")
    }
}

impl Error for Spent {}

/// What an error means.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) status: Status,
    pub(super) reached: Reached,
    /// The connection takes no more calls.
    pub(super) gone: bool,
}

/// What `error` means for a call on `link`; `None` where the chain holds nothing that is known.
pub(super) fn verdict(error: &(dyn Error + 'static), phase: Phase, link: &Link) -> Option<Verdict> {
    if let Some(error) = find::<h2::Error>(error) {
        let (status, reached) = judge(error, phase, link);
        return Some(Verdict {
            status,
            reached,
            gone: error.is_io() || error.is_go_away(),
        });
    }
    let hyper = find::<hyper::Error>(error);
    let queued = hyper.is_some_and(hyper::Error::is_canceled) || find::<Spent>(error).is_some();
    let (failure, phase, gone) = if queued {
        // hyper had not taken it off its queue, or tonic found the connection gone.
        (Failure::Lost, Phase::Opening, true)
    } else if find::<io::Error>(error).is_some() {
        // hyper turns the socket's errors back into what they were.
        (Failure::Lost, phase, true)
    } else if find::<tonic::TimeoutExpired>(error).is_some() {
        (Failure::Deadline, phase, false)
    } else {
        // Its keepalive found the server silent, or the task of the connection is no more. What was written
        // before that is not known to have been nothing.
        hyper?;
        (Failure::Lost, Phase::Answering, false)
    };
    Some(Verdict {
        status: failure.status(phase, text(error, link)),
        reached: failure.verdict(phase).reached,
        gone,
    })
}

/// The same for an error of a call without a response, which must mean something.
pub(super) fn judged(error: &(dyn Error + 'static), phase: Phase, link: &Link) -> Verdict {
    verdict(error, phase, link).unwrap_or_else(|| Verdict {
        status: match find::<Status>(error) {
            Some(status) => status.clone(),
            None => Failure::Unknown.status(Phase::Answering, text(error, link)),
        },
        reached: Failure::Unknown.verdict(Phase::Answering).reached,
        gone: false,
    })
}

fn text(error: &(dyn Error + 'static), link: &Link) -> String {
    match link.lost() {
        Some(reason) => reason.to_string(),
        None => format!("{}: {}", link.address, chain(error)),
    }
}

/// The error and its sources in one line, without what a source repeats.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for part in sources(error).map(ToString::to_string) {
        if line.is_empty() {
            line = part;
        } else if !line.contains(&part) {
            line = format!("{line}: {part}");
        }
    }
    line
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    sources(error).find_map(|error| error.downcast_ref())
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::super::super::link::tests::link;
    use super::*;

    #[test]
    fn an_error_that_wraps_nothing_known_is_unknown_and_stays_where_it_was() {
        let link = link();
        let judged = judged(&fmt::Error, Phase::Waiting { written: false }, &link);
        assert_eq!(judged.status.code(), tonic::Code::Unknown);
        assert_eq!((judged.reached, judged.gone), (Reached::Maybe, false));
        assert!(judged.status.source().is_none());
    }
}
