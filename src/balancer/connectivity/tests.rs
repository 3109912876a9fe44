//! One endpoint's transitions, news by news, in literal milliseconds.

use super::*;
use Connectivity::{Connecting, Idle, Ready, TransientFailure};

const STAGGER: Duration = Duration::from_millis(250);

/// A link with its surroundings, and a hand to play the balancer's part.
struct Bench {
    link: Link,
    endpoint: Endpoint,
    backoff: Backoff,
    rng: Rng,
    names: u64,
    served: u64,
    most: usize,
}

impl Bench {
    fn new(addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|text| text.parse().unwrap());
        Self {
            link: Link::new(),
            endpoint: Endpoint::with_addresses(addresses).unwrap(),
            backoff: Backoff {
                jitter: 0.0,
                ..Backoff::default()
            },
            rng: Rng::new(1),
            names: 0,
            served: 0,
            most: 1,
        }
    }

    fn tell(&mut self, millis: u64, news: News) -> Effects {
        self.link.handle(
            news,
            Around {
                endpoint: &self.endpoint,
                backoff: &self.backoff,
                most: self.most,
                served: &|| self.served,
                now: Timestamp::from_millis(millis),
                rng: &mut self.rng,
            },
        )
    }

    fn turn(&mut self, millis: u64) -> Option<(AttemptId, String)> {
        let name = AttemptId(self.names);
        self.names += 1;
        let now = Timestamp::from_millis(millis);
        let address = self.link.take_turn(name, STAGGER, now)?;
        Some((name, address.to_string()))
    }

    fn dial(&mut self, millis: u64) -> AttemptId {
        self.turn(millis).expect("it wants to dial").0
    }

    fn connected(millis: u64) -> (Self, AttemptId) {
        let mut bench = Self::new(&["10.0.0.1:1"]);
        assert!(bench.tell(millis, News::Wished(Wish::Connect)).join_line);
        let name = bench.dial(millis);
        assert_eq!(
            bench.tell(millis, News::Connected(name)),
            Effects::default()
        );
        assert_eq!(bench.link.state(), Ready);
        (bench, name)
    }

    fn at(&self) -> Option<u64> {
        self.link.deadline().map(|at| at.as_nanos() / 1_000_000)
    }
}

fn why() -> ConnectError {
    ConnectError::new("refused")
}

fn ids(names: &[AttemptId]) -> Effects {
    Effects {
        abandon: names.to_vec(),
        ..Effects::default()
    }
}

#[test]
fn interleaving_follows_the_published_orders() {
    // misc.json: happy_eyeballs_interleave.
    let vectors: [(&str, &[usize]); 8] = [
        ("444", &[0, 1, 2]),
        ("6644", &[0, 2, 1, 3]),
        ("46", &[0, 1]),
        ("4446", &[0, 3, 1, 2]),
        ("64446", &[0, 1, 4, 2, 3]),
        ("4466uu", &[0, 2, 4, 1, 3, 5]),
        ("u4466", &[0, 1, 3, 2, 4]),
        ("666u4", &[0, 3, 4, 1, 2]),
    ];
    for (families, expected) in vectors {
        let addresses: Vec<Address> = families
            .chars()
            .zip(1..)
            .map(|(family, port)| match family {
                '4' => format!("10.0.0.1:{port}").parse().unwrap(),
                '6' => format!("[fd00::1]:{port}").parse().unwrap(),
                _ => format!("unix:/s/{port}").parse().unwrap(),
            })
            .collect();
        let order: Vec<usize> = interleave(addresses.clone(), |address| address)
            .iter()
            .map(|tried| addresses.iter().position(|a| a == tried).unwrap())
            .collect();
        assert_eq!(order, expected, "{families}");
    }
}

#[test]
fn nobody_dials_what_nobody_wants() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    assert_eq!(bench.link.state(), Idle);
    assert_eq!(bench.tell(0, News::Wished(Wish::Keep)), Effects::default());
    assert_eq!(bench.turn(0), None);
    assert_eq!(bench.at(), None);
}

