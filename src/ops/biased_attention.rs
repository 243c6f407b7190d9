//! Multi-head self-attention with a learned bias for each query and key.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::attention::{self, Added, Dims, Heads};
use super::cpu::kernel::{self, Elements};
use super::route::{in_f32, is_half, Route};
use crate::check;
use crate::error::Error;

/// Biases of relative positions (BEiT, arXiv 2106.08254): for each query and key the row of a table.
#[derive(Clone, Copy, Debug)]
pub struct RelativeBias<'a> {
    /// [R, num_heads]: each head has a column.
    pub table: &'a Tensor,
    /// The row of each query and key, below R: [N, N] for all samples, or [B, N, N] where each sample keeps tokens of
    /// its own.
    pub index: &'a [u32],
}

impl RelativeBias<'_> {
    /// An error unless it fits tokens, which are of the dtype of `like`.
    pub(crate) fn check(&self, dims: Dims, argument: &'static str, like: &Tensor) -> crate::error::Result<()> {
        let &Self { table, index } = self;
        let Dims {
            batch, tokens, heads, ..
        } = dims;
        check::same_dtype("table", table, argument, like)?;
        let rows = match *table.dims() {
            [rows, columns] if columns == heads => rows,
            _ => return Err(Error::shape("table", table.dims(), format!("[R, {heads}]"))),
        };
        let pairs = tokens * tokens;
        if index.len() != pairs && index.len() != batch * pairs {
            let given = format!("{} numbers", index.len());
            let allowed = format!("{pairs} for all samples, or as many for each of {batch}");
            return Err(Error::invalid("index", given, allowed));
        }
        match index.iter().find(|&&row| row as usize >= rows) {
            Some(row) => Err(Error::invalid("index", row, format!("below {rows}, the table's rows"))),
            None => Ok(()),
        }
    }
}

/// y = softmax(q kᵀ / √d + bias) v in each head, the heads' results side by side: [`attention`](super::attention()) with
/// biases of relative positions.
///
/// # Arguments
///
/// - `qkv`: [B, N, 3 D], packed as for [`attention`](super::attention())
/// - `num_heads`: divides D
/// - `bias`: the table, of the dtype of `qkv`, and its rows
///
/// Returns [B, N, D].
///
/// # Derivative
///
/// As that of [`attention`](super::attention()); a row of the table gets the sum of the gradients of its pairs' scores.
///
/// # PyTorch
///
/// `torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=table[index].permute(0, 3, 1, 2))` of what
/// [`attention`](super::attention()) unpacks and packs, with `index` [1, N, N] or [B, N, N].
///
/// # Errors
///
/// If the shapes do not fit, the dtypes of `qkv` and the table differ, one is no floating-point one, or an index is not
/// below R.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::ops::{biased_attention, RelativeBias};
/// // Two tokens of width 1: equal keys, but the bias keeps each to itself.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// let table = Tensor::new(&[[0f32], [-100.0]], &Device::Cpu)?;
/// let ys = biased_attention(&qkv, 1, &RelativeBias { table: &table, index: &[0, 1, 1, 0] })?;
/// assert_eq!(ys.to_vec3::<f32>()?, [[[0.0], [4.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn biased_attention(qkv: &Tensor, num_heads: usize, bias: &RelativeBias) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    check::float("qkv", qkv)?;
    bias.check(dims, "qkv", qkv)?;
    routed(qkv, dims, bias)
}

/// [`biased_attention`] of arguments that fit.
pub(crate) fn routed(qkv: &Tensor, dims: Dims, bias: &RelativeBias) -> Result<Tensor> {
    let &RelativeBias { table, index } = bias;
    if is_half(table) {
        // A row's gradient is a sum over all pairs at its distance, which would stop growing in half precision.
        return in_f32(&[qkv, table], |t| {
            routed(&t[0], dims, &RelativeBias { table: &t[1], index })
        });
    }
    match Route::of(&[qkv, table]) {
        Route::Kernel => {
            let op = BiasedAttention {
                heads: Heads::new(dims),
                index: index.to_vec(),
            };
            qkv.contiguous()?.apply_op2(&table.t()?.contiguous()?, op)
        }
        Route::InF32 | Route::Composition => compose(qkv, dims, bias),
    }
}

/// [`biased_attention`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize, bias: &RelativeBias) -> Result<Tensor> {
    compose(qkv, Dims::of(qkv.dims(), num_heads)?, bias)
}

fn compose(qkv: &Tensor, dims: Dims, bias: &RelativeBias) -> Result<Tensor> {
    let &RelativeBias { table, index } = bias;
    attention::composition_with(qkv, dims, |scores| {
        let (n, heads) = (dims.tokens, dims.heads);
        let rows = Tensor::new(index, table.device())?;
        let biases = table.contiguous()?.index_select(&rows, 0)?;
        let biases = biases.reshape(((), n, n, heads))?;
        scores.broadcast_add(&biases.permute((0, 3, 1, 2))?.contiguous()?)
    })
}

