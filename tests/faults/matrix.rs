//! The table of all rows of the fault matrix: what each asks for, and which tests hold it.
//!
//! A row that is built moves from [`State::Pending`] to [`State::Tests`] here, and nowhere else; a test that says it is
//! of a row (`g2_..`) and is not named here fails the build of the house (`full::no_row_is_forgotten`).

/// What is known of a row.
#[derive(Debug)]
pub(crate) enum State {
    Tests {
        /// Run with every seed in the full run.
        by: &'static [&'static str],
        /// Run once: what takes a minute, and leaves nothing to chance.
        long: &'static [&'static str],
        /// The negative controls.
        against: &'static [&'static str],
        /// What the row asks for besides, and is not built.
        lacks: Option<&'static str>,
    },
    /// It needs no socket: a test of the crate's own holds it.
    Unit {
        file: &'static str,
        test: &'static str,
    },
    /// What it needs is not there yet.
    Pending(&'static str),
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) fault: &'static str,
    pub(crate) criterion: &'static str,
    pub(crate) state: State,
}

/// All rows that must hold before any release.
pub(crate) const P0: &str = "\
    n1 n2 n3 n4 n5 n6 n7 n8 \
    b1 b2 b3 b4 b5 b6 b8 b9 b10 b11 b15 b16 b17 \
    c1 c2 c3 c4 c5 c9 \
    d1 d2 d3 d4 d5 d6 d9 d10 d11 \
    e1 e2 e3 e4 e5 e6 e9 e10 e11 \
    f1 f2 f3 f5 f6 f7 f9 f10 f11 f12 f14 f15 f16 f17 f21 f22 \
    g1 g2 g3 g4 g6 g7 g9 g10 g12 g13 g14 g17 g18 \
    h1 h2 h3 h4 h5 h6 h7 h8 h9 h10 h13 h16 h17 h19 \
    i1 i3";

/// The only tests that may be skipped for want of a privilege or a tool. Each row has another one that may not.
pub(crate) const MAY_SKIP: &[&str] = &[
    "n::namespaces::n5_dropped_by_the_kernel",
    "n::namespaces::n6_one_flow_dropped_by_the_kernel",
    "n::namespaces::n8_routes_that_lead_nowhere",
    "c::moved::c2_an_ip_that_moves_between_namespaces",
    "i::i1_by_libfaketime",
    "i::i2_a_late_monotonic_clock",
];

/// Rows whose tests spend a minute each with waiting: in the full run they do so side by side.
pub(crate) const SIDE_BY_SIDE: &[&str] = &["n1", "n8", "n17", "b4", "d1", "h13"];

/// Of these, those without a load worth the name: they do so beside all other rows.
pub(crate) const IDLE: &[&str] = &["n1", "b4", "h13"];

/// Rows of a minute's steady load that ask for no failure and for no time worth the name: the full run begins them
/// together.
pub(crate) const TOGETHER: &[&str] = &["b20", "d1", "d7"];

/// Makes the table, and an ignored test for each row: the full run.
macro_rules! rows {
    ($($id:ident: $fault:expr, $criterion:expr => $state:expr;)*) => {
        pub(crate) const ROWS: &[Row] = &[$(Row {
            id: stringify!($id),
            fault: $fault,
            criterion: $criterion,
            state: $state,
        }),*];

        mod at_full_size {
            $(
                #[test]
                #[ignore = "the full run: see tests/faults/full.rs"]
                fn $id() {
                    crate::full::run(stringify!($id));
                }
            )*
        }
    };
}

