//! Memory that is freed and kept. Without libtest, whose threads have heaps before a test begins.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn main() {
    let each_time = page_faults_of(fill).min(page_faults_of(fill));
    assert!(each_time > 500, "{each_time}: even of 64 KiB these are more pages");
    assert!(masksub::ops::keep_freed_memory());
    // (A thread that had allocated before would have a heap of its own.)
    let here_and_there = || {
        fill();
        std::thread::spawn(fill).join().unwrap();
    };
    here_and_there();
    let kept = page_faults_of(here_and_there);
    assert!(kept < each_time / 20, "{kept} page faults of {each_time}");
    println!("{kept} page faults where it was {each_time}");
}

/// As candle does it for each operation of a model: 64 MiB are allocated, filled and freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn fill() {
    drop(std::hint::black_box(vec![1f32; 16 << 20]));
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn page_faults_of(work: impl Fn()) -> u64 {
    let before = page_faults();
    work();
    page_faults() - before
}

/// Pages that the system has handed out to this process: the eighth number behind its name.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let numbers = stat.rsplit(')').next().unwrap();
    numbers.split_whitespace().nth(7).unwrap().parse().unwrap()
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn main() {
    assert!(!masksub::ops::keep_freed_memory());
}
