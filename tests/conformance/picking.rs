//! Who is picked, dialled or waited for when not all are ready.

use std::sync::Arc;

use equipoise::load::{Cells, Load};
use equipoise::policy::{Connect, Decision, Member, PickInfo, PickResult, Policy, RingHash};
use equipoise::rng::Rng;
use equipoise::{Address, Connectivity, Endpoint, EndpointId, Timestamp};
use serde_json::Value;
use xxhash_rust::xxh64::xxh64;

use crate::{ring_hash, rows, text, whole};

fn state(name: &str) -> Connectivity {
    match name {
        "IDLE" | "I" => Connectivity::Idle,
        "CONNECTING" | "C" => Connectivity::Connecting,
        "READY" | "R" => Connectivity::Ready,
        "TRANSIENT_FAILURE" | "T" => Connectivity::TransientFailure,
        other => panic!("no state: {other}"),
    }
}

/// Members by their addresses, whose hash keys they are.
fn decide(policy: &mut RingHash, members: &[(&str, Connectivity)]) -> Decision {
    let mut cells = Cells::new(policy.scoring());
    let member = |(slot, &(address, state)): (usize, &(&str, Connectivity))| {
        let address: Address = address.parse().expect("an address");
        Member {
            id: EndpointId::new(slot as u32, 0),
            state,
            weight: 1,
            place: Some(slot),
            endpoint: Arc::new(Endpoint::new(address)),
            load: Arc::new(Load::new(cells.cell(slot))),
        }
    };
    let members: Vec<Member> = members.iter().enumerate().map(member).collect();
    policy.update(&members, Timestamp::ZERO, &mut Rng::new(1))
}

#[test]
fn every_row_of_the_table_of_picks() {
    let vectors = ring_hash();
    let table = &vectors["edge"]["picker_walk"];
    let mut rings = rows(&vectors["rings"]).iter();
    let ring = rings.find(|ring| ring["name"] == table["ring"]);
    let ring = ring.expect("the table's ring");
    let (min, max) = (whole(&ring["min_ring_size"]), whole(&ring["max_ring_size"]));
    let order: Vec<&str> = rows(&table["walk_order"]).iter().map(text).collect();
    let hash = xxh64(text(&table["key"]).as_bytes(), 0);
    for row in rows(&table["rows"]) {
        let states = rows(&row["states_in_walk_order"]).iter();
        let members: Vec<(&str, Connectivity)> = order
            .iter()
            .copied()
            .zip(states.map(|name| state(text(name))))
            .collect();
        let mut policy = RingHash::default().with_sizes(min, max);
        let picker = decide(&mut policy, &members).picker;
        let id = |address: &Value| {
            let slot = order.iter().position(|known| address == known);
            EndpointId::new(slot.expect("it is of the ring") as u32, 0)
        };
        for (mode, key, random) in [
            ("keyed", Some(hash), !hash),
            ("random_hash_mode", None, hash),
        ] {
            let cell = &row[mode];
            let connect = cell.get("connect").map(id);
            let expected = match (text(&cell["result"]), connect) {
                ("pick", None) => PickResult::Pick(id(&cell["endpoint"])),
                ("pick", Some(connect)) => PickResult::PickAndConnect {
                    id: id(&cell["endpoint"]),
                    connect,
                },
                ("queue", connect) => PickResult::Queue { connect },
                ("fail", None) => PickResult::Fail,
                other => panic!("not understood: {other:?}"),
            };
            let info = PickInfo {
                now: Timestamp::ZERO,
                random,
                path: "/a.B/C",
                hash: key,
                avoid: &[],
            };
            assert_eq!(picker.pick(&info), expected, "{mode} {members:?}");
        }
    }
}

/// gRPC's ring connects by itself while its state, by the table, is CONNECTING or TRANSIENT_FAILURE and nobody
/// is being connected. Ours does so while all are idle too.
#[test]
fn an_idle_endpoint_is_connected_without_a_call_as_the_table_of_states_has_it() {
    let vectors = ring_hash();
    let table = vectors["edge"]["aggregation"].as_object().expect("rows");
    for (letters, whole) in table {
        let addresses: Vec<String> = (0..letters.len())
            .map(|n| format!("10.0.0.{}:80", n + 1))
            .collect();
        let states = letters.chars().map(|letter| state(&letter.to_string()));
        let members: Vec<(&str, Connectivity)> =
            addresses.iter().map(|a| &**a).zip(states).collect();
        let idle = members.iter().position(|(_, s)| *s == Connectivity::Idle);
        let expected = idle.filter(|_| match text(whole) {
            "READY" => false,
            "CONNECTING" | "TRANSIENT_FAILURE" => !letters.contains('C'),
            "IDLE" => true,
            other => panic!("no state: {other}"),
        });
        let Connect::Only(connect) = decide(&mut RingHash::default(), &members).connect else {
            panic!("it connects to everyone");
        };
        let mut connected = connect.iter().map(|id| id.slot());
        let connected = connected.find(|&slot| members[slot].1 == Connectivity::Idle);
        assert_eq!(connected, expected, "{letters}");
        let failed = members
            .iter()
            .zip(0..)
            .filter(|((_, s), _)| *s == Connectivity::TransientFailure);
        for (_, slot) in failed {
            assert!(
                connect.contains(&EndpointId::new(slot, 0)),
                "{letters}: tried again"
            );
        }
    }
}
