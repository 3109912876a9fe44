//! What the user asked for, checked before anything starts.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use lexopt::prelude::*;

pub const USAGE: &str = "\
Three real servers on loopback and a policy of one's own: the first leads, the others stand in. Calls are made all
the time, while the leader is stopped, comes and goes, and comes back.

usage: leader [options]

  --seconds S       how long each phase lasts, 1 to 600; default 1
  --hold-down MS    how long a leader that is back must be ready before it leads, 100 to 60000; default 500
  --callers C       how many calls at a time, 1 to 1000; default 8
  --help            this text

Exit status: 0 if every call was answered, and by whom it should be; 1 if not; 2 if the arguments are wrong.
";

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub phase: Duration,
    pub hold_down: Duration,
    pub callers: usize,
}

/// Reads the arguments, the name of the program not among them; `None` when help was asked for.
///
/// # Errors
///
/// One line that names the argument and the rule it breaks.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Options>, String> {
    parse(lexopt::Parser::from_args(arguments))
        // An argument may hold a line break; what is said of it must not.
        .map_err(|error| error.to_string().replace(char::is_control, " "))
}

fn parse(mut parser: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        phase: Duration::from_secs(1),
        hold_down: Duration::from_millis(500),
        callers: 8,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("seconds") => {
                options.phase = Duration::from_secs(number("--seconds", 1..=600, &mut parser)?);
            }
            Long("hold-down") => {
                let millis = number("--hold-down", 100..=60_000, &mut parser)?;
                options.hold_down = Duration::from_millis(millis);
            }
            Long("callers") => {
                options.callers = number("--callers", 1..=1_000, &mut parser)? as usize;
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn number(
    option: &str,
    range: RangeInclusive<u64>,
    parser: &mut lexopt::Parser,
) -> Result<u64, lexopt::Error> {
    let value = parser.value()?;
    let number = value.to_str().and_then(|text| text.parse().ok());
    let number = number.filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let (least, most) = range.into_inner();
        format!("{option} {value:?} is not a number in {least}..={most}").into()
    })
}
