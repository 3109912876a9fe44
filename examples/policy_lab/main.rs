mod client; mod contenders; mod moves; mod outcome; mod runs; mod scenario; mod server; mod workload; mod world;
fn main() {
    let seeds: Vec<u64> = (1..=std::env::args().nth(1).map_or(1, |n| n.parse().unwrap())).collect();
    let all: Vec<_> = contenders::ALL.iter().collect();
    for s in scenario::built_in() {
        let r = runs::run(&s, &all, &seeds, &|_| ());
        let base = r.baseline().unwrap().get(outcome::Figure::P99).unwrap();
        for (n, f) in &r.rows {
            use outcome::Figure::*;
            println!("{} {n:25} ratio {:.3} p50 {:.1} p99 {:.1} p999 {:.1} to {:.4} un {:.4} shares {:.3} {:.3} spread {:.2} early {:?} late {:?}", s.name, f.get(P99).unwrap()/base, f.get(P50).unwrap(), f.get(P99).unwrap(), f.get(P999).unwrap(), f.get(Timeouts).unwrap(), f.get(Unavailable).unwrap(), f.get(LeastShare).unwrap(), f.get(MostShare).unwrap(), f.get(Spread).unwrap(), f.get(Early), f.get(Late));
        }
    }
}