rows! {
    n1: "one of three addresses refuses from the start",
        "0 calls fail; at most 10 connects in 60 s" =>
    State::Tests {
        by: &["n::n1_refused_from_the_start"],
        long: &["n::n1_connects_are_paced"],
        against: &["n::n1_control_tonic_feeds_a_refused_address"],
        lacks: None,
    };
    n2: "a server is killed under load",
        "only calls in flight there fail, all UNAVAILABLE, none runs twice; no pick of it after 50 ms; with retries none fails" =>
    State::Tests {
        by: &[
            "n::n2_killed_under_load",
            "n::repeated::n2_a_kill_goes_unnoticed_where_calls_may_run_twice",
        ],
        long: &[],
        against: &["n::n2_control_tonic_keeps_failing_after_a_kill"],
        lacks: None,
    };
    n3: "a server is frozen, its TCP alive, for 8 s",
        "READY left within 2.5 s; round robin: at most 1,700 of 10,000 fail, policies by load: at most 50; READY again within 3 s, a quarter of the calls within 5 s" =>
    State::Tests {
        by: &[
            "n::silent::n3_frozen_under_round_robin",
            "n::silent::n3_frozen_under_least_request",
            "n::silent::n3_frozen_under_adaptive",
        ],
        long: &[],
        against: &["n::silent::n3_control_tonic_goes_on_with_a_frozen_server"],
        lacks: None,
    };
    n4: "one address swallows connections",
        "first answer within 200 ms, 0 calls fail; one connection wanted and two such addresses first: within 700 ms" =>
    State::Tests {
        by: &[
            "n::connecting::n4_a_black_hole_among_three",
            "n::connecting::n4_two_black_holes_before_the_first_that_answers",
        ],
        long: &[],
        against: &["n::connecting::n4_control_one_address_after_the_other_ends_in_the_first"],
        lacks: None,
    };
    n5: "packets to and from a server vanish for 5 s",
        "as N3; READY again within 3 s" =>
    State::Tests {
        by: &[
            "n::silent::n5_wire_silent_under_round_robin",
            "n::silent::n5_wire_silent_under_adaptive",
            "n::namespaces::n5_dropped_by_the_kernel",
        ],
        long: &[],
        against: &["n::silent::n5_control_tonic_goes_on_into_a_silent_wire"],
        lacks: None,
    };
    n6: "the network has forgotten a flow, new ones work",
        "no call on it later than 1 s after the unanswered ping, a replacement within 1.3 s, 0 calls fail after that" =>
    State::Tests {
        by: &[
            "n::silent::n6_a_forgotten_flow_is_replaced",
            "n::silent::n6_no_call_on_a_connection_that_owes_an_answer",
            "n::namespaces::n6_one_flow_dropped_by_the_kernel",
        ],
        long: &[],
        against: &["n::silent::n6_control_tonic_keeps_a_forgotten_flow"],
        lacks: None,
    };
    n7: "a connection is reset in mid-call",
        "calls in flight end within 20 ms, UNAVAILABLE and nothing else; connected again within 300 ms; with retries none fails" =>
    State::Tests {
        by: &[
            "n::n7_reset_in_mid_call",
            "n::repeated::n7_a_reset_goes_unnoticed_where_calls_may_run_twice",
        ],
        long: &[],
        against: &["n::n7_control_tonic_does_not_say_unavailable"],
        lacks: None,
    };
    n8: "every connect fails at once on our own side",
        "below 2 % of a core; at most 10 connects an address in 60 s; calls end within 20 ms UNAVAILABLE and name address and error" =>
    State::Tests {
        by: &[],
        long: &[
            "n::connecting::n8_connects_that_fail_at_once",
            "n::namespaces::n8_routes_that_lead_nowhere",
        ],
        against: &["n::connecting::n8_control_a_naive_client_spins"],
        lacks: None,
    };
    n9: "the client can open no more files",
        "0 calls fail on the connections there are; dialled by the backoff; READY within 3 s once it can" =>
    State::Tests {
        by: &[
            "n::files::n9_no_more_files_can_be_opened",
        ],
        long: &[],
        against: &["n::files::n9_control_tonic_fails_calls"],
        lacks: None,
    };
    n11: "one of three servers is behind a link of 64 kbit/s",
        "its share after 2 s: below 5 % by latency (peak EWMA, adaptive), below 15 % by calls in flight (least request); 0 connections closed by keepalive while bytes arrive" =>
    State::Tests {
        by: &[],
        long: &[
            "n::narrow::n11_a_narrow_link_under_peak_ewma",
            "n::narrow::n11_a_narrow_link_under_adaptive",
            "n::narrow::n11_a_narrow_link_under_least_request",
            "n::narrow::n11_a_long_answer_outlasts_the_keepalive",
        ],
        against: &[
            "n::narrow::n11_control_in_turns_a_narrow_link_keeps_its_third",
            "n::narrow::n11_control_a_ping_behind_a_long_answer_is_answered_late",
        ],
        lacks: None,
    };
    n13: "one server is 200 ms away",
        "0 calls fail; its share is below 10 % within 2 s" =>
    State::Tests {
        by: &[],
        long: &[
            "n::far::n13_a_far_server_under_peak_ewma",
            "n::far::n13_a_far_server_under_adaptive",
        ],
        against: &["n::far::n13_control_in_turns_a_far_server_keeps_its_third"],
        lacks: None,
    };
    n14: "a link goes and comes 20 times",
        "0 calls fail; READY within 3 s of the last time; at most 40 connects" =>
    State::Tests {
        by: &[],
        long: &["n::far::n14_a_link_that_flaps"],
        against: &["n::far::n14_control_calls_on_that_link_alone_wait_for_it"],
        lacks: None,
    };
    n15: "addresses of IPv6 and IPv4, and IPv6 swallows connections",
        "at most 300 ms added to the first call, and to the first after each later connect; 0 calls fail" =>
    State::Tests {
        by: &[],
        long: &[
            "n::families::n15_one_connection_and_ipv6_first",
            "n::families::n15_servers_with_an_address_of_each_family",
            "n::families::n15_a_name_with_addresses_of_both_families",
        ],
        against: &["n::families::n15_control_one_address_after_the_other_ends_in_ipv6"],
        lacks: None,
    };
    n17: "one address for many servers, and a new server behind it",
        "with a connection age of 5 s: 20 % of the calls and more within 15 s, 0 fail" =>
    State::Tests {
        by: &[],
        long: &["n::shared::n17_connections_of_a_certain_age_find_new_servers"],
        against: &["n::shared::n17_control_a_connection_that_works_is_kept"],
        lacks: None,
    };
    n16: "200 clients lose one server at the same moment, for 10 s",
        "at most 30 % of them connect in any 100 ms of the first cycle, and what chance adds to that; all are back" =>
    State::Tests {
        by: &[],
        long: &[
            "n::wave::n16_clients_do_not_come_back_in_a_wave",
        ],
        against: &[
            "n::wave::n16_control_without_jitter_they_come_in_a_wave",
        ],
        lacks: None,
    };
    b1: "rolling restart with GOAWAY",
        "0 of 10,000 calls fail, none runs twice; 0 of 300 streams break" =>
    State::Tests {
        by: &["b::b1_rolling_restart"],
        long: &["b::b1_rolling_restart_under_streams"],
        against: &["b::b1_control_tonic_fails_calls_in_a_rolling_restart"],
        lacks: None,
    };
    b2: "GOAWAY that leaves open streams unprocessed",
        "0 calls fail, each runs once" =>
    State::Tests {
        by: &[
            "b::goaway::b2_unprocessed_streams_go_elsewhere",
            "b::goaway::b2_all_servers_leave_at_once",
        ],
        long: &[],
        against: &[
            "b::goaway::b2_control_tonic_fails_unprocessed_calls",
            "b::goaway::b2_control_servers_that_always_leave",
        ],
        lacks: None,
    };
    b3: "GOAWAY while nobody calls, then a call",
        "it succeeds within 300 ms; no socket in CLOSE_WAIT for more than 1 s" =>
    State::Tests {
        by: &[
            "b::goaway::b3_goaway_while_idle",
            "b::goaway::b3_goaway_races_a_call",
        ],
        long: &[],
        against: &["b::goaway::b3_control_a_connection_nobody_looks_at"],
        lacks: None,
    };
    b4: "GOAWAY too_many_pings",
        "at most 4 connections in 60 s, each pings half as often as the one before; it shows" =>
    State::Tests {
        by: &[],
        long: &["b::pings::b4_too_many_pings"],
        against: &["b::pings::b4_control_tonic_pings_on"],
        lacks: None,
    };
    b5: "REFUSED_STREAM on the first attempt of each call",
        "0 calls fail, each runs once, two attempts a call" =>
    State::Tests {
        by: &[
            "b::refused::b5_refused_on_the_first_attempt",
            "b::refused::b5_a_refused_call_goes_elsewhere_against_its_own_wish",
        ],
        long: &[],
        against: &["b::refused::b5_control_tonic_fails_refused_calls"],
        lacks: None,
    };
    b6: "RST_STREAM after the head",
        "the code of the specification for each of the 14 codes, and no second attempt" =>
    State::Tests {
        by: &["b::resets::b6_resets_after_the_head"],
        long: &[],
        against: &["b::resets::b6_control_tonic_takes_resets_for_ends"],
        lacks: None,
    };
    b7: "a server resets every stream",
        "ejected within two intervals, no call elsewhere fails; alone under 5,000 calls a second: memory grows by 10 MiB at most, one core at most, one connection, no GOAWAY of ours" =>
    State::Tests {
        by: &[
            "b::storm::b7_a_server_that_resets_every_stream_is_ejected",
        ],
        long: &[
            "b::storm::b7_a_storm_of_resets_is_cheap",
        ],
        against: &[
            "b::storm::b7_control_without_ejection_a_third_fails",
            "b::storm::b7_control_what_is_kept_of_each_call_is_seen",
        ],
        lacks: None,
    };
    b8: "5,000 calls given up before their answers, beside 1,000 others on one connection",
        "0 of the 1,000 fail; no GOAWAY of ours" =>
    State::Tests {
        by: &[
            "b::b8_cancel_storm",
            "b::b8_no_goaway_is_said",
        ],
        long: &[],
        against: &["b::b8_control_a_cancel_storm_kills_a_tonic_connection"],
        lacks: None,
    };
    b9: "100,000 messages of one byte and 300 small answers, read late",
        "0 streams break, no GOAWAY of ours" =>
    State::Tests {
        by: &[],
        long: &["b::tiny::b9_tiny_messages_read_late"],
        against: &["b::tiny::b9_control_tiny_messages_kill_a_tonic_connection"],
        lacks: None,
    };
    b10: "one of three servers takes 10 streams at a time, 90 callers",
        "at most 10 calls on the way to it, none waits in the connection; p99 at most 250 ms; by option a second connection, with 10 as well" =>
    State::Tests {
        by: &[
            "b::full::b10_a_full_connection_is_passed_over",
            "b::full::b10_a_full_connection_gets_company",
        ],
        long: &[],
        against: &[
            "b::full::b10_control_calls_queue_behind_a_full_connection",
            "b::full::b10_control_without_a_limit_one_connection_takes_them_all",
        ],
        lacks: None,
    };
    b11: "TCP accepts, SETTINGS never come",
        "never READY; given up at 1 s ± 100 ms; no call sent" =>
    State::Tests {
        by: &["b::b11_settings_never_come"],
        long: &[],
        against: &["b::b11_control_tonic_connects_to_a_silent_address"],
        lacks: None,
    };
    b12: "SETTINGS lower the stream limit to 0 under load",
        "0 calls fail beside two others; with nobody else DEADLINE_EXCEEDED within 20 ms of the deadline" =>
    State::Tests {
        by: &["b::limits::b12_the_limit_falls_to_none"],
        long: &[],
        against: &["b::limits::b12_control_tonic_queues_behind_a_limit_of_none"],
        lacks: None,
    };
    b13: "a server gives no room for uploads",
        "that call ends within 20 ms of its deadline, no other fails, no more than the window is sent" =>
    State::Tests {
        by: &["b::limits::b13_no_room_for_an_upload"],
        long: &[],
        against: &["b::limits::b13_control_with_room_the_upload_gets_through"],
        lacks: None,
    };
    b14: "15 slow readers of large responses beside small calls on one connection",
        "0 of the small calls fail, p99 at most 50 ms" =>
    State::Tests {
        by: &[
            "b::readers::b14_small_calls_do_not_wait_for_slow_readers",
        ],
        long: &[],
        against: &[
            "b::readers::b14_control_a_window_too_few_stalls_small_calls",
        ],
        lacks: Some("the sixteenth: with it the connection's window is used up, and small calls wait for whoever reads next"),
    };
    b15: "header lists of 1 MiB, 10,000 headers, CONTINUATION floods",
        "memory grows by 4 MiB at most; RESOURCE_EXHAUSTED or INTERNAL; others unharmed" =>
    State::Tests {
        by: &[],
        long: &["b::floods::b15_header_floods"],
        against: &["b::floods::b15_control_without_limits_the_flood_is_kept"],
        lacks: None,
    };
    b16: "answers that are not gRPC, or not HTTP/2",
        "the code of the specification for each; 4 KiB of a page quoted at most; never READY on garbage" =>
    State::Tests {
        by: &[
            "b::foreign::b16_answers_that_are_not_grpc",
            "b::foreign::b16_a_web_server_among_others_gets_only_trials",
            "b::foreign::b16_answers_that_are_not_grpc_over_tonics_channels",
            "b::foreign::b16_a_page_is_bounded_in_size_and_time",
            "b::foreign::b16_connections_to_something_else",
        ],
        long: &[],
        against: &[
            "b::foreign::b16_control_tonic_reads_a_page_as_messages",
            "b::foreign::b16_control_tonic_connects_to_anything",
        ],
        lacks: None,
    };
    b17: "trailers that are missing, no code, or there twice",
        "the code for each; nothing in flight after it" =>
    State::Tests {
        by: &["b::trailers::b17_odd_ends"],
        long: &[],
        against: &["b::trailers::b17_control_tonic_believes_and_panics"],
        lacks: None,
    };
    b18: "an answer that is over before its request, heads before the head, a push",
        "the server's status, the upload stops; 1xx are passed over; a push is a GOAWAY of ours, and the next call is well" =>
    State::Tests {
        by: &[
            "b::early::b18_an_answer_before_the_end_of_the_request",
            "b::early::b18_heads_before_the_head",
            "b::early::b18_a_push_is_refused",
        ],
        long: &[],
        against: &[
            "b::early::b18_control_an_upload_goes_on_while_nothing_is_said",
        ],
        lacks: None,
    };
    b19: "a server takes 1,000 calls a connection",
        "0 of 10,000 calls fail, each runs once, 10 connections and more" =>
    State::Tests {
        by: &["b::limits::b19_so_many_calls_per_connection"],
        long: &[],
        against: &["b::limits::b19_control_tonic_fails_calls_at_each_goaway"],
        lacks: None,
    };
    b20: "connections live for a second, for a minute",
        "0 of 120,000 calls fail, each runs once" =>
    State::Tests {
        by: &[],
        long: &["b::limits::b20_connections_that_may_not_grow_old"],
        against: &["b::limits::b20_control_without_an_age_no_connection_ends"],
        lacks: None,
    };
    b21: "a server takes a second for each byte",
        "calls there end within 20 ms of their deadline, nobody else notices" =>
    State::Tests {
        by: &[
            "b::loris::b21_a_byte_at_a_time",
        ],
        long: &[],
        against: &[
            "b::loris::b21_control_tonic_has_no_deadline_in_a_body",
        ],
        lacks: None,
    };
    c1: "one server has an expired certificate",
        "0 calls fail; the reason names address and expiry; no byte of HTTP/2 goes there" =>
    State::Tests {
        by: &[],
        long: &["c::c1_expired_certificate"],
        against: &["c::c1_control_whoever_does_not_look_is_served"],
        lacks: None,
    };
    c2: "the address is another service's now, same CA",
        "0 calls there; TRANSIENT_FAILURE within 1 s" =>
    State::Tests {
        by: &[
            "c::c2_address_reused_by_another_service",
            "c::moved::c2_an_ip_that_moves_between_namespaces",
        ],
        long: &[],
        against: &["c::c2_control_a_naive_client_calls_the_wrong_service"],
        lacks: None,
    };
    c3: "the same without TLS: the list names another identity at the address",
        "a new connection; 0 calls on the old one, which drains by its deadline" =>
    State::Tests {
        by: &["c::moved::c3_another_identity_at_the_same_address"],
        long: &[],
        against: &["c::moved::c3_control_the_same_identity_keeps_its_connection"],
        lacks: None,
    };
    c4: "one side speaks TLS, the other plaintext",
        "given up within 1.1 s, 0 calls sent, the reason says who speaks what" =>
    State::Tests {
        by: &[],
        long: &[
            "c::c4_tls_on_one_side_only",
            "c::c4_http_1_answers_to_plaintext",
        ],
        against: &["c::naive::c4_control_tonic_connects_and_does_not_say_why_it_fails"],
        lacks: None,
    };
    c5: "the TLS handshake stalls",
        "given up at 1 s ± 100 ms; the calls beside it take no longer" =>
    State::Tests {
        by: &[],
        long: &["c::c5_stalled_handshake"],
        against: &["c::naive::c5_control_a_handshake_has_no_end_of_its_own"],
        lacks: None,
    };
    c6: "ALPN chooses something else or nothing",
        "TRANSIENT_FAILURE that says ALPN" =>
    State::Tests {
        by: &[],
        long: &["c::c6_alpn"],
        against: &["c::naive::c6_control_without_alpn_they_all_speak_http_2"],
        lacks: None,
    };
    c7: "certificate, key and root are replaced under load, the key first",
        "0 calls fail; new root and new pair in use within the second between two looks, and one more; half a pair is never used" =>
    State::Tests {
        by: &[],
        long: &[
            "c::rotated::c7_a_key_before_its_certificate",
            "c::rotated::c7_a_new_root_and_servers_that_follow",
        ],
        against: &[
            "c::rotated::c7_control_who_does_not_look_shows_half_a_pair",
            "c::rotated::c7_control_a_root_that_was_given_stays",
        ],
        lacks: None,
    };
    c8: "our certificate is refused after the handshake",
        "never READY, no flapping, dialled as in N1" =>
    State::Tests {
        by: &[],
        long: &["c::c8_client_certificate_refused_late"],
        against: &["c::c8_control_with_a_certificate_it_serves"],
        lacks: None,
    };
    c9: "a resolver names a server the user did not mean",
        "the name that is verified is the user's" =>
    State::Tests {
        by: &[],
        long: &["c::c9_a_resolver_cannot_choose_the_name"],
        against: &["c::c9_control_the_user_can_choose_the_name"],
        lacks: None,
    };
    d1: "the resolver errs for 60 s after a good answer",
        "0 calls fail; the list's age shows" =>
    State::Tests {
        by: &[],
        long: &["d::resolver::d1_errors_after_a_good_answer"],
        against: &["d::resolver::d1_control_an_error_ends_towers_balancer"],
        lacks: None,
    };
    d2: "the resolver errs before any answer",
        "calls fail within 50 ms and say why; those that wait end within 20 ms of the deadline, or are served at once" =>
    State::Tests {
        by: &[],
        long: &["d::resolver::d2_errors_before_any_answer"],
        against: &["d::resolver::d2_control_tonic_waits_past_the_deadline"],
        lacks: None,
    };
    d3: "an empty list after a good one",
        "kept for its time and then UNAVAILABLE; without keeping UNAVAILABLE within 50 ms" =>
    State::Tests {
        by: &[],
        long: &["d::resolver::d3_an_empty_answer_after_a_good_one"],
        against: &["d::resolver::d3_control_without_keeping_an_empty_answer_takes_effect_at_once"],
        lacks: None,
    };
    d4: "the same list again, in another order, with duplicates",
        "0 connects, and each has its turn as before" =>
    State::Tests {
        by: &["d::d4_the_same_list_again"],
        long: &[],
        against: &["d::d4_control_inserting_again_connects_again"],
        lacks: None,
    };
    d5: "all addresses replaced at once",
        "0 of 10,000 calls fail; the old ones serve until a new one can" =>
    State::Tests {
        by: &["d::d5_all_replaced_at_once"],
        long: &[],
        against: &["d::d5_control_break_before_make_fails_calls"],
        lacks: None,
    };
    d6: "an endpoint removed with calls in flight",
        "0 picks once it is applied; streams shorter than the drain deadline end well, the others UNAVAILABLE at it ± 50 ms" =>
    State::Tests {
        by: &["d::d6_removed_with_calls_in_flight"],
        long: &[],
        against: &["d::d6_control_the_ledger_sees_picks_of_an_endpoint"],
        lacks: None,
    };
    d7: "100 lists a second of random halves of 50 endpoints, for 60 s",
        "0 calls fail; at most 50 connections and those that drain, all 50 in use within 1 s of the last list; CLEAN" =>
    State::Tests {
        by: &[],
        long: &["d::churn::d7_a_hundred_lists_a_second"],
        against: &[
            "d::churn::d7_control_without_draining_calls_fail",
            "d::churn::d7_control_a_connection_for_each_line_of_each_list_is_seen",
        ],
        lacks: Some("how many of the lists were applied, and a pick's p99 of 5 µs: neither can be seen from outside"),
    };
    d8: "10,000 endpoints in one list",
        "applied within 100 ms; at most 200 connects a second; at most 4 KiB for each that is not connected" =>
    State::Tests {
        by: &["d::large::d8_ten_thousand_in_one_list"],
        long: &[],
        against: &[
            "d::large::d8_control_without_a_rate_all_are_connected_to_at_once",
        ],
        lacks: Some("a pick's p99 of 2 µs, which cannot be seen from outside; there is no subsetting"),
    };
    d9: "1,000,000 endpoints",
        "memory grows by 64 MiB at most; 10,000 are taken, the same each time; other tasks wait for 10 ms at most" =>
    State::Tests {
        by: &["d::hostile::d9_a_million_endpoints"],
        long: &[],
        against: &["d::hostile::d9_control_tonic_panics_on_a_long_list"],
        lacks: None,
    };
    d10: "the resolver panics or hangs",
        "0 calls fail; the age shows; asked again within 1 s" =>
    State::Tests {
        by: &[
            "d::hostile::d10_a_resolver_that_panics",
            "d::hostile::d10_a_resolver_that_hangs",
        ],
        long: &[],
        against: &["d::hostile::d10_control_a_naive_client_panics_with_its_resolver"],
        lacks: None,
    };
    d11: "no call for 10 min, the list changes 100 times, then one call",
        "it goes by the current list; nothing piles up" =>
    State::Tests {
        by: &["d::d11_changes_without_traffic"],
        long: &[],
        against: &["d::d11_control_discovery_stands_still_without_calls"],
        lacks: None,
    };
    e1: "name servers fail for 60 s after a success",
        "0 calls fail; at most 12 queries" =>
    State::Pending("a DNS client of our own");
    e2: "the name is gone after a success",
        "0 calls fail until the list is too old; it shows" =>
    State::Pending("a DNS client of our own");
    e3: "all servers down, 100 wishes to look again",
        "one resolver, at its own pace" =>
    State::Tests {
        by: &["e::e3_all_backends_down_ask_for_one_look_up"],
        long: &[],
        against: &["e::e3_control_the_wishes_are_many"],
        lacks: None,
    };
    e4: "a name grows from 3 to 6 servers, nobody disconnects",
        "0 calls fail; the new ones get their share within a refresh and 1 s" =>
    State::Tests {
        by: &["e::e4_scaled_up_without_a_disconnect"],
        long: &[],
        against: &["e::e4_control_without_a_refresh_the_new_ones_get_nothing"],
        lacks: None,
    };
    e5: "all servers move before the name says so",
        "an outage no longer than an interval and a connect; calls that wait do not fail" =>
    State::Tests {
        by: &["e::e5_moved_before_the_name_says_so"],
        long: &[],
        against: &["e::e5_control_a_resolver_that_is_not_told_leaves_a_hole"],
        lacks: None,
    };
    e6: "300 addresses, UDP has room for 30",
        "300 endpoints, or the last good list; never 30" =>
    State::Pending("a DNS client of our own");
    e9: "CNAME loops and chains",
        "an error within 2 s and 20 queries" =>
    State::Pending("a DNS client of our own");
    e10: "spoofed answers",
        "none ever visible in 10,000" =>
    State::Pending("a DNS client of our own");
    e11: "answers with addresses nobody should dial",
        "0 connects there" =>
    State::Tests {
        by: &["e::e11_hostile_answers_are_not_dialled"],
        long: &[],
        against: &["e::e11_control_without_the_rules_everything_is_dialled"],
        lacks: None,
    };
    f1: "Consul restarts, its index falls",
        "a later change is seen within 2 s" =>
    State::Pending("Consul");
    f2: "Consul's first answers after a restart are empty",
        "0 calls fail" =>
    State::Pending("Consul");
    f3: "Consul answers at once every time",
        "at most one query a second" =>
    State::Pending("Consul");
    f5: "an etcd watch is compacted",
        "the set is the store's after each of 1,000 histories" =>
    State::Pending("etcd");
    f6: "etcd drops a DELETE event",
        "gone within a resync and 1 s" =>
    State::Pending("etcd");
    f7: "all keys vanish within a second",
        "0 calls fail; it shows" =>
    State::Pending("etcd");
    f9: "a Kubernetes watch answers 410 Gone",
        "the set is the API's after each of 1,000 histories" =>
    State::Pending("Kubernetes");
    f10: "a Kubernetes watch closes every second",
        "stale for a resync and 1 s at most; one list a resync" =>
    State::Pending("Kubernetes");
    f11: "conditions and oddities of EndpointSlices",
        "a table of 16 rows" =>
    State::Pending("Kubernetes");
    f12: "the API server is away for 10 min",
        "calls fail only with nobody ready; well within 5 s of its return" =>
    State::Pending("Kubernetes");
    f14: "an invalid xDS resource beside valid ones",
        "NACK that names it; the valid ones in force" =>
    State::Pending("xDS");
    f15: "hostile bytes in xDS",
        "NACK, never a panic" =>
    State::Pending("xDS");
    f16: "hostile numbers in xDS",
        "drops within 0.5 % of what is asked; overflow is NACKed" =>
    State::Pending("xDS");
    f17: "the ADS stream breaks, or says nothing",
        "0 calls fail with a cache; without one UNAVAILABLE within 15.1 s" =>
    State::Pending("xDS");
    f21: "the control plane's own status codes",
        "a caller never sees one of those that only a server may send" =>
    State::Pending("control planes that have codes");
    f22: "files half written, deleted, replaced, odd",
        "0 calls fail in any of 12; a good change is seen within 1 s" =>
    State::Pending("the file resolver");
    g1: "one server fails in 0.2 ms, the others answer in 20 ms",
        "its share at most 20 % after 500 ms and 1 % after 2 s" =>
    State::Tests {
        by: &[
            "g::g1_adaptive_avoids_a_sinkhole",
            "g::g1_least_request_avoids_a_sinkhole",
            "g::g1_least_request_of_all_avoids_a_sinkhole",
            "g::sinkhole::g1_ejection_keeps_a_naive_policy_from_a_sinkhole",
            "g::sinkhole::g1_retries_hide_a_sinkhole",
            "g::sinkhole::g1_retries_hide_a_sinkhole_from_least_request",
        ],
        long: &[],
        against: &[
            "g::g1_control_p2c_by_pending_calls_falls_for_a_sinkhole",
            "g::g1_control_peak_ewma_falls_for_a_sinkhole",
            "g::sinkhole::g1_control_without_ejection_a_naive_policy_falls_for_it",
        ],
        lacks: None,
    };
    g2: "errors in trailers alone",
        "ejected within two intervals" =>
    State::Tests {
        by: &[
            "g::sinkhole::g2_failures_in_trailers_eject_after_five_in_a_row",
            "g::sinkhole::g2_failures_in_trailers_eject_by_their_share",
        ],
        long: &[],
        against: &[
            "g::sinkhole::g2_control_without_ejection_a_third_fails",
        ],
        lacks: None,
    };
    g3: "every server fails every call",
        "never more ejected than allowed, at no moment; never the only one" =>
    State::Tests {
        by: &[
            "g::ejection::g3_never_all_are_ejected_and_all_are_used_when_too_few_are_left",
            "g::ejection::g3_no_more_are_ejected_than_may_be",
            "g::ejection::g3_calls_fail_at_once_by_option",
            "g::ejection::g3_the_only_one_is_never_ejected",
        ],
        long: &[],
        against: &[
            "g::ejection::g3_control_without_panic_the_last_one_is_buried",
        ],
        lacks: None,
    };
    g4: "a server fails, is ejected, and recovers",
        "back in time, and gradually" =>
    State::Tests {
        by: &[
            "g::ejection::g4_one_that_heals_comes_back_step_by_step",
            "g::ejection::g4_one_that_does_not_heal_is_out_for_longer_each_time",
        ],
        long: &[],
        against: &[
            "g::ejection::g4_control_without_slow_start_it_has_its_share_at_once",
        ],
        lacks: None,
    };
    g6: "application errors only",
        "0 ejections" =>
    State::Tests {
        by: &[
            "g::ejection::g6_application_errors_eject_nobody",
        ],
        long: &[],
        against: &["g::ejection::g6_control_where_they_are_the_servers_fault_they_eject"],
        lacks: None,
    };
    g7: "health watches that say no, hang, flap, or are unknown",
        "no pick after NOT_SERVING; at most 2 changes a second; at most 10 watches in 60 s" =>
    State::Tests {
        by: &[
            "g::health::g7_not_serving_means_no_calls",
            "g::health::g7_a_service_that_is_unknown_is_not_served",
            "g::health::g7_without_a_health_service_it_is_healthy",
            "g::health::g7_silence_is_no_yes",
            "g::health::g7_watches_that_are_cut_are_opened_again_with_pauses",
            "g::health::g7_flapping_is_damped",
        ],
        long: &[],
        against: &[
            "g::health::g7_control_unasked_it_keeps_its_calls",
        ],
        lacks: None,
    };
    g8: "every health check says no, and the servers answer",
        "0 calls fail where panic is to go over what they say; else all do" =>
    State::Tests {
        by: &[
            "g::health::g8_all_say_no_and_are_used_by_option",
            "g::health::g8_all_say_no_and_are_believed_by_default",
        ],
        long: &[],
        against: &["g::health::g8_control_one_alone_that_says_no_is_not_used"],
        lacks: None,
    };
    g9: "a new server takes 500 ms to become ready",
        "0 calls on it before; p99 at most 10 ms" =>
    State::Tests {
        by: &[
            "g::slow::g9_nobody_waits_for_a_slow_handshake",
        ],
        long: &[],
        against: &[
            "g::slow::g9_control_calls_pile_up_behind_a_slow_handshake",
        ],
        lacks: None,
    };
    g10: "one server is 20 times slower",
        "its share at most 8 % within 2 s, and never above 15 % after" =>
    State::Tests {
        by: &[
            "g::slow::g10_adaptive_leaves_a_slow_one",
            "g::slow::g10_peak_ewma_leaves_a_slow_one",
            "g::slow::g10_least_request_of_all_leaves_a_slow_one",
            "g::slow::g10_least_request_leaves_a_slow_one_nearly_as_little",
        ],
        long: &[],
        against: &[
            "g::slow::g10_control_by_turns_it_has_its_third",
        ],
        lacks: None,
    };
    g11: "streams that live long, while the fleet grows from 3 to 6",
        "what is in flight is what the servers have open; new streams go to new servers; at most 1.3 between most and fewest when the old have ended" =>
    State::Tests {
        by: &[
            "g::streams::g11_streams_go_to_new_servers",
        ],
        long: &[],
        against: &[
            "g::streams::g11_control_by_turns_the_old_get_half",
        ],
        lacks: None,
    };
    g12: "load reports with numbers that are none",
        "weights finite and above zero; bounded steps a pick" =>
    State::Tests {
        by: &[
            "g::reports::g12_numbers_that_are_none_change_nothing",
            "g::reports::g12_huge_numbers_starve_nobody",
        ],
        long: &[],
        against: &[
            "g::reports::g12_control_numbers_that_are_meant_count",
        ],
        lacks: None,
    };
    g13: "weights of 0, of 1 and of the largest number, 10,000 of them",
        "shares within their binomial bounds; no overflow" =>
    State::Unit { file: "src/policy/stride.rs", test: "nobody_starves_and_no_weight_makes_picks_dear" };
    g14: "an endpoint of a ring of 100 leaves or joins",
        "only its keys move; the ring is the published one" =>
    State::Unit { file: "tests/conformance/ring.rs", test: "no_key_moves_between_two_that_keep_their_counts" };
    g15: "the owner of a key is away, under a ring",
        "0 calls fail, the next on the ring has them all; dialled without a call for it, and the key is back within 1 s" =>
    State::Tests {
        by: &["g::ring::g15_the_next_on_the_ring_stands_in"],
        long: &[],
        against: &["g::ring::g15_control_by_turns_a_session_wanders"],
        lacks: None,
    };
    g17: "the policy exchanged under load, 10 times",
        "0 of 10,000 calls fail, each runs once" =>
    State::Tests {
        by: &[
            "g::exchanged::g17_policies_exchanged_under_load",
        ],
        long: &[],
        against: &[
            "g::exchanged::g17_control_a_channel_for_each_policy_fails_calls",
        ],
        lacks: None,
    };
    g18: "10,000 pickers while 1,000 calls wait",
        "all leave the line within 10 ms of the first that can serve, none is stuck; every order of one call and one picker by the models of tests/models" =>
    State::Tests {
        by: &[],
        long: &["g::swapped::g18_pickers_swapped_while_calls_wait"],
        against: &[
            "g::swapped::g18_control_who_looks_before_it_lies_down_misses_the_last_word",
        ],
        lacks: None,
    };
    g20: "a policy of the user's own panics, or names nobody's endpoint",
        "INTERNAL where its picker panics, its last picker serves on where the policy does, calls wait for a better one where it names nobody; the next call is well" =>
    State::Tests {
        by: &[
            "g::rogue::g20_a_picker_that_panics_fails_its_calls",
            "g::rogue::g20_a_policy_that_panics_is_asked_again",
            "g::rogue::g20_a_picker_that_names_nobody_lets_calls_wait",
        ],
        long: &[],
        against: &[
            "g::rogue::g20_control_unguarded_a_panic_ends_the_callers_task",
        ],
        lacks: None,
    };
    g19: "one new endpoint in slow start, and later another",
        "the share of the new one grows from a twentieth of its fair share on, and that of no old one does" =>
    State::Unit { file: "tests/sim/stories/ejection.rs", test: "g19_newcomers_start_slowly_and_no_old_one_surges" };
    h1: "every call UNAVAILABLE for 10 s",
        "at most 1.21 attempts a call by budget, 1.01 by throttling" =>
    State::Tests {
        by: &[
            "h::retries::h1_a_budget_of_a_fifth_stops_the_storm",
            "h::retries::h1_tokens_stop_the_storm_at_once",
        ],
        long: &[],
        against: &[
            "h::retries::h1_control_without_a_budget_the_load_is_threefold",
        ],
        lacks: None,
    };
    h2: "overload with retries, and a server away for 5 s",
        "99 % of what is offered within 30 s of its return" =>
    State::Tests {
        by: &[],
        long: &["h::metastable::h2_the_outage_ends_with_its_cause"],
        against: &[
            "h::metastable::h2_control_naive_retries_keep_the_outage_alive",
        ],
        lacks: None,
    };
    h3: "a connection dies after a call was sent",
        "no call runs twice" =>
    State::Tests {
        by: &[
            "h::h3_a_call_that_was_sent_is_not_sent_again",
            "h::retries::h3_a_call_that_is_not_idempotent_is_executed_once_at_most",
        ],
        long: &[],
        against: &[
            "h::h3_control_a_naive_retry_executes_twice",
        ],
        lacks: None,
    };
    h4: "a failure after the response's head",
        "one attempt" =>
    State::Tests {
        by: &[
            "h::retries::h4_nothing_is_tried_again_after_the_head",
        ],
        long: &[],
        against: &["h::retries::h4_control_without_a_head_it_is_tried_again"],
        lacks: None,
    };
    h5: "pushback in all its forms",
        "the next attempt at its time ± 10 ms, or none" =>
    State::Tests {
        by: &[
            "h::retries::h5_pushback_is_kept_to",
        ],
        long: &[],
        against: &["h::retries::h5_control_without_a_word_it_is_the_policys_wait"],
        lacks: None,
    };
    h6: "a request larger than the retry buffer",
        "sent once, and memory within the limits" =>
    State::Tests {
        by: &[
            "h::retries::h6_a_request_is_sent_again_whole_or_not_at_all",
            "h::memory::h6_of_a_large_request_little_is_kept",
            "h::memory::h6_of_many_requests_the_channel_keeps_no_more_than_it_may",
        ],
        long: &[],
        against: &[
            "h::retries::h6_control_without_retries_a_small_request_fails",
            "h::memory::h6_control_whoever_keeps_whole_requests_grows_by_them",
        ],
        lacks: None,
    };
    h7: "hedging with a slow first attempt",
        "one answer, losers cancelled within 50 ms, another server, within the budget" =>
    State::Tests {
        by: &[
            "h::hedging::h7_a_slow_endpoint_is_hedged_by_another",
            "h::hedging::h7_copies_keep_to_the_budget",
            "h::hedging::h7_the_delay_becomes_the_methods_own",
            "h::hedging::h7_the_attempt_that_loses_is_reset",
        ],
        long: &[],
        against: &[
            "h::hedging::h7_control_unhedged_calls_wait_for_the_slow_endpoint",
        ],
        lacks: None,
    };
    h8: "hedging throttled after the first attempt failed",
        "ends within 20 ms of it" =>
    State::Tests {
        by: &[
            "h::hedging::h8_a_call_that_may_not_be_hedged_ends_with_its_first_failure",
        ],
        long: &[],
        against: &["h::hedging::h8_control_with_budget_left_the_copy_is_the_answer"],
        lacks: None,
    };
    h9: "cancel and deadline race retries and hedges",
        "every call ends once, in 1,000,000 orders" =>
    State::Unit { file: "tests/schedules.rs", test: "h9_a_call_ends_once_in_every_order_of_events" };
    h10: "the deadline passes in each phase of a call",
        "DEADLINE_EXCEEDED within 20 ms of it in every phase; at once with its last failure where no further attempt fits before it" =>
    State::Tests {
        by: &[
            "h10::h10_while_resolving",
            "h10::h10_while_connecting",
            "h10::h10_while_waiting_for_ready",
            "h10::h10_while_in_backoff",
            "h10::h10_while_in_the_queue",
            "h10::h10_after_the_headers_were_sent",
            "h10::h10_in_the_middle_of_the_response",
            "h10::h10_in_the_middle_of_the_request",
            "h10::h10_a_server_that_ends_it_first",
            "h10::h10_after_a_head_that_is_not_the_end",
            "h10::between::h10_while_the_next_copy_is_due_later",
            "h10::between::h10_in_an_attempt_after_a_pause",
            "h10::between::h10_while_the_next_attempt_waits_for_ready",
            "h10::between::h10_between_attempts_that_come_too_late_it_ends_at_once",
        ],
        long: &[],
        against: &[
            "h::h10_control_tonic_has_no_deadline_while_it_waits_for_an_endpoint",
            "h::h10_control_tonic_has_no_deadline_while_it_connects",
            "h::h10_control_tonic_calls_an_expired_deadline_cancelled",
            "h10::h10_control_a_server_may_cancel_in_time",
        ],
        lacks: None,
    };
    h11: "deadlines of nothing and of ages",
        "nothing sent; at most 8 digits, never more than is left" =>
    State::Tests {
        by: &[
            "h11::h11_deadlines_of_nothing",
            "h11::h11_what_is_sent_is_what_is_left",
        ],
        long: &[],
        against: &["h11::h11_control_with_time_they_are_sent"],
        lacks: None,
    };
    h12: "the headers of each attempt",
        "grpc-timeout never more than what is left; grpc-previous-rpc-attempts exact" =>
    State::Tests {
        by: &["h::retries::h12_h14_each_attempt_has_its_own_headers"],
        long: &[],
        against: &["h::retries::h12_control_a_retry_around_tonic_sends_the_same_time_again"],
        lacks: None,
    };
    h13: "a server ends every connection as soon as it is there",
        "dialled by the backoff, not by the calls" =>
    State::Tests {
        by: &[],
        long: &[
            "h13::h13_closed_right_after_accept",
            "h13::h13_closed_right_after_the_settings",
        ],
        against: &["h13::h13_control_tonic_dials_for_every_call"],
        lacks: None,
    };
    h14: "retries of the caller's own around ours",
        "grpc-previous-rpc-attempts exact: ours from the start for each call of a layer that does not count, and beyond its count where it does" =>
    State::Tests {
        by: &["h::stacked::h14_attempts_are_counted_within_each_call_of_an_outer_layer"],
        long: &[],
        against: &["h::stacked::h14_control_around_tonic_no_attempt_is_counted"],
        lacks: None,
    };
    h15: "one call more waits than may",
        "it ends within 5 ms; the others are served in their order" =>
    State::Tests {
        by: &["h15::h15_one_more_than_may_wait"],
        long: &[],
        against: &["h15::h15_control_tonic_keeps_any_number_waiting"],
        lacks: Some("strict order: a call that looks in the moment a slot comes free passes those before it"),
    };
    h16: "a call dropped at every poll",
        "CLEAN each time, others unharmed" =>
    State::Tests {
        by: &[
            "h16::h16_a_unary_call_dropped_at_every_poll",
            "h16::h16_a_waiting_call_dropped_at_every_poll",
            "h16::h16_a_refused_call_dropped_at_every_poll",
        ],
        long: &[],
        against: &["h16::h16_control_a_call_without_a_guard_leaks"],
        lacks: None,
    };
    h17: "a response dropped unread, half read, or kept",
        "nothing in flight within 1 s; after 1,000 dropped bodies of 1 MiB one of 10 MiB comes whole" =>
    State::Tests {
        by: &[
            "h17::h17_streams_dropped_unread_and_half_read",
            "h17::h17_dropped_bodies_give_their_window_back",
        ],
        long: &[],
        against: &["h17::h17_control_bodies_that_are_kept_take_all_the_window"],
        lacks: None,
    };
    h18: "a channel dropped, closed, or its runtime shut down with 100 calls under way",
        "all end by the drain deadline" =>
    State::Tests {
        by: &[
            "h18::h18_dropped_with_calls_under_way",
            "h18::h18_closed_with_calls_under_way",
            "h18::h18_its_runtime_shut_down_with_calls_under_way",
        ],
        long: &[],
        against: &["h18::h18_control_cut_off_calls_are_not_answered"],
        lacks: None,
    };
    h19: "every kind of error in every phase",
        "one table; what is unknown is UNKNOWN" =>
    State::Unit { file: "src/transport/failure.rs", test: "the_table_says_what_the_code_does_in_every_row" };
    i1: "the wall clock jumps by an hour and by ten years",
        "0 calls fail; nothing reads it" =>
    State::Tests {
        by: &[],
        long: &[
            "i::i1_a_wall_clock_that_jumps",
            "i::i1_by_libfaketime",
            "i::i1_no_wall_clock_is_read",
        ],
        against: &["i::i1_control_the_clock_is_wrong_only_where_it_is_made_so"],
        lacks: None,
    };
    i2: "the monotonic clock is thirty years old",
        "0 calls fail" =>
    State::Tests {
        by: &[],
        long: &["i::i2_a_late_monotonic_clock"],
        against: &["i::i2_control_the_clock_is_young_elsewhere"],
        lacks: None,
    };
    i3: "the client is frozen for 30 s",
        "within 1 s of its return: one connect a server, one query, one ping a connection at most; calls under way DEADLINE_EXCEEDED; new ones served within 1 s" =>
    State::Tests {
        by: &[],
        long: &["i::i3_a_frozen_client_goes_on"],
        against: &["i::i3_control_a_naive_timer_makes_up_for_what_it_missed"],
        lacks: None,
    };
    i4: "the client has a twentieth of a processor",
        "one reconnect a server at most; 0 calls fail after it" =>
    State::Tests {
        by: &[],
        long: &["i::i4_a_starved_client"],
        against: &["i::i4_control_left_alone_it_runs_without_gaps"],
        lacks: None,
    };
    i5: "100,000 calls with nobody ready, in 64 MiB",
        "the process lives; those beyond the line end RESOURCE_EXHAUSTED, those in it are served" =>
    State::Tests {
        by: &[],
        long: &[
            "i::queued::i5_a_hundred_thousand_calls_in_little_memory",
        ],
        against: &["i::queued::i5_control_with_a_line_for_all_it_dies"],
        lacks: None,
    };
    i6: "the user's code blocks a thread of the runtime",
        "a list is applied within 1 s where the runtime has another" =>
    State::Tests {
        by: &[
            "i::stalled::i6_one_of_two_threads_is_blocked",
        ],
        long: &[],
        against: &[
            "i::stalled::i6_control_the_only_thread_is_blocked",
        ],
        lacks: None,
    };
    i8: "10,000 channels come and go",
        "files and tasks as before, memory grows by 10 MiB at most" =>
    State::Tests {
        by: &[],
        long: &[
            "i::many::i8_channels_leave_nothing_behind",
        ],
        against: &[
            "i::many::i8_control_a_channel_that_is_kept_is_seen",
        ],
        lacks: None,
    };
}
