//! Selection of tokens.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernel::{self, Elements};
use crate::error::Error;

/// Keeps the prefix tokens and, of the others, those that are listed, in the order of the list.
///
/// # Arguments
///
/// - `tokens`: [B, P + L, D]
/// - `keep`: B * K indices below L, sample by sample; on the host
/// - `num_prefix`: P, the number of tokens at the start of each sample (class token, registers) that are always kept
///
/// Returns [B, P + K, D].
///
/// # Derivative
///
/// The gradient of each token that was kept goes back to its place (added up, should an index be repeated); the others
/// get zeros.
///
/// # PyTorch
///
/// ```text
/// index = P + keep.view(B, K, 1).expand(B, K, D)
/// torch.cat([tokens[:, :P], tokens.gather(1, index)], dim=1)
/// ```
///
/// # Errors
///
/// If `tokens` has another rank or fewer than P tokens, the number of indices is no multiple of B, or an index is not
/// below L.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // One class token and three others, of width 1.
/// let tokens = Tensor::new(&[[[9f32], [0.0], [1.0], [2.0]]], &Device::Cpu)?;
/// let kept = masksub::ops::gather_rows(&tokens, &[2, 0], 1)?;
/// assert_eq!(kept.to_vec3::<f32>()?, [[[9.0], [2.0], [0.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gather_rows(tokens: &Tensor, keep: &[u32], num_prefix: usize) -> Result<Tensor> {
    let op = GatherRows::new(tokens.dims(), keep, num_prefix)?;
    if !kernel::on_cpu_f32(&[tokens]) || tokens.elem_count() == 0 {
        return composition(tokens, keep, num_prefix);
    }
    tokens.contiguous()?.apply_op1(op)
}

/// [`gather_rows`] of candle's operations.
pub fn composition(tokens: &Tensor, keep: &[u32], num_prefix: usize) -> Result<Tensor> {
    let op = GatherRows::new(tokens.dims(), keep, num_prefix)?;
    let rows: Vec<u32> = op.sources().map(|row| row as u32).collect();
    let rows = Tensor::new(rows, tokens.device())?;
    tokens
        .reshape((op.batch * op.tokens, op.width))?
        .index_select(&rows, 0)?
        .reshape((op.batch, op.prefix + op.kept(), op.width))
}

struct GatherRows {
    batch: usize,
    /// P + L.
    tokens: usize,
    width: usize,
    prefix: usize,
    keep: Vec<u32>,
}

impl GatherRows {
    fn new(tokens: &[usize], keep: &[u32], prefix: usize) -> crate::error::Result<Self> {
        let &[batch, num_tokens, width] = tokens else {
            return Err(Error::shape("tokens", tokens, "[B, P + L, D]"));
        };
        let Some(positions) = num_tokens.checked_sub(prefix) else {
            return Err(Error::shape(
                "tokens",
                tokens,
                format!("[B, P + L, D] with num_prefix P = {prefix}"),
            ));
        };
        if batch == 0 || !keep.len().is_multiple_of(batch) {
            let given = format!("{} indices", keep.len());
            return Err(Error::invalid(
                "keep",
                given,
                format!("as many indices for each of {batch} samples"),
            ));
        }
        if let Some(index) = keep.iter().find(|&&index| index as usize >= positions) {
            return Err(Error::invalid("keep", index, format!("below L = {positions}")));
        }
        Ok(Self {
            batch,
            tokens: num_tokens,
            width,
            prefix,
            keep: keep.to_vec(),
        })
    }

    /// K.
    fn kept(&self) -> usize {
        self.keep.len() / self.batch
    }