#[test]
fn addresses_are_tried_a_stagger_apart() {
    let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
    assert!(bench.tell(0, News::Wished(Wish::Connect)).join_line);
    assert_eq!(bench.link.state(), Connecting);
    let (a, address) = bench.turn(0).unwrap();
    assert_eq!(address, "10.0.0.1:1");
    assert_eq!(bench.turn(0), None, "one turn, one address");
    assert_eq!(bench.at(), Some(250));
    assert_eq!(bench.tell(249, News::Tick), Effects::default());
    assert!(bench.tell(250, News::Tick).join_line);
    assert!(!bench.tell(250, News::Tick).join_line, "already in line");
    let (b, _) = bench.turn(260).unwrap();
    assert_eq!(bench.at(), Some(510));
    // The first to answer wins, whichever that is; the rest are abandoned and the third is not tried.
    assert_eq!(bench.tell(300, News::Connected(b)), ids(&[a]));
    assert_eq!(bench.link.state(), Ready);
    assert_eq!(bench.at(), None);
}

#[test]
fn a_failure_brings_the_next_address_at_once() {
    let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
    bench.tell(0, News::Wished(Wish::Connect));
    let a = bench.dial(0);
    let effects = bench.tell(3, News::Failed(a, why()));
    assert!(effects.join_line && !effects.resolve);
    assert_eq!(bench.link.state(), Connecting, "the pass is not over");
    let (b, address) = bench.turn(3).unwrap();
    assert_eq!(address, "10.0.0.2:1");
    let effects = bench.tell(9, News::Failed(b, why()));
    assert!(effects.resolve && !effects.join_line);
    assert_eq!(bench.link.state(), TransientFailure);
    assert_eq!(bench.at(), Some(1_009));
    assert_eq!(bench.link.why().unwrap().to_string(), "refused");
}

#[test]
fn the_pass_waits_for_an_attempt_still_under_way() {
    let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
    bench.tell(0, News::Wished(Wish::Connect));
    let a = bench.dial(0);
    bench.tell(250, News::Tick);
    let b = bench.dial(250);
    assert_eq!(bench.tell(251, News::Failed(b, why())), Effects::default());
    assert_eq!((bench.link.state(), bench.at()), (Connecting, None));
    assert_eq!(bench.tell(300, News::Connected(a)), Effects::default());
    assert_eq!(bench.link.state(), Ready);
}

#[test]
fn failures_wait_longer_and_longer_and_look_failed_meanwhile() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    bench.tell(0, News::Wished(Wish::Connect));
    for (dialled, again) in [(0, 1_000), (1_000, 2_600), (2_600, 5_160), (5_160, 9_256)] {
        let name = bench.dial(dialled);
        bench.tell(dialled, News::Failed(name, why()));
        assert_eq!(bench.at(), Some(again));
        assert!(!bench.tell(again - 1, News::Tick).join_line);
        assert!(bench.tell(again, News::Tick).join_line);
        assert_eq!(bench.link.state(), TransientFailure, "sticky until ready");
    }
    let name = bench.dial(9_256);
    bench.tell(9_300, News::Connected(name));
    assert_eq!(bench.link.state(), Ready);
}

#[test]
fn one_lost_after_a_stable_time_is_redialled_at_once() {
    let (mut bench, name) = Bench::connected(0);
    let effects = bench.tell(250, News::Lost(name, why()));
    assert!(effects.join_line && effects.resolve);
    assert_eq!(bench.link.state(), Connecting);
    let name = bench.dial(250);
    bench.tell(251, News::Failed(name, why()));
    assert_eq!(bench.at(), Some(1_251), "the first failure in a row");
}

#[test]
fn having_been_ready_ends_the_failure() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    bench.tell(0, News::Wished(Wish::Connect));
    let name = bench.dial(0);
    bench.tell(0, News::Failed(name, why()));
    bench.tell(1_000, News::Tick);
    let name = bench.dial(1_000);
    bench.tell(1_000, News::Connected(name));
    bench.tell(2_000, News::Lost(name, why()));
    assert_eq!(bench.link.state(), Connecting);
}

