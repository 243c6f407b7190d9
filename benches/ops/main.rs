//! Each operation beside its composition of candle's own, at the sizes of DeiT's vision transformers, ResNet-50 and
//! Swin-T.
//!
//! `cargo bench --bench ops` runs all, `cargo bench --bench ops -- attention` some. `forward` is the forward pass alone,
//! `training` the forward pass and the gradients of all inputs; a row is a model's width and number of tokens, for 8
//! samples: 197 are all of a 224-pixel image, 99 what is left of them when half are dropped. For a ResNet a row is a map's
//! channels and side.

mod sizes;

use candle_core::{Device, Result, Tensor, Var};
use divan::Bencher;
use masksub::ops::{self, reference};

use sizes::*;

fn main() {
    divan::main();
}

const BATCH: usize = 8;

/// A variable with numbers between -1 and 1.
fn var(shape: &[usize]) -> Var {
    let count: usize = shape.iter().product();
    // Steps of the golden ratio: spread evenly, and never repeated.
    let data = (0..count)
        .map(|i| (i as f64 * 0.618_033_988_75).fract() as f32 * 2.0 - 1.0)
        .collect();
    Var::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn forward(bencher: Bencher, inputs: Vec<Var>, op: impl Fn(&[Var]) -> Result<Tensor>) {
    bencher.bench_local(|| op(&inputs).unwrap());
}

fn training(bencher: Bencher, inputs: Vec<Var>, op: impl Fn(&[Var]) -> Result<Tensor>) {
    bencher.bench_local(|| op(&inputs).unwrap().backward().unwrap());
}

/// Four benchmarks of an operation: kernel and composition, forward and training.
macro_rules! bench {
    ($name:ident, $inputs:expr, $kernel:expr, $composition:expr) => {
        bench!($name, SIZES: Size, $inputs, $kernel, $composition);
    };
    ($name:ident, $sizes:ident: $size:ty, $inputs:expr, $kernel:expr, $composition:expr) => {
        mod $name {
            use super::*;

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn kernel_forward(bencher: Bencher, size: $size) {
                forward(bencher, $inputs(size), $kernel(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn composed_forward(bencher: Bencher, size: $size) {
                forward(bencher, $inputs(size), $composition(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn kernel_training(bencher: Bencher, size: $size) {
                training(bencher, $inputs(size), $kernel(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn composed_training(bencher: Bencher, size: $size) {
                training(bencher, $inputs(size), $composition(size));
            }
        }
    };
}

mod fused;
mod maps;
mod positions;
mod tokens;
mod windows;
