//! How much memory reading takes: no more than a few times what is read.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::{Seed, Weights};

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