struct BiasedAttention {
    heads: Heads,
    /// [1, N, N] or [B, N, N]
    index: Vec<u32>,
}

impl BiasedAttention {
    /// What is added to the scores, by the transposed table [heads, R].
    fn added<'a>(&'a self, columns: &'a [f32], shape: &[usize]) -> Option<Added<'a>> {
        let rows = shape.last().copied().unwrap_or_default();
        Some(Added::Table {
            columns,
            index: &self.index,
            rows,
        })
    }
}

impl CustomOp2 for BiasedAttention {
    fn name(&self) -> &'static str {
        "biased-attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (qkv, columns) = (kernel::elements(s1, l1)?, kernel::elements(s2, l2)?);
        Ok(self.heads.forward(qkv, self.added(columns, l2.dims())))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        table: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let with_table = table.track_op();
        let columns = Elements::of(table)?;
        let added = self.added(&columns, table.dims());
        let (dqkv, dtable) = self.heads.backward(qkv, added, ys, grad, with_table)?;
        let dtable = if with_table {
            Some(kernel::tensor(dtable, table.dims())?)
        } else {
            None
        };
        Ok((qkv.track_op().then_some(dqkv), dtable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, relative, rng};
    use rand::Rng as _;

    fn bias<'a>(table: &'a Tensor, index: &'a [u32]) -> RelativeBias<'a> {
        RelativeBias { table, index }
    }

    /// Rows below `rows` for each pair of `n` tokens of some samples.
    fn index(samples: usize, n: usize, rows: u32, seed: u64) -> Vec<u32> {
        let mut rng = rng(seed);
        (0..samples * n * n).map(|_| rng.random_range(0..rows)).collect()
    }

    #[test]
    fn equals_its_composition() {
        for (indices, [b, n, heads, d], rows, seed) in [
            (1, [2, 5, 3, 4], 7, 0),
            (2, [2, 5, 3, 4], 40, 1),
            (3, [3, 1, 1, 2], 1, 2),
            (1, [4, 33, 2, 8], 9, 3),
            // More samples than a head's table is summed up in, more heads than that, more queries than a block holds.
            (70, [70, 3, 1, 2], 5, 4),
            (2, [2, 3, 70, 2], 5, 5),
            (2, [2, 300, 1, 2], 600, 6),
        ] {
            let index = index(indices, n, rows, seed);
            let kernel = |args: &[Tensor]| biased_attention(&args[0], heads, &bias(&args[1], &index));
            let reference = |args: &[Tensor]| composition(&args[0], heads, &bias(&args[1], &index));
            let shapes: [&[usize]; 2] = [&[b, n, 3 * heads * d], &[rows as usize, heads]];
            check(&kernel, &reference, &shapes, seed);
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for (samples, seed) in [(1, 0), (2, 1)] {
            let index = index(samples, 3, 4, seed);
            let reference = |args: &[Tensor]| composition(&args[0], 2, &bias(&args[1], &index));
            check_derivative(&reference, &[&[2, 3, 12], &[4, 2]], seed);
        }
    }

    /// The biases are those of window attention, and each sample has its own.
    #[test]
    fn equals_window_attention_sample_by_sample() {
        let (qkv, table, index) = (random(&[3, 4, 24], 0), random(&[9, 2], 1), index(3, 4, 9, 2));
        let together = biased_attention(&qkv, 2, &bias(&table, &index)).unwrap();
        for sample in 0..3 {
            let of = |tensor: &Tensor| tensor.narrow(0, sample, 1).unwrap();
            let rows = Tensor::new(&index[16 * sample..][..16], table.device()).unwrap();
            let bias = table.index_select(&rows, 0).unwrap().t().unwrap().contiguous().unwrap();
            let bias = bias.reshape((2, 4, 4)).unwrap();
            let alone = crate::ops::window_attention(&of(&qkv), 2, &bias, None).unwrap();
            assert!(relative(&of(&together), &alone) < 1e-14);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |table: &[usize], index: &[u32]| {
            biased_attention(&random(&[3, 2, 24], 0), 2, &bias(&random(table, 1), index))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(message(&[5, 3], &[0; 4]), "table has shape [5, 3], but must be [R, 2]");
        assert_eq!(
            message(&[5, 2], &[0; 8]),
            "index is 8 numbers, but must be 4 for all samples, or as many for each of 3"
        );
        assert_eq!(
            message(&[5, 2], &[0, 4, 5, 0]),
            "index is 5, but must be below 5, the table's rows"
        );
    }
}
