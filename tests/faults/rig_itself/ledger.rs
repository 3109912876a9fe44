//! The ledger finds every kind of defect, and nothing where there is none.

use std::time::Duration;

use tonic::Code;

use crate::rig::ledger::{Call, End, Execution, Ledger, Writer, audit, read};
use crate::rig::now;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call(id: u64, start: u64, end: u64, code: Code) -> Call {
    let not_sent = false;
    let (server, message) = ("b1".to_string(), format!("{code:?}"));
    let end = Some(End {
        at: ms(end),
        code,
        server,
        not_sent,
        message,
    });
    Call {
        id,
        due: ms(start),
        start: ms(start),
        deadline: Some(ms(1_000)),
        end,
    }
}

/// Hand-written lines, with times in milliseconds.
fn ledger(lines: &[&str]) -> Vec<Execution> {
    let mut text = String::new();
    for line in lines {
        let mut fields: Vec<String> = line.split(' ').map(str::to_string).collect();
        let time = match fields[0].as_str() {
            "begin" => 5,
            _ => 3,
        };
        fields[time].push_str("000000");
        text.push_str(&fields.join(" "));
        text.push('\n');
    }
    read(&text)
}

#[test]
fn a_healthy_ledger_has_nothing_to_say() {
    let calls = [call(1, 10, 15, Code::Ok), call(2, 11, 20, Code::Ok)];
    let lines = [
        "begin b1 7.0 1 1 11",
        "begin b2 8.0 2 1 12",
        "end b1 7.0 14 0",
        "end b2 8.0 19 0",
    ];
    let verdict = audit(&calls, &ledger(&lines));
    verdict.assert_unnoticed();
    assert_eq!(verdict.latencies, [ms(5), ms(9)]);
    assert_eq!((verdict.latency(0.5), verdict.worst()), (ms(5), ms(9)));
    assert_eq!((verdict.server("b1"), verdict.server("b2")), (1, 1));
    assert_eq!((verdict.overrun, verdict.retries), (ms(0), 0));
}

#[test]
fn a_lost_call_is_found() {
    let mut lost = call(3, 10, 15, Code::Ok);
    lost.end = None;
    let verdict = audit(&[lost], &ledger(&["begin b1 7.0 3 1 11"]));
    assert_eq!((verdict.lost, verdict.ok, verdict.failed), (vec![3], 0, 0));
    assert_eq!(verdict.executed, [0, 1, 0]);
}

#[test]
fn a_failed_call_is_counted_by_its_code() {
    let verdict = audit(&[call(1, 0, 5, Code::Unavailable)], &[]);
    assert_eq!((verdict.failed, verdict.code(Code::Unavailable)), (1, 1));
    assert_eq!(verdict.executed, [1, 0, 0]);
    assert!(
        verdict.to_string().contains("Unavailable × 1 Unavailable"),
        "{verdict}"
    );
}

#[test]
fn a_call_executed_twice_is_found_whether_announced_or_not() {
    for attempt in [1, 2] {
        let second = format!("begin b2 8.0 1 {attempt} 12");
        let lines = ["begin b1 7.0 1 1 11", &second, "end b2 8.0 14 0"];
        let verdict = audit(&[call(1, 10, 15, Code::Ok)], &ledger(&lines));
        assert_eq!(
            (verdict.executed, &verdict.repeated[..]),
            ([0, 0, 1], &[1][..])
        );
        assert_eq!(verdict.retries, attempt - 1);
    }
}

#[test]
fn the_same_server_executing_twice_is_found_across_a_restart() {
    let lines = [
        "begin b1 7.0 1 1 11",
        "begin b1 9.0 1 1 12",
        "end b1 9.0 14 0",
    ];
    let executions = ledger(&lines);
    assert_eq!(
        (executions[0].end, executions[1].end),
        (None, Some((ms(14), Code::Ok)))
    );
    assert_eq!(
        audit(&[call(1, 10, 15, Code::Ok)], &executions).executed,
        [0, 0, 1]
    );
}

#[test]
fn not_sent_but_executed_is_found_and_not_sent_alone_is_not() {
    let mut call = call(1, 0, 5, Code::Unavailable);
    call.end.as_mut().expect("it ended").not_sent = true;
    assert!(audit(&[call.clone()], &[]).belied.is_empty());
    let verdict = audit(&[call], &ledger(&["begin b1 7.0 1 1 6"]));
    assert_eq!(verdict.belied, [1]);
}

#[test]
fn ok_needs_a_server_that_said_ok() {
    let ok = [call(1, 0, 5, Code::Ok)];
    assert_eq!(audit(&ok, &[]).invented, [1]);
    assert_eq!(audit(&ok, &ledger(&["begin b1 7.0 1 1 1"])).invented, [1]);
    let failed = ["begin b1 7.0 1 1 1", "end b1 7.0 2 14"];
    assert_eq!(audit(&ok, &ledger(&failed)).invented, [1]);
}

#[test]
fn an_execution_nobody_asked_for_is_found() {
    let verdict = audit(&[], &ledger(&["begin b1 7.0 9 1 1", "end b1 7.0 2 0"]));
    assert_eq!((verdict.unasked, verdict.executed), (vec![9], [0, 0, 0]));
}

#[test]
fn latency_counts_from_the_schedule_and_overrun_from_the_start() {
    let mut late = call(1, 0, 1_130, Code::DeadlineExceeded);
    late.start = ms(100);
    let verdict = audit(&[late, call(2, 0, 900, Code::Ok)], &[]);
    assert_eq!((verdict.worst(), verdict.overrun), (ms(1_130), ms(30)));
}

#[test]
#[should_panic(expected = "executed unasked")]
fn the_assertion_fails_on_a_defect() {
    audit(&[], &ledger(&["begin b1 7.0 9 1 1"])).assert_true();
}

#[test]
fn what_is_written_is_read() {
    crate::rig::clean::alone(async { write_and_read() });
}

fn write_and_read() {
    let ledger = Ledger::create();
    let writer = Writer::open(ledger.path(), "b1").expect("the file is there");
    writer.begin(1, 1).finish(Code::Ok);
    drop(writer.begin(2, 3));
    std::mem::forget(writer.begin(3, 1));
    let executions = ledger.executions();
    let seen: Vec<_> = executions
        .iter()
        .map(|e| (e.id, e.attempt, e.end.map(|(_, code)| code)))
        .collect();
    let expected = [
        (1, 1, Some(Code::Ok)),
        (2, 3, Some(Code::Cancelled)),
        (3, 1, None),
    ];
    assert_eq!(seen, expected);
    assert!(
        executions
            .iter()
            .all(|e| e.server == "b1" && e.start <= now())
    );
}
