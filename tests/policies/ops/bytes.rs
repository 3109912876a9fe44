//! Sequences out of bytes, a few for each choice: what the fuzzer turns, `op()` draws.

use std::time::Duration;

use equipoise::{Connectivity, LoadReport, Outcome, StatusCode};

use super::fleet::{Avoid, Change, KEYS, Op, Reading, Start, WEIGHTS};
use super::input::Input;

/// Enough for a fleet to come to any state; more costs speed.
const STEPS: usize = 200;

/// The sequence that these bytes stand for.
pub fn sequence(input: &mut Input<'_>) -> (Start, Vec<Op>) {
    let members = match input.byte() {
        few @ 0..0xf0 => usize::from(few % 12),
        // Around one chunk of score cells.
        many => usize::from(many - 0xf0) + 58,
    };
    let start = Start {
        members,
        holes: input.byte() & 1 == 1,
        seed: u64::from(input.byte()),
    };
    let mut ops = Vec::new();
    while !input.is_over() && ops.len() < STEPS {
        ops.push(op(input));
    }
    (start, ops)
}

fn op(input: &mut Input<'_>) -> Op {
    match input.byte() % 16 {
        0..4 => Op::Update((0..1 + input.byte() % 4).map(|_| change(input)).collect()),
        4..9 => Op::Pick {
            late: input.byte() & 1 == 1,
            hash: match input.byte() {
                none @ 0..0x80 if none & 1 == 0 => None,
                few @ 0..0x80 => Some(u64::from(few) << 57),
                _ => Some(input.word()),
            },
            random: match input.byte() {
                0 => 0,
                0xff => u64::MAX,
                few @ 1..0x40 => u64::from(few) << 58,
                _ => input.word(),
            },
            avoid: avoid(input),
        },
        9..12 => Op::End(which(input), outcome(input), time(input)),
        12 => Op::Speak(which(input)),
        13 => {
            let all = input.byte() >= 0xc0;
            Op::Read((!all).then(|| which(input)), reading(input))
        }
        _ => Op::Pass(time(input)),
    }
}

fn which(input: &mut Input<'_>) -> usize {
    usize::from(input.byte())
}

fn change(input: &mut Input<'_>) -> Change {
    match input.byte() % 16 {
        0..5 => Change::Turn(which(input), state(input)),
        5..7 => Change::Add(input.choice(&WEIGHTS)),
        7..9 => Change::Remove(which(input)),
        9 => Change::Replace(usize::from(input.byte() % 4)),
        10 => Change::Reorder(input.byte().into()),
        11 | 12 => Change::Weigh(which(input), input.choice(&WEIGHTS)),
        13 => Change::Rename(which(input), input.choice(&KEYS)),
        _ => Change::TurnAll(state(input)),
    }
}

fn state(input: &mut Input<'_>) -> Connectivity {
    use Connectivity::{Connecting, Idle, Ready, TransientFailure};
    input.choice(&[Ready, Idle, Connecting, TransientFailure, Ready, Ready])
}

fn avoid(input: &mut Input<'_>) -> Avoid {
    match input.byte() {
        0..0x80 => Avoid::Those(Vec::new()),
        some @ 0x80..0xc0 => Avoid::Those((0..some % 6).map(|_| which(input)).collect()),
        0xc0..0xe0 => Avoid::AllBut(which(input)),
        0xe0..0xf0 => Avoid::Strangers(u32::from(input.byte() % 9)),
        _ => Avoid::All,
    }
}

fn outcome(input: &mut Input<'_>) -> Outcome {
    match input.byte() {
        0..0x60 => Outcome::Answered(StatusCode::OK),
        0x60..0xb0 => Outcome::Answered(StatusCode::UNAVAILABLE),
        0xb0..0xd0 => Outcome::Cancelled,
        0xd0..0xe0 => Outcome::Refused,
        other => Outcome::Answered(StatusCode::new(other - 0xe0)),
    }
}

fn reading(input: &mut Input<'_>) -> Reading {
    match input.byte() % 8 {
        0..4 => Reading::Report(LoadReport {
            cpu_utilization: figure(input),
            application_utilization: figure(input),
            mem_utilization: figure(input),
            rps: figure(input),
            eps: figure(input),
        }),
        4..7 => Reading::Bytes(number(input)),
        _ => Reading::BytesAnew(number(input)),
    }
}

/// What servers say of themselves, some of it hostile.
fn figure(input: &mut Input<'_>) -> f64 {
    match input.byte() {
        share @ 0..0x80 => f64::from(share) / 100.0,
        large @ 0x80..0xc0 => f64::from(large) * 1_000.0,
        0xc0..0xf0 => f64::from_bits(input.word()),
        0xf0..0xf4 => f64::NAN,
        0xf4..0xf8 => f64::INFINITY,
        0xf8..0xfc => f64::MAX,
        _ => -1.0,
    }
}

fn number(input: &mut Input<'_>) -> u64 {
    let shift = input.byte() % 64;
    u64::from(input.byte()) << shift
}

/// From nothing to the end of time.
fn time(input: &mut Input<'_>) -> Duration {
    match number(input) {
        u64::MAX => Duration::MAX,
        nanos => Duration::from_nanos(nanos),
    }
}