#[test]
fn one_lost_too_soon_is_forgiven_once_and_then_counts_as_a_failure() {
    let (mut bench, name) = Bench::connected(0);
    assert!(bench.tell(1, News::Lost(name, why())).join_line, "once");
    assert_eq!(bench.link.state(), Connecting);
    let name = bench.dial(1);
    bench.tell(2, News::Connected(name));
    let effects = bench.tell(249, News::Lost(name, why()));
    assert!(effects.resolve && !effects.join_line);
    assert_eq!(
        (bench.link.state(), bench.at()),
        (TransientFailure, Some(1_249))
    );
    bench.tell(1_249, News::Tick);
    let name = bench.dial(1_249);
    bench.tell(1_249, News::Connected(name));
    assert_eq!(bench.link.state(), Ready);
    bench.tell(1_250, News::Lost(name, why()));
    assert_eq!(
        bench.at(),
        Some(2_850),
        "the second failure in a row: 1.6 s"
    );
    bench.tell(2_850, News::Tick);
    let name = bench.dial(2_850);
    bench.tell(2_850, News::Connected(name));
    assert!(
        bench.tell(3_100, News::Lost(name, why())).join_line,
        "stable"
    );
    let name = bench.dial(3_100);
    bench.tell(3_100, News::Connected(name));
    assert!(
        bench.tell(3_101, News::Lost(name, why())).join_line,
        "forgiven again"
    );
}

#[test]
fn one_lost_too_soon_that_was_of_use_is_redialled_at_once_each_time() {
    let (mut bench, mut name) = Bench::connected(0);
    for millis in (1..10).map(|n| 10 * n) {
        bench.served += OF_USE;
        let effects = bench.tell(millis, News::Lost(name, why()));
        assert!(effects.join_line && effects.resolve);
        assert_eq!(bench.link.state(), Connecting);
        name = bench.dial(millis);
        bench.tell(millis, News::Connected(name));
    }
    // Without use it is forgiven once, as ever.
    bench.served += OF_USE - 1;
    assert!(bench.tell(91, News::Lost(name, why())).join_line);
    let name = bench.dial(91);
    bench.tell(91, News::Connected(name));
    bench.served += OF_USE - 1;
    assert!(!bench.tell(92, News::Lost(name, why())).join_line);
    assert_eq!(
        (bench.link.state(), bench.at()),
        (TransientFailure, Some(1_092))
    );
}

#[test]
fn one_lost_that_nobody_wants_is_left_alone() {
    let (mut bench, name) = Bench::connected(0);
    bench.tell(10, News::Wished(Wish::Keep));
    assert_eq!(bench.link.state(), Ready, "it keeps what it has");
    let effects = bench.tell(900, News::Lost(name, why()));
    assert!(effects.resolve && !effects.join_line);
    assert_eq!((bench.link.state(), bench.at()), (Idle, None));
}

#[test]
fn a_worn_one_is_replaced_before_it_is_retired() {
    let (mut bench, old) = Bench::connected(0);
    assert!(bench.tell(5_000, News::Worn(old)).join_line);
    assert!(
        !bench.tell(5_000, News::Worn(old)).join_line,
        "one pass at a time"
    );
    assert_eq!(bench.link.state(), Ready);
    let new = bench.dial(5_000);
    let effects = bench.tell(5_010, News::Connected(new));
    assert_eq!(effects.retire, [old]);
    assert_eq!((bench.link.state(), bench.link.connections()), (Ready, 1));
    // The retired one is nobody's any more.
    assert_eq!(
        bench.tell(5_020, News::Lost(old, why())),
        Effects::default()
    );
    assert_eq!(bench.link.state(), Ready);
}

#[test]
fn a_worn_one_is_replaced_whoever_wants_it() {
    let (mut bench, old) = Bench::connected(0);
    bench.tell(1_000, News::Wished(Wish::Keep));
    assert!(bench.tell(5_000, News::Worn(old)).join_line);
    let new = bench.dial(5_000);
    bench.tell(5_000, News::Failed(new, why()));
    assert!(bench.tell(6_000, News::Tick).join_line, "and tried again");
    let new = bench.dial(6_000);
    assert_eq!(bench.tell(6_001, News::Connected(new)).retire, [old]);
    let effects = bench.tell(9_000, News::Lost(new, why()));
    assert!(!effects.join_line, "one that is lost is not");
    assert_eq!(bench.link.state(), Idle);
}

#[test]
fn a_worn_one_lost_before_its_replacement_came() {
    let (mut bench, old) = Bench::connected(0);
    bench.tell(5_000, News::Worn(old));
    let new = bench.dial(5_000);
    assert!(!bench.tell(5_001, News::Lost(old, why())).join_line);
    assert_eq!(
        bench.link.state(),
        Connecting,
        "its replacement is under way"
    );
    bench.tell(5_002, News::Connected(new));
    assert_eq!(bench.link.state(), Ready);
}

