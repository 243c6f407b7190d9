//! What the results were computed with.

use std::process::Command;

/// Version, compiler and processor in one sentence.
pub fn sentence() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "masksub {}, {}, {}, {cores} cores",
        env!("CARGO_PKG_VERSION"),
        compiler(),
        processor()
    )
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    let version = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    let words = version.unwrap_or_default();
    match words.split_whitespace().take(2).collect::<Vec<_>>()[..] {
        [name, number] => format!("{name} {number}"),
        _ => "a compiler that is not at hand".into(),
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(
        || std::env::consts::ARCH.to_string(),
        |(_, name)| name.trim().to_string(),
    )
}