    /// For each row of the result the row of `tokens` it comes from, samples one after another.
    fn sources(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.batch).flat_map(move |sample| self.sources_of(sample).map(move |row| sample * self.tokens + row))
    }

    fn sources_of(&self, sample: usize) -> impl Iterator<Item = usize> + '_ {
        let keep = &self.keep[sample * self.kept()..][..self.kept()];
        (0..self.prefix).chain(keep.iter().map(|&index| self.prefix + index as usize))
    }
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        "gather-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let tokens = kernel::elements(storage, layout)?;
        let rows = self.prefix + self.kept();
        let mut out = vec![0f32; self.batch * rows * self.width];
        if !out.is_empty() {
            let samples = tokens.par_chunks(self.tokens * self.width);
            let outs = out.par_chunks_mut(rows * self.width);
            outs.zip(samples).enumerate().for_each(|(sample, (out, tokens))| {
                for (out, row) in out.chunks_exact_mut(self.width).zip(self.sources_of(sample)) {
                    out.copy_from_slice(&tokens[row * self.width..][..self.width]);
                }
            });
        }
        Ok((CpuStorage::F32(out), (self.batch, rows, self.width).into()))
    }

    fn bwd(&self, tokens: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let g = Elements::of(&grad)?;
        let rows = self.prefix + self.kept();
        let mut out = vec![0f32; tokens.elem_count()];
        if rows > 0 {
            let grads = g.par_chunks(rows * self.width);
            let outs = out.par_chunks_mut(self.tokens * self.width);
            outs.zip(grads).enumerate().for_each(|(sample, (out, grads))| {
                for (grad, row) in grads.chunks_exact(self.width).zip(self.sources_of(sample)) {
                    for (o, g) in out[row * self.width..][..self.width].iter_mut().zip(grad) {
                        *o += g;
                    }
                }
            });
        }
        kernel::tensor(out, tokens.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::seq::SliceRandom as _;
    use rand::Rng as _;

    /// For each sample `kept` of `positions` indices, in random order.
    fn draw(batch: usize, positions: usize, kept: usize, rng: &mut impl rand::Rng) -> Vec<u32> {
        let mut keep = vec![];
        for _ in 0..batch {
            let mut all: Vec<u32> = (0..positions as u32).collect();
            all.shuffle(rng);
            keep.extend(&all[..kept]);
        }
        keep
    }

    fn check_keep(shape: [usize; 3], keep: &[u32], prefix: usize, seed: u64) {
        let kernel = |args: &[Tensor]| gather_rows(&args[0], keep, prefix);
        let reference = |args: &[Tensor]| composition(&args[0], keep, prefix);
        check(&kernel, &reference, &[&shape], seed);
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(7);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, p, l, d) = (size(4), size(3) - 1, size(40), size(30));
            let k = size(l);
            let keep = draw(b, l, k, &mut rng);
            check_keep([b, p + l, d], &keep, p, seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_keep([1, 1, 1], &[0], 0, 0);
        // Nothing but the prefix.
        check_keep([2, 4, 5], &[], 1, 1);
        check_keep([2, 4, 5], &[], 4, 1);
        // A token that is kept twice gets both gradients.
        check_keep([1, 4, 5], &[2, 2, 0], 1, 2);
        check_keep([8, 197, 32], &draw(8, 196, 98, &mut rng(8)), 1, 3);
    }

    #[test]
    fn kept_rows_are_the_tokens_themselves() {
        let tokens = random(&[3, 7, 2], 0);
        let keep = [4, 0, 1, 3, 2, 2];
        let kept = gather_rows(&tokens, &keep, 2).unwrap().to_vec3::<f64>().unwrap();
        let tokens = tokens.to_vec3::<f64>().unwrap();
        for (s, (tokens, kept)) in tokens.iter().zip(&kept).enumerate() {
            assert_eq!(kept[..2], tokens[..2]);
            for i in 0..2 {
                assert_eq!(kept[2 + i], tokens[2 + keep[2 * s + i] as usize]);
            }
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let reference = |args: &[Tensor]| composition(&args[0], &[2, 0, 1, 3], 1);
        check_derivative(&reference, &[&[2, 5, 3]], 0);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |shape: &[usize], keep: &[u32], prefix| {
            gather_rows(&random(shape, 0), keep, prefix).unwrap_err().to_string()
        };
        assert_eq!(message(&[2, 5, 3], &[0, 4], 1), "keep is 4, but must be below L = 4");
        assert_eq!(
            message(&[2, 5, 3], &[0, 1, 2], 1),
            "keep is 3 indices, but must be as many indices for each of 2 samples"
        );
        assert_eq!(
            message(&[2, 5, 3], &[], 6),
            "tokens has shape [2, 5, 3], but must be [B, P + L, D] with num_prefix P = 6"
        );
        assert_eq!(
            message(&[5, 3], &[0], 1),
            "tokens has shape [5, 3], but must be [B, P + L, D]"
        );
    }
}
