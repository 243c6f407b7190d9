//! How much memory is taken: by reading a few times what is read at most, by a step what its model keeps.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::models::Recompute;
use masksub::ops;
use masksub::pretrained::Pretrained;
use masksub::{DropToken, Forward, MaskSub, MaskToken, Params, RandomMasking, Seed, SubBranch, Weights};

/// The system's allocator, with the most bytes there were.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: memory is the system's, handed out and taken back as the caller says.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `memory` is the system's, of this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(side: usize) -> Config {
    let small = Config {
        embed_dim: 256,
        depth: 1,
        num_heads: 1,
        mlp_dim: 8,
        ..Config::mae_base(2)
    };
    small.with_input(side, 1, 1)
}

/// The position embedding of 100 x 100 positions is nearly all of the file.
#[test]
fn of_a_resized_table_is_three_times_the_file_at_most() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mae_finetuned.safetensors");
    let device = Device::Cpu;
    {
        let weights = Weights::seeded(Seed::new(0));
        VisionTransformer::new(&config(100), weights.var_builder(DType::F32, &device)).unwrap();
        weights.varmap().save(&path).unwrap();
    }
    let file = std::fs::metadata(&path).unwrap().len() as f64;
    for side in [100, 99, 101] {
        let before = USED.load(Relaxed);
        PEAK.store(before, Relaxed);
        let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
        VisionTransformer::new(&config(side), weights.var_builder(DType::F32, &device)).unwrap();
        assert_eq!(side != 100, weights.notes().iter().any(|note| note.contains("bicubic")));
        let times = (PEAK.load(Relaxed) - before) as f64 / file;
        println!("{side} x {side} positions: {times:.2} times the file of {file} bytes");
        assert!(times < 3.0, "{side}: {times}");
    }
}

/// Bytes at the peak of a MaskSub step of a ViT that keeps little but what blocks keep.
fn of_a_vit(recompute: Recompute) -> f64 {
    let cfg = Config {
        embed_dim: 48,
        depth: 12,
        num_heads: 3,
        mlp_dim: 192,
        recompute,
        ..Config::deit3_tiny(3)
    };
    let device = Device::Cpu;
    let weights = Weights::seeded(Seed::new(0));
    let vit = VisionTransformer::new(&cfg.with_input(48, 4, 1), weights.var_builder(DType::F32, &device)).unwrap();
    let branch = DropToken::new(RandomMasking::new(0.5).unwrap());
    of_a_step(vit, branch, &weights)
}

/// As [`of_a_vit`], of a Swin of one stage.
fn of_a_swin(recompute: Recompute) -> f64 {
    let cfg = swin::Config {
        image_size: (48, 48),
        in_channels: 1,
        embed_dim: 48,
        depths: vec![8],
        num_heads: vec![3],
        window_size: 6,
        recompute,
        ..swin::Config::tiny(3)
    };
    let weights = Weights::seeded(Seed::new(0));
    let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let branch = MaskToken::new(RandomMasking::new(0.5).unwrap(), 4).unwrap();
    of_a_step(swin, branch, &weights)
}

fn of_a_step<M: Forward, S: SubBranch<M>>(model: M, branch: S, weights: &Weights) -> f64 {
    let device = Device::Cpu;
    let model = MaskSub::new(model, branch, Params::from_varmap(weights.varmap()));
    let images = Tensor::randn(0f32, 1.0, (8, 1, 48, 48), &device).unwrap();
    let labels = Tensor::zeros(8, DType::U32, &device).unwrap();
    ops::empty_cache();
    let before = USED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let loss = |logits: &Tensor| candle_nn::loss::cross_entropy(logits, &labels);
    model.backward(&images, Seed::new(1).at(0), loss).unwrap();
    (PEAK.load(Relaxed) - before) as f64
}

#[test]
fn of_a_step_is_less_where_blocks_recompute() {
    let _alone = alone();
    for (of, most) in [(of_a_vit as fn(Recompute) -> f64, [0.5, 0.75]), (of_a_swin, [0.6, 0.8])] {
        let kept = of(Recompute::Never);
        let [all, half] = [Recompute::EveryBlock, Recompute::EveryOther].map(|recompute| of(recompute) / kept);
        println!("{kept} bytes; recomputed in every block {all:.2} of them, in every other {half:.2}");
        assert!(all < most[0] && half < most[1] && all < half - 0.1, "{all} {half}");
    }
}
