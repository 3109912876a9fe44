//! What surrounds the laboratory's runs: scenario files, arguments, pictures.

use std::path::Path;

use super::arguments::{self, Kind, Options, Plot, Request};
use super::contenders::{self, named};
use super::scenario::Scenario;
use super::{plot, runs, scenario, scenario_file};

fn wrong(text: &str) -> String {
    scenario_file::parse("a.toml", text).expect_err(text)
}

#[test]
fn scenario_files_are_checked_value_by_value() {
    let good = "name = \"a\"\nrho = 0.5\n[[server]]\ncount = 2\n";
    let scenario = scenario_file::parse("a.toml", good).expect("it is good");
    assert_eq!((scenario.servers.len(), scenario.clients), (2, 4));
    for (text, error) in [
        ("name = \"A b\"\n", "missing key `server`"),
        ("nam = 1\n", "a.toml:1: unknown key `nam`"),
        (
            "name = 1\n",
            "a.toml:1: wrong type: integer `1`, expected a string: name = 1",
        ),
    ] {
        let said = wrong(text);
        assert!(said.contains(error) && said.starts_with("a.toml"), "{said}");
    }
    for (lines, error) in [
        ("clients = 0", "a.toml:5: clients 0 is not in 1..=10000"),
        (
            "requests = 5",
            "a.toml:5: requests 5 is not in 100..=10000000",
        ),
        ("rate = 5", "a.toml:5: rate and rho exclude each other"),
        (
            "deadline_ms = nan",
            "a.toml:5: deadline_ms NaN is not in 1.0..=3600000.0",
        ),
        (
            "[[server]]\nspeed = 0",
            "a.toml:6: speed 0 is not in 0.001..=1000.0",
        ),
        (
            "[[server]]\nslots = -1",
            "a.toml:6: slots -1 is not in 1..=10000",
        ),
        (
            "[[server]]\nweight = 0",
            "a.toml:6: weight 0 is not in 1..=1000000",
        ),
        (
            "[service]\nsigma = 9",
            "a.toml:6: sigma 9 is not in 0.0..=5.0",
        ),
        (
            "[service]\nalpha = 2",
            "a.toml:6: alpha means nothing for this distribution",
        ),
        (
            "[service]\ndistribution = \"normal\"",
            "a.toml:6: unknown choice `normal`",
        ),
        (
            "[keys]\nzipf = \"x\"",
            "a.toml:6: wrong type: string \"x\", expected a number",
        ),
        (
            "[[event]]\nat_s = 1\nadd = { count = 3 }\n[[event]]\nat_s = 1\nkill = 9",
            "a.toml:8: event 2: there is no server 9; they are 0 to 4",
        ),
        (
            "[keys]\nzipf = -1.0",
            "a.toml:6: zipf -1 is not in 0.0..=10.0",
        ),
        (
            "[antagonist]\noff_ms = 1\non_ms = 1\nfactor = 2",
            "a.toml:8: factor 2 is not in 0.001..=1.0",
        ),
        (
            "[[event]]\nat_s = 1\nkill = 2",
            "a.toml:5: event 1: there is no server 2; they are 0 to 1",
        ),
        (
            "[[event]]\nat_s = 1\nkill = 1\n[[event]]\nat_s = 2\nremove = 1",
            "a.toml:8: event 2: server 1 has gone by then",
        ),
        (
            "[[event]]\nat_s = 2\nkill = 1\n[[event]]\nat_s = 1\nkill = 0",
            "a.toml:8: event 2 is before the one above it",
        ),
        (
            "[[event]]\nat_s = 99999\nkill = 1",
            "a.toml:5: event 1 is after the last call, at about",
        ),
        (
            "[[event]]\nat_s = 1\nkill = 1\nremove = 0",
            "a.toml:5: event 1 needs exactly one of kill, remove, slow and add",
        ),
        (
            "[[event]]\nat_s = 1\nslow = { server = 0, factr = 1 }",
            "a.toml:7: unknown key `factr`",
        ),
    ] {
        let (top, bottom) = good.split_at(good.find("[[").expect("it has a list"));
        let text = match lines.starts_with('[') {
            true => format!("{good}{lines}"),
            // A key of the file itself comes before its lists; it is line 5 all the same.
            false => format!("{top}\n\n{lines}\n{bottom}"),
        };
        let said = wrong(&text);
        assert!(said.starts_with(error), "{lines}: {said}");
    }
}

#[test]
fn the_sample_files_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policy_lab/scenarios");
    let files = std::fs::read_dir(folder).expect("it is there");
    let paths = files.map(|file| file.expect("it can be read").path());
    let read = paths.map(|path| {
        let text = std::fs::read_to_string(&path).expect("it is text");
        scenario_file::parse("a.toml", &text).expect("it is good")
    });
    let scenarios: Vec<Scenario> = read.collect();
    assert!(scenarios.len() >= 3);
    assert!(scenarios.iter().any(|s| s.events.len() >= 5));
}