#[test]
fn a_replacement_that_fails_waits_and_leaves_the_worn_one_in_use() {
    let (mut bench, old) = Bench::connected(0);
    bench.tell(5_000, News::Worn(old));
    let new = bench.dial(5_000);
    bench.tell(5_000, News::Failed(new, why()));
    assert_eq!((bench.link.state(), bench.at()), (Ready, Some(6_000)));
    bench.tell(5_500, News::Lost(old, why()));
    assert_eq!(
        (bench.link.state(), bench.at()),
        (TransientFailure, Some(6_000))
    );
}

#[test]
fn one_that_wears_out_at_once_is_not_replaced_in_a_tight_loop() {
    let (mut bench, old) = Bench::connected(0);
    assert_eq!(bench.tell(1, News::Worn(old)), Effects::default());
    assert_eq!((bench.link.state(), bench.at()), (Ready, Some(1_001)));
    assert!(bench.tell(1_001, News::Tick).join_line);

    let (mut bench, old) = Bench::connected(0);
    bench.tell(1, News::Worn(old));
    assert!(
        bench.tell(500, News::Lost(old, why())).join_line,
        "it had lived long enough"
    );
    assert_eq!(bench.link.state(), Connecting);
}

#[test]
fn asked_for_is_good_for_one_pass() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    assert!(bench.tell(0, News::Asked).join_line);
    assert!(!bench.tell(0, News::Asked).join_line, "once");
    let name = bench.dial(0);
    bench.tell(0, News::Failed(name, why()));
    assert_eq!(bench.at(), Some(1_000));
    assert!(
        !bench.tell(1_000, News::Tick).join_line,
        "nobody asked again"
    );
    assert_eq!(bench.link.state(), TransientFailure);
    assert!(bench.tell(1_100, News::Asked).join_line);
    let name = bench.dial(1_100);
    bench.tell(1_100, News::Failed(name, why()));
    assert!(
        !bench.tell(1_200, News::Asked).join_line,
        "the backoff holds"
    );
    assert!(bench.tell(2_700, News::Tick).join_line, "asked meanwhile");
}

#[test]
fn one_let_go_of_that_is_asked_for_and_fails_is_forgiven_after_its_backoff() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    bench.tell(0, News::Wished(Wish::LetGo));
    assert!(bench.tell(0, News::Asked).join_line);
    let name = bench.dial(0);
    bench.tell(0, News::Failed(name, why()));
    assert_eq!(bench.link.state(), TransientFailure);
    assert!(!bench.tell(1_000, News::Tick).join_line);
    assert_eq!((bench.link.state(), bench.at()), (Idle, None));
    assert!(
        bench.tell(1_001, News::Asked).join_line,
        "and may be asked again"
    );
}

#[test]
fn a_wish_withdrawn_calls_off_only_what_has_not_begun() {
    let mut bench = Bench::new(&["10.0.0.1:1", "10.0.0.2:1"]);
    bench.tell(0, News::Wished(Wish::Connect));
    bench.tell(0, News::Wished(Wish::Keep));
    assert_eq!((bench.link.state(), bench.turn(0)), (Idle, None));
    assert!(bench.tell(0, News::Wished(Wish::Connect)).join_line);
    let a = bench.dial(0);
    bench.tell(1, News::Failed(a, why()));
    bench.tell(2, News::Wished(Wish::Keep));
    let b = bench.dial(2);
    bench.tell(3, News::Failed(b, why()));
    assert_eq!(bench.at(), Some(1_003));
    assert!(!bench.tell(1_003, News::Tick).join_line);
    bench.tell(1_004, News::Wished(Wish::Connect));
    assert_eq!(bench.link.state(), TransientFailure);
    assert!(bench.turn(1_004).is_some());
}

#[test]
fn news_of_the_past_changes_nothing() {
    let (mut bench, name) = Bench::connected(0);
    let stranger = AttemptId(77);
    for news in [
        News::Connected(name),
        News::Failed(name, why()),
        News::Connected(stranger),
        News::Failed(stranger, why()),
        News::Worn(stranger),
        News::Lost(stranger, why()),
        News::Tick,
    ] {
        assert_eq!(bench.tell(1, news), Effects::default());
        assert_eq!((bench.link.state(), bench.at()), (Ready, None));
    }
}

