//! Whose threads get the cores.

/// Leaves the cores to rayon, which runs the crate's kernels, unless `CANDLE_NUM_THREADS` says otherwise.
///
/// candle keeps a pool of threads of its own for large elementwise operations, pinned to cores and spinning while they
/// wait. On few cores the two pools take turns: the digits then take several times as long with two threads as with one.
/// To be called before anything of candle's runs.
pub fn leave_cores_to_rayon() {
    const POOL: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL).is_none() {
        std::env::set_var(POOL, "1");
    }
}
