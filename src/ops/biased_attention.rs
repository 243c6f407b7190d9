//! Multi-head self-attention with a learned bias for each query and key.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor};

use super::attention::{self, Added, Dims, Heads};
use super::cpu::kernel::{self, Elements};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// Biases of relative positions (BEiT, arXiv 2106.08254): for each query and key the row of a table.
#[derive(Clone, Copy, Debug)]
pub struct RelativeBias<'a> {
    /// [R, num_heads]: each head has a column.
    pub table: &'a Tensor,
    /// The row of each query and key, `u32` below R, where the table is: [1, N, N] for all samples, or [B, N, N] where
    /// each sample keeps tokens of its own.
    pub index: &'a Tensor,
}

impl RelativeBias<'_> {
    /// An error unless it fits tokens, which are of the dtype of `like`. (On other devices than the CPU rows are not read:
    /// that would wait for them.)
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
        match *index.dims() {
            [samples, n, m] if (samples == 1 || samples == batch) && n == tokens && m == tokens => {}
            _ => {
                let expected = format!("[1, {tokens}, {tokens}] or [{batch}, {tokens}, {tokens}]");
                return Err(Error::shape("index", index.dims(), expected));
            }
        }
        if index.dtype() != DType::U32 {
            return Err(Error::DType {
                argument: "index",
                got: index.dtype(),
                expected: "U32".into(),
            });
        }
        if !index.device().is_cpu() {
            return Ok(());
        }
        let largest = with_rows(index, |index| index.iter().max().copied())?;
        match largest {
            Some(row) if row as usize >= rows => {
                Err(Error::invalid("index", row, format!("below {rows}, the table's rows")))
            }
            _ => Ok(()),
        }
    }
}

/// Calls `f` with the rows of an index on the CPU.
pub(crate) fn with_rows<T>(index: &Tensor, f: impl FnOnce(&[u32]) -> T) -> Result<T> {
    let index = index.contiguous()?;
    let (storage, layout) = index.storage_and_layout();
    match (&*storage, kernel::contiguous_range(layout)) {
        (Storage::Cpu(CpuStorage::U32(rows)), Some(range)) => Ok(f(&rows[range])),
        _ => candle_core::bail!("an index is no u32 on the CPU"),
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
/// [`attention`](super::attention()) unpacks and packs.
///
/// # Errors
///
/// If the shapes do not fit, the dtypes of `qkv` and the table differ, one is no floating-point one, or the index is not
/// `u32` below R.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::ops::{biased_attention, RelativeBias};
/// // Two tokens of width 1: equal keys, but the bias keeps each to itself.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// let table = Tensor::new(&[[0f32], [-100.0]], &Device::Cpu)?;
/// let index = Tensor::new(&[[[0u32, 1], [1, 0]]], &Device::Cpu)?;
/// let ys = biased_attention(&qkv, 1, &RelativeBias { table: &table, index: &index })?;
/// assert_eq!(ys.to_vec3::<f32>()?, [[[0.0], [4.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn biased_attention(qkv: &Tensor, num_heads: usize, bias: &RelativeBias) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    check::float("qkv", qkv)?;
    bias.check(dims, "qkv", qkv)?;
    routed(qkv, dims, bias)
}

/// [`biased_attention`] of arguments that fit; the table may be f32 where `qkv` is bf16 or f16.
pub(crate) fn routed(qkv: &Tensor, dims: Dims, bias: &RelativeBias) -> Result<Tensor> {
    let &RelativeBias { table, index } = bias;
    match Route::of(&[qkv]) {
        Route::Kernel => {
            let op = BiasedAttention {
                heads: Heads::new(dims),
                index: index.clone(),
            };
            qkv.contiguous()?.apply_op2(&table.t()?.contiguous()?, op)
        }
        Route::InF32 => in_f32(&[qkv, table], |t| {
            routed(&t[0], dims, &RelativeBias { table: &t[1], index })
        }),
        Route::Composition => compose(qkv, dims, bias),
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
        // A row's gradient is a sum over all pairs at its distance, which would stop growing in half precision.
        let table = table.to_dtype(scores.dtype())?.contiguous()?;
        let biases = table.index_select(&index.flatten_all()?, 0)?;
        let biases = biases.reshape(((), n, n, heads))?;
        scores.broadcast_add(&biases.permute((0, 3, 1, 2))?.contiguous()?)
    })
}

struct BiasedAttention {
    heads: Heads,
    /// [1, N, N] or [B, N, N], on the CPU.
    index: Tensor,
}

impl BiasedAttention {
    /// Calls `f` with what is added to the scores, by the transposed table [heads, R].
    fn with_added<T>(&self, columns: &[f32], heads: usize, f: impl FnOnce(Option<Added>) -> T) -> Result<T> {
        with_rows(&self.index, |index| {
            f(Some(Added::Table {
                columns,
                index,
                rows: columns.len() / heads,
            }))
        })
    }
}

impl CustomOp2 for BiasedAttention {
    fn name(&self) -> &'static str {
        "biased-attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (qkv, columns) = (kernel::elements(s1, l1)?, kernel::elements(s2, l2)?);
        self.with_added(columns, l2.dims()[0], |added| self.heads.forward(qkv, added))
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
        let (dqkv, dtable) = self.with_added(&columns, table.dim(0)?, |added| {
            self.heads.backward(qkv, added, ys, grad, with_table)
        })??;
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
    use candle_core::Device;
    use rand::Rng as _;

    fn bias<'a>(table: &'a Tensor, index: &'a Tensor) -> RelativeBias<'a> {
        RelativeBias { table, index }
    }

    /// Rows below `rows` for each pair of `n` tokens of some samples.
    fn index(samples: usize, n: usize, rows: u32, seed: u64) -> Tensor {
        let mut rng = rng(seed);
        let index: Vec<u32> = (0..samples * n * n).map(|_| rng.random_range(0..rows)).collect();
        Tensor::from_vec(index, (samples, n, n), &Device::Cpu).unwrap()
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
            let rows = index.get(sample).unwrap().flatten_all().unwrap();
            let bias = table.index_select(&rows, 0).unwrap().t().unwrap().contiguous().unwrap();
            let bias = bias.reshape((2, 4, 4)).unwrap();
            let alone = crate::ops::window_attention(&of(&qkv), 2, &bias, None).unwrap();
            assert!(relative(&of(&together), &alone) < 1e-14);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |table: &[usize], index: &Tensor| {
            biased_attention(&random(&[3, 2, 24], 0), 2, &bias(&random(table, 1), index))
                .unwrap_err()
                .to_string()
        };
        let zeros = |shape: [usize; 3]| Tensor::zeros(&shape, DType::U32, &Device::Cpu).unwrap();
        assert_eq!(
            message(&[5, 3], &zeros([1, 2, 2])),
            "table has shape [5, 3], but must be [R, 2]"
        );
        assert_eq!(
            message(&[5, 2], &zeros([2, 2, 2])),
            "index has shape [2, 2, 2], but must be [1, 2, 2] or [3, 2, 2]"
        );
        assert_eq!(
            message(&[5, 2], &random(&[1, 2, 2], 0)),
            "index has dtype F64, but must be U32"
        );
        let beyond = Tensor::new(&[[[0u32, 4], [5, 0]]], &Device::Cpu).unwrap();
        assert_eq!(
            message(&[5, 2], &beyond),
            "index is 5, but must be below 5, the table's rows"
        );
    }
}
