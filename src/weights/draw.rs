//! Initial values of a weight, drawn as its hint says.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::init::NormalOrUniform;
use candle_nn::Init;
use rand::Rng;
use rand_distr::{Distribution, Normal};

use crate::check;
use crate::error::{Error, Result};
use crate::key::Seed;
use crate::ops;

/// How many elements a tensor has, if a `usize` tells.
fn elements(shape: &Shape) -> Option<usize> {
    shape
        .dims()
        .iter()
        .try_fold(1usize, |count, &dim| count.checked_mul(dim))
}

/// Refuses weights that are no numbers, or more than their dtype holds.
fn check_init(init: Init, name: &str, drawn: &Tensor) -> Result<()> {
    if !drawn.dtype().is_float() || ops::first_not_finite(&[drawn])?.is_none() {
        return Ok(());
    }
    let allowed = format!("such that all numbers are finite in {:?}", drawn.dtype());
    Err(Error::invalid("init", format!("{init:?} for weight {name}"), allowed))
}

/// Values as candle's `Init` says, from a generator of its own.
pub(super) fn draw(init: Init, shape: &Shape, seed: Seed, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
    check::fits_memory(
        "shape",
        format!("{:?} of weight {name}", shape.dims()),
        elements(shape),
        // As they are drawn, in their dtype, checked, and as a variable.
        size_of::<f32>() + 3 * dtype.size_in_bytes(),
    )?;
    let mut rng = seed.rng_for(name);
    let (spread, uniform) = match init {
        Init::Const(value) => {
            let tensor = Tensor::full(value, shape, device)?.to_dtype(dtype)?;
            check_init(init, name, &tensor)?;
            return Ok(tensor);
        }
        Init::Randn { mean, stdev } => ((mean, stdev), false),
        Init::Uniform { lo, up } => ((lo, up), true),
        Init::Kaiming {
            dist,
            fan,
            non_linearity,
        } => {
            let std = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => ((0.0, std), false),
                NormalOrUniform::Uniform => ((-3f64.sqrt() * std, 3f64.sqrt() * std), true),
            }
        }
    };
    let count = shape.elem_count();
    let values: Vec<f32> = if uniform {
        let (low, high) = spread;
        (0..count)
            .map(|_| (low + (high - low) * rng.random::<f64>()) as f32)
            .collect()
    } else {
        let normal = Normal::new(spread.0, spread.1)
            .map_err(|error| Error::invalid("init", format!("{init:?} for {name}"), error.to_string()))?;
        normal
            .sample_iter(&mut rng)
            .take(count)
            .map(|value| value as f32)
            .collect()
    };
    let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
    check_init(init, name, &tensor)?;
    Ok(tensor)
}