/// A link with room for three connections that has one, made long ago.
fn roomy() -> (Bench, AttemptId) {
    let (mut bench, name) = Bench::connected(0);
    bench.most = 3;
    bench.tell(10_000, News::Tick);
    (bench, name)
}

#[test]
fn one_more_is_dialled_whoever_wishes_for_it_but_where_it_is_let_go() {
    let (mut bench, _) = roomy();
    bench.tell(10_000, News::Wished(Wish::Keep));
    assert!(bench.tell(10_001, News::Crowded).join_line);
    // Called off and wanted again, it is still the one pass.
    assert_eq!(bench.tell(10_002, News::Wished(Wish::Connect)).retire, []);
    assert!(bench.tell(10_002, News::Wished(Wish::Keep)).join_line);
    bench.dial(10_002);

    let (mut bench, name) = roomy();
    assert_eq!(bench.tell(10_000, News::Wished(Wish::LetGo)).retire, [name]);
    assert!(bench.tell(10_000, News::Asked).join_line);
    let name = bench.dial(10_000);
    bench.tell(10_001, News::Connected(name));
    assert_eq!(bench.tell(20_000, News::Crowded), Effects::default());
}

#[test]
fn crowded_says_nothing_where_there_is_no_connection() {
    let mut bench = Bench::new(&["10.0.0.1:1"]);
    bench.most = 3;
    assert_eq!(bench.tell(0, News::Crowded), Effects::default());
    assert_eq!(bench.link.state(), Idle);
    bench.tell(0, News::Wished(Wish::Connect));
    bench.tell(0, News::Crowded);
    let name = bench.dial(0);
    bench.tell(1, News::Connected(name));
    assert_eq!(bench.tell(2, News::Tick), Effects::default(), "forgotten");
}

#[test]
fn a_worn_one_is_replaced_at_the_limit_too() {
    let (mut bench, old) = roomy();
    bench.most = 2;
    bench.tell(10_000, News::Crowded);
    let second = bench.dial(10_000);
    bench.tell(10_001, News::Connected(second));
    assert!(bench.tell(20_000, News::Worn(old)).join_line);
    assert_eq!(bench.tell(20_000, News::Crowded), Effects::default());
    let third = bench.dial(20_000);
    assert_eq!(bench.tell(20_001, News::Connected(third)).retire, [old]);
    assert_eq!(bench.link.connections(), 2);
    // Now the second is the oldest, and stays.
    assert_eq!(
        bench.tell(99_000, News::Usage(second, false)),
        Effects::default()
    );
    assert_eq!(
        bench.tell(99_000, News::Usage(third, false)).retire,
        [third]
    );
}

#[test]
fn a_failure_to_get_one_more_counts_only_if_the_rest_is_lost_meanwhile() {
    let (mut bench, name) = roomy();
    bench.tell(10_000, News::Crowded);
    let second = bench.dial(10_000);
    bench.tell(10_000, News::Failed(second, why()));
    assert_eq!((bench.link.state(), bench.at()), (Ready, Some(11_000)));
    bench.tell(10_500, News::Lost(name, why()));
    assert_eq!(
        (bench.link.state(), bench.at()),
        (TransientFailure, Some(11_000))
    );

    let (mut bench, name) = roomy();
    bench.tell(10_000, News::Crowded);
    let second = bench.dial(10_000);
    bench.tell(10_000, News::Failed(second, why()));
    bench.tell(11_000, News::Tick);
    assert!(bench.tell(20_000, News::Lost(name, why())).join_line);
    assert_eq!(bench.link.state(), Connecting, "that was long ago");
}

#[test]
fn extra_ones_that_are_closed_at_once_are_not_made_in_a_tight_loop() {
    let (mut bench, _) = roomy();
    assert!(bench.tell(10_000, News::Crowded).join_line);
    let second = bench.dial(10_000);
    bench.tell(10_001, News::Connected(second));
    bench.tell(10_002, News::Lost(second, why()));
    assert!(bench.tell(10_003, News::Crowded).join_line, "forgiven once");
    let third = bench.dial(10_003);
    bench.tell(10_004, News::Connected(third));
    bench.tell(10_005, News::Lost(third, why()));
    assert_eq!((bench.link.state(), bench.at()), (Ready, Some(11_005)));
    assert!(!bench.tell(10_006, News::Crowded).join_line);
    assert!(bench.tell(11_005, News::Tick).join_line);
}
