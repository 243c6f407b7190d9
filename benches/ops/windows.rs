//! Attention within windows, and what windows are made by.

use super::*;

bench!(
    window_attention,
    STAGES: Stage,
    |s: Stage| vec![var(&[BATCH * s.count, 49, 3 * 32 * s.heads]), var(&[s.heads, 49, 49])],
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| ops::window_attention(&x[0], s.heads, &x[1], Some(&hidden))
    },
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| reference::window_attention(&x[0], s.heads, &x[1], Some(&hidden))
    }
);

bench!(
    window_partition,
    STAGES: Stage,
    |s: Stage| vec![s.tokens()],
    |s: Stage| move |x: &[Var]| ops::window_partition(&x[0], s.grid(), 7, 3),
    |s: Stage| move |x: &[Var]| reference::window_partition(&x[0], s.grid(), 7, 3)
);

bench!(
    window_reverse,
    STAGES: Stage,
    |s: Stage| vec![var(&[BATCH * s.count, 49, 32 * s.heads])],
    |s: Stage| move |x: &[Var]| ops::window_reverse(&x[0], s.grid(), 7, 3),
    |s: Stage| move |x: &[Var]| reference::window_reverse(&x[0], s.grid(), 7, 3)
);

bench!(
    relative_position_bias,
    STAGES: Stage,
    |s: Stage| vec![var(&[169, s.heads])],
    |_| |x: &[Var]| ops::relative_position_bias(&x[0], 7),
    |_| |x: &[Var]| reference::relative_position_bias(&x[0], 7)
);

/// A constant: it has no training.
mod shift_mask {
    use super::*;

    #[divan::bench(args = STAGES, sample_count = 9, max_time = 1)]
    fn kernel_forward(bencher: Bencher, stage: Stage) {
        bencher.bench_local(|| ops::shift_mask(stage.grid(), 7, 3, &Device::Cpu).unwrap());
    }

    #[divan::bench(args = STAGES, sample_count = 9, max_time = 1)]
    fn composed_forward(bencher: Bencher, stage: Stage) {
        bencher.bench_local(|| reference::shift_mask(stage.grid(), 7, 3, &Device::Cpu).unwrap());
    }
}
