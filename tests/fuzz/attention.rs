//! Attention by candle-nn's functions, of tensors that do not go together.

use candle_core::{Device, Tensor};
use masksub::nn::attention::cpu_flash::{causal, standard};
use masksub::nn::attention::{flash_attn, flash_attn_varlen_cpu, flash_attn_varlen_unfused, AttnMask};
use masksub::{nn, KeyedRng, Result};
use rand::Rng as _;

use crate::draw::{count, float, small, tensor};
use crate::operations::{back, near, var};
use crate::Scratch;

/// With a gradient, or without one: candle-nn's kernels compute what has none.
fn either(rng: &mut KeyedRng, shape: &[usize]) -> Result<Tensor> {
    if rng.random() {
        return var(rng, shape);
    }
    Ok(tensor(rng, shape)?)
}

fn some(rng: &mut KeyedRng) -> Option<f32> {
    rng.random_bool(0.3).then(|| float(rng) as f32)
}

pub fn attention(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let [queries, keys, d, few] = [0; 4].map(|_| small(rng));
    let (batch, heads) = (rng.random_range(1..3), few * rng.random_range(1..4));
    let scale = float(rng) as f32;
    let (q, k, v) = (
        &[batch, queries, heads, d],
        &[batch, keys, few, d],
        &[batch, keys, few, d],
    );
    let mask = either(rng, &[queries, keys])?;
    let ys = match rng.random_range(0..5) {
        0 => {
            let mask = match rng.random_range(0..3) {
                0 => AttnMask::None,
                1 => AttnMask::causal_with_offset(near(rng, keys.saturating_sub(queries))),
                _ => AttnMask::Mask(mask),
            };
            let (q, k, v) = (either(rng, q)?, either(rng, k)?, either(rng, v)?);
            flash_attn::<f32>(&q, &k, &v, scale, mask, some(rng), some(rng))?
        }
        1 => {
            let (q, k, v) = (either(rng, q)?, either(rng, k)?, either(rng, v)?);
            causal::run_causal_attn_cpu::<f32>(&q, &k, &v, scale, count(rng), some(rng), some(rng))?
        }
        2 => {
            let (q, k, v) = (either(rng, q)?, either(rng, k)?, either(rng, v)?);
            let mask = rng.random_bool(0.7).then_some(&mask);
            standard::run_flash_attn_cpu::<f32>(&q, &k, &v, mask, scale, some(rng), some(rng))?
        }
        3 => {
            let q = either(rng, &[batch, heads, queries, d])?;
            let (k, v) = (
                either(rng, &[batch, few, keys, d])?,
                either(rng, &[batch, few, keys, 2 * d])?,
            );
            let mask = rng.random_bool(0.5).then_some(&mask);
            nn::ops::sdpa(&q, &k, &v, mask, rng.random(), scale, float(rng) as f32)?
        }
        _ => {
            let q = either(rng, &[queries, heads, d])?;
            let (k, v) = (either(rng, &[keys, few, d])?, either(rng, &[keys, few, d])?);
            let [of_q, of_k] = [queries, keys].map(|total| {
                let first = near(rng, rng.clone().random_range(0..=total)) as u32;
                Tensor::new(&[first, (total as u32).wrapping_sub(first)], &Device::Cpu)
            });
            let slopes = if rng.random_bool(0.3) {
                Some(tensor(rng, &[heads])?)
            } else {
                None
            };
            let [left, right] = [0, 1].map(|meant| rng.random_bool(0.4).then(|| near(rng, meant)));
            let attention = if rng.random() {
                flash_attn_varlen_cpu
            } else {
                flash_attn_varlen_unfused
            };
            let (most_q, most_k, causal) = (count(rng), count(rng), rng.random());
            attention(
                &q,
                &k,
                &v,
                slopes.as_ref(),
                &of_q?,
                &of_k?,
                most_q,
                most_k,
                scale,
                causal,
                left,
                right,
            )?
        }
    };
    back(&ys)
}
