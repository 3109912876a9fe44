//! What this process uses: memory and processor, as the kernel counts them.

use std::time::Duration;

/// A figure of this process, in KiB, by its name and colon in `/proc/self/status`.
pub(crate) fn memory(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(what));
    let figure = line.and_then(|line| line.split_whitespace().next());
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a figure")
}

/// Sets the peak, `VmHWM:`, back to what is used now.
pub(crate) fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("one's own can be written");
}

/// The processor's time this process has used.
pub(crate) fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux has it");
    // After the name, which may have blanks.
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks = ticks.map(|ticks| ticks.parse::<u32>().expect("a number"));
    Duration::from_millis(10) * ticks.sum::<u32>()
}