fn options(line: &str) -> Result<Options, String> {
    match arguments::read(line.split_whitespace().map(Into::into))? {
        Request::Run(options) => Ok(*options),
        Request::Help => Err(arguments::USAGE.into()),
    }
}

#[test]
fn arguments_are_read_and_checked() {
    let all = options("").expect("nothing is needed");
    assert_eq!(
        (all.scenarios.len(), all.contenders.len()),
        (6, contenders::ALL.len())
    );
    let line = "--virtual --scenario s4 --policy adaptive --requests 500 --servers 25 --clients 3 \
                --seed 9 --seeds 2 --plot a.png";
    let some = options(line).expect("it is good");
    let scenario = &some.scenarios[0];
    assert_eq!((scenario.servers.len(), scenario.clients), (25, 3));
    let slow = scenario.servers.iter().filter(|s| s.speed < 1.0);
    assert_eq!(slow.count(), 3, "the list over and over");
    assert_eq!((scenario.requests, some.seeds), (500, vec![9, 10]));
    let names: Vec<&str> = some.contenders.iter().map(|c| c.name).collect();
    assert_eq!(names, ["round_robin", "adaptive"]);
    assert_eq!(some.plot.map(|p| p.kind), Some(Kind::Png));
    assert!(options("--gates").is_ok_and(|o| o.gates && o.seeds.len() == 5));
    for (line, error) in [
        (
            "--policy best",
            "--policy \"best\" is unknown; known are round_robin, ",
        ),
        (
            "--requests 1",
            "--requests \"1\" is not a number in 100..=10000000",
        ),
        ("--seeds 0", "--seeds \"0\" is not a number in 1..=100"),
        (
            "--scenario s1 --scenario s1",
            "--scenario: two are named \"s1\"",
        ),
        (
            "--scenario s7",
            "--scenario \"s7\" is none of s1 to s6, and no file: No such file or directory",
        ),
        (
            "--scenario=",
            "--scenario \"\" is none of s1 to s6, and no file: No such file or directory",
        ),
        (
            "--plot no/such/folder.svg --scenario s1",
            "--plot no/such/folder.svg: No such file or directory",
        ),
        (
            "--plot no/such/folder.svg",
            "--plot no/such/folder-s1.svg: No such file or directory",
        ),
        (
            "--policy",
            "missing argument for option '--policy'; --help tells more",
        ),
        ("--best", "invalid option '--best'; --help tells more"),
        (
            "--plot a.pdf",
            "--plot \"a.pdf\" ends in neither .svg nor .png",
        ),
        (
            "--gates --clients 2",
            "--gates runs all policies over s1 to s6",
        ),
        (
            "--servers 10000 --clients 10000",
            "scenario s1: clients × servers is 100000000, more than 4000000",
        ),
        ("x", "\"x\" belongs to no option; --help tells more"),
        ("--help", "Compares"),
    ] {
        let said = options(line).err().expect("it is wrong");
        assert!(said.starts_with(error), "{line}: {said}");
    }
}

#[test]
fn pictures_are_drawn_of_both_kinds_and_of_many_servers() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let contenders = ["round_robin", "adaptive"].map(|name| named(name).expect("it is there"));
    let few = Scenario {
        requests: 1_000,
        ..scenario("s3")
    };
    let mut many = few.clone();
    many.repeat_servers(60);
    many.name = "many".into();
    let results = [few, many].map(|s| runs::run(&s, &contenders, &[1], &|_| ()));
    for (kind, ending) in [(Kind::Svg, "svg"), (Kind::Png, "png")] {
        let path = folder.join(format!("lab.{ending}"));
        let written = plot::draw(&Plot { path, kind }, &results).expect("it can be written");
        assert_eq!(written[1], folder.join(format!("lab-many.{ending}")));
        let picture = std::fs::read(&written[0]).expect("it was written");
        match kind {
            Kind::Png => assert!(picture.starts_with(b"\x89PNG")),
            Kind::Svg => {
                let text = String::from_utf8(picture).expect("it is text");
                assert!(text.contains("adaptive, p99") && text.contains("p99.9"));
            }
        }
    }
    let nowhere = Plot {
        path: folder.join("no/such/folder.svg"),
        kind: Kind::Svg,
    };
    let error = plot::draw(&nowhere, &results).expect_err("it cannot be written");
    let rule = format!(
        "--plot {}: ",
        folder.join("no/such/folder-s3.svg").display()
    );
    let error = error.strip_prefix(&rule).expect("it names the file");
    assert_eq!(error, "No such file or directory");
}
