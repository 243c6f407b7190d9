//! Stochastic depth (Huang et al. 2016, arXiv 1603.09382) that costs what it keeps: a residual branch is computed for the
//! samples that keep it.
//!
//! Where a sample's factor is 0 its result is its input, and the branch of it would be multiplied by nothing. The kept
//! samples are packed into a smaller batch, and what the branch makes of them is put back. Results and gradients are
//! those of a branch that is computed whole, up to the order in which sums over samples are added.

use candle_core::{Result, Tensor};

use super::stream::Link;
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::gather_rows;
#[cfg(feature = "cuda")]
use crate::ops::route;

/// What of a batch a branch is computed for.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    /// The number of samples.
    pub(crate) batch: usize,
    /// A factor for each.
    pub(crate) drop_path: Option<&'a [f32]>,
    /// Their places in the whole batch, unless all are computed.
    pub(crate) samples: Option<&'a [usize]>,
}

impl<'a> Share<'a> {
    fn all(batch: usize, drop_path: Option<&'a [f32]>) -> Self {
        Self {
            batch,
            drop_path,
            samples: None,
        }
    }
}

/// The samples of a batch that keep a branch, and their factors.
struct KeptSamples {
    samples: Vec<usize>,
    factors: Vec<f32>,
}

impl KeptSamples {
    /// Nothing where all samples are kept: there is nothing to pack.
    fn of(drop_path: Option<&[f32]>) -> Option<Self> {
        let factors = drop_path.filter(|factors| factors.contains(&0.0))?;
        let kept = factors.iter().copied().enumerate().filter(|&(_, factor)| factor != 0.0);
        let (samples, factors) = kept.unzip();
        Some(Self { samples, factors })
    }

    fn share(&self) -> Share<'_> {
        Share {
            batch: self.samples.len(),
            drop_path: Some(&self.factors),
            samples: Some(&self.samples),
        }
    }

    /// The rows of the kept samples, one after the other.
    fn pack(&self, rows: &[f32], batch: usize) -> Buffer {
        let width = rows.len() / batch;
        let mut packed = Buffer::new(self.samples.len() * width);
        kernel::for_rows(&mut packed, width, |first, packed| {
            for (sample, packed) in self.samples[first..].iter().zip(packed.chunks_exact_mut(width)) {
                packed.copy_from_slice(&rows[sample * width..][..width]);
            }
        });
        packed
    }

    /// Writes `packed` to the rows of the kept samples in `rows`, and lets `skip(sample, row)` write the others.
    fn unpack(&self, packed: &[f32], rows: &mut [f32], batch: usize, skip: impl Fn(usize, &mut [f32]) + Sync) {
        let width = rows.len() / batch;
        kernel::for_rows(rows, width, |first, rows| {
            for (sample, row) in (first..).zip(rows.chunks_exact_mut(width)) {
                match self.samples.binary_search(&sample) {
                    Ok(at) => row.copy_from_slice(&packed[at * width..][..width]),
                    Err(_) => skip(sample, row),
                }
            }
        });
    }
}

/// The residual branch that `op` makes, given what of a batch it is for. Where it computes the first tokens alone, the
/// input of these is what a dropped sample keeps. No branch looks at its [result](Backward::ys) again: where samples are
/// dropped it has none.
pub(crate) fn branch<O: Operation<Kept: 'static>>(
    batch: usize,
    drop_path: Option<&[f32]>,
    op: impl FnOnce(Share) -> Result<O>,
) -> Result<Box<dyn Link>> {
    Ok(match KeptSamples::of(drop_path) {
        None => Box::new(op(Share::all(batch, drop_path))?),
        Some(kept) => Box::new(Packed {
            op: op(kept.share())?,
            kept,
            batch,
        }),
    })
}

/// An operation on the kept samples of a batch.
struct Packed<O> {
    op: O,
    kept: KeptSamples,
    /// Of all samples.
    batch: usize,
}

impl<O: Operation> Packed<O> {
    /// The gradients of the kept samples' inputs.
    fn backward_packed(&self, of: Backward, kept: Option<O::Kept>, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let Some(kept) = kept else {
            no_gradients(of.params.len(), param_grads)?;
            return Ok(vec![]);
        };
        let [xs, grads] = [of.xs, of.grads].map(|rows| self.kept.pack(rows, self.batch));
        let of = Backward {
            xs: &xs,
            ys: &[],
            grads: &grads,
            ..of
        };
        self.op.backward(of, kept, param_grads)
    }
}

impl<O: Operation> Operation for Packed<O> {
    const NAME: &'static str = O::NAME;

    /// Nothing where no sample is kept.
    type Kept = Option<O::Kept>;

    fn result_dims(&self) -> Vec<usize> {
        let mut dims = self.op.result_dims();
        dims[0] = self.batch;
        dims
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Self::Kept)> {
        let (packed, kept) = if self.kept.samples.is_empty() {
            (vec![], None)
        } else {
            let (ys, kept) = self.op.forward(&self.kept.pack(xs, self.batch), params, keep)?;
            (ys, Some(kept))
        };
        let mut ys = vec![0f32; self.result_dims().iter().product()];
        let per_sample = xs.len() / self.batch;
        self.kept.unpack(&packed, &mut ys, self.batch, |sample, y| {
            y.copy_from_slice(&xs[sample * per_sample..][..y.len()]);
        });
        Ok((ys, kept))
    }

    fn keeps(&self) -> bool {
        self.op.keeps()
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Self::Kept> {
        if self.kept.samples.is_empty() {
            return Ok(None);
        }
        self.op.recompute(&self.kept.pack(xs, self.batch), params).map(Some)
    }

    fn backward(&self, of: Backward, kept: Self::Kept, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let packed = self.backward_packed(of, kept, param_grads)?;
        if !of.wants_dxs {
            return Ok(vec![]);
        }
        let mut dxs = vec![0f32; of.xs.len()];
        let per_sample = of.grads.len() / self.batch;
        self.kept.unpack(&packed, &mut dxs, self.batch, |sample, dx| {
            dx[..per_sample].copy_from_slice(&of.grads[sample * per_sample..][..per_sample]);
        });
        Ok(dxs)
    }

    fn backward_in_place(
        &self,
        xs: &[f32],
        params: &[&[f32]],
        mut grads: Vec<f32>,
        kept: Self::Kept,
        param_grads: &mut ParamGrads,
    ) -> Result<Vec<f32>> {
        let of = Backward {
            xs,
            ys: &[],
            grads: &grads,
            params,
            wants_dxs: true,
        };
        if grads.len() != xs.len() {
            return self.backward(of, kept, param_grads);
        }
        let packed = self.backward_packed(of, kept, param_grads)?;
        // A dropped sample's gradients are its input's.
        self.kept.unpack(&packed, &mut grads, self.batch, |_, _| {});
        Ok(grads)
    }
}

/// Zeros: parameters that no sample has used have a gradient all the same.
fn no_gradients(params: usize, param_grads: &mut ParamGrads) -> Result<()> {
    (0..params).try_for_each(|index| {
        param_grads.write(index, |out, write| {
            if let Write::Replace = write {
                out.fill(0.0);
            }
        })
    })
}

/// The residual branch `branch`, given samples and which they are, of candle's operations: what [`branch`] is elsewhere
/// than in `f32` on the CPU.
pub(crate) fn compose(
    xs: &Tensor,
    drop_path: Option<&[f32]>,
    branch: impl Fn(&Tensor, Share) -> Result<Tensor>,
) -> Result<Tensor> {
    let batch = xs.dim(0)?;
    let Some(kept) = KeptSamples::of(drop_path) else {
        return branch(xs, Share::all(batch, drop_path));
    };
    if kept.samples.is_empty() {
        // Parameters that no sample has used have a gradient all the same: that of one sample of zeros, times 0.
        let one = Share {
            batch: 1,
            drop_path: Some(&[0.0]),
            samples: Some(&[0]),
        };
        let zeros = branch(&xs.narrow(0, 0, 1)?.zeros_like()?, one)?;
        return xs.narrow(1, 0, zeros.dim(1)?)?.broadcast_add(&zeros);
    }
    let computed = branch(&select(xs, &kept.samples)?, kept.share())?;
    // Of the first tokens only, where the branch computes no more.
    let skipped = xs.narrow(1, 0, computed.dim(1)?)?;
    #[cfg(feature = "cuda")]
    if route::on_cuda(&[&computed, &skipped]) {
        let places: Vec<_> = (0..batch)
            .map(|sample| kept.samples.binary_search(&sample).ok())
            .collect();
        return cuda::rows::on_device::merge(&computed, &skipped, &places);
    }
    let (mut kept_at, mut dropped_at) = (0..kept.samples.len(), kept.samples.len()..batch);
    let is_kept = |sample| kept.samples.binary_search(&sample).is_ok();
    let dropped: Vec<usize> = (0..batch).filter(|&sample| !is_kept(sample)).collect();
    let places = (0..batch).filter_map(|sample| {
        if is_kept(sample) {
            kept_at.next()
        } else {
            dropped_at.next()
        }
    });
    let places: Vec<usize> = places.collect();
    let skipped = select(&skipped, &dropped)?;
    select(&Tensor::cat(&[computed, skipped], 0)?, &places)
}

/// Some samples of `xs`, in that order.
pub(crate) fn select(xs: &Tensor, samples: &[usize]) -> Result<Tensor> {
    gather_rows::select(xs, samples.iter().map(|&sample| sample as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::fused::affine::affines;
    use crate::ops::testing::random;
    use crate::ops::{attention_branch, mlp_branch, Activation, AttentionBranch, MlpBranch, Positions, Tokens};
    use candle_core::{DType, Device, Var};

    type Branch = fn(&Tensor, &[Tensor], Option<&[f32]>) -> Result<Tensor>;

    fn mlp(xs: &Tensor, params: &[Tensor], drop_path: Option<&[f32]>) -> Result<Tensor> {
        let [norm, fc1, fc2] = affines(params);
        let branch = MlpBranch {
            norm,
            eps: 1e-6,
            fc1,
            activation: Activation::Gelu,
            fc2,
            gamma: None,
            recompute: false,
        };
        mlp_branch(xs, &branch, drop_path)
    }

    fn attention(xs: &Tensor, params: &[Tensor], drop_path: Option<&[f32]>) -> Result<Tensor> {
        let [norm, qkv, proj] = affines(params);
        let branch = AttentionBranch {
            norm,
            eps: 1e-6,
            qkv,
            num_heads: 2,
            proj,
            gamma: None,
            recompute: false,
        };
        attention_branch(xs, &branch, Tokens::First, &Positions::default(), drop_path)
    }

    const WIDTH: usize = 4;

    /// Each branch with the width of what is in its middle.
    const BRANCHES: [(Branch, usize, [usize; 2]); 2] = [(mlp, 7, [WIDTH, 7]), (attention, 12, [WIDTH, WIDTH])];

    /// Parameters, input and result, of [B, 3, 4] with not a number throughout the samples whose factor is 0.
    fn run(branch: usize, factors: &[f32], dtype: DType) -> (Vec<Var>, Var, Tensor) {
        let (branch, middle, proj) = BRANCHES[branch];
        let shapes: [&[usize]; 6] = [&[WIDTH], &[WIDTH], &[middle, WIDTH], &[middle], &proj, &[WIDTH]];
        let var = |tensor: Tensor| Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap();
        let params: Vec<Var> = (0..)
            .zip(shapes)
            .map(|(seed, shape)| var(random(shape, seed)))
            .collect();
        let factor = Tensor::from_slice(factors, (factors.len(), 1, 1), &Device::Cpu).unwrap();
        let number = factor
            .to_dtype(DType::F64)
            .unwrap()
            .broadcast_as((factors.len(), 3, WIDTH))
            .unwrap();
        let nan = number.zeros_like().unwrap().affine(1.0, f64::NAN).unwrap();
        let xs = random(&[factors.len(), 3, WIDTH], 9);
        let xs = var(number.ne(0.0).unwrap().where_cond(&xs, &nan).unwrap());
        let tensors: Vec<Tensor> = params.iter().map(|var| var.as_tensor().clone()).collect();
        let ys = branch(&xs, &tensors, Some(factors)).unwrap();
        (params, xs, ys)
    }

    fn is_finite(tensor: &Tensor) -> bool {
        let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        values.to_vec1::<f64>().unwrap().iter().all(|x| x.is_finite())
    }

    // A branch that is computed and multiplied by 0 makes NaN of NaN, in all gradients.
    #[test]
    fn a_dropped_sample_is_not_computed() {
        for (branch, dtype) in [(0, DType::F32), (0, DType::F64), (1, DType::F32), (1, DType::F64)] {
            for factors in [
                [0.0, 2.0, 0.0, 0.5],
                [0.0, 0.0, 1.5, 0.0],
                [2.0, 0.5, 1.0, 3.0],
                [0.0; 4],
            ] {
                let case = format!("branch {branch}, {dtype:?}, {factors:?}");
                let (params, xs, ys) = run(branch, &factors, dtype);
                let grads = ys.sum_all().unwrap().backward().unwrap();
                for (i, var) in params.iter().enumerate() {
                    assert!(is_finite(grads.get(var).unwrap()), "{case}: parameter {i}");
                }
                let dxs = grads.get(&xs).unwrap();
                assert!(is_finite(dxs), "{case}");
                for (sample, factor) in factors.into_iter().enumerate() {
                    let y = ys.get(sample).unwrap();
                    assert_eq!(is_finite(&y), factor != 0.0, "{case}: {sample}");
                    if factor == 0.0 {
                        // What goes through the sum, of all tokens that the result has.
                        let dx = dxs.get(sample).unwrap().to_dtype(DType::F64).unwrap();
                        let passed = dx.narrow(0, 0, y.dim(0).unwrap()).unwrap();
                        let count = passed.elem_count() as f64;
                        assert_eq!(
                            passed.min_all().unwrap().to_scalar::<f64>().unwrap(),
                            1.0,
                            "{case}: {sample}"
                        );
                        assert_eq!(
                            dx.sum_all().unwrap().to_scalar::<f64>().unwrap(),
                            count,
                            "{case}: {sample}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn where_all_is_dropped_gradients_are_0_and_not_missing() {
        for (branch, dtype) in [(0, DType::F32), (0, DType::F64), (1, DType::F32), (1, DType::F64)] {
            let (params, _, ys) = run(branch, &[0.0, 0.0], dtype);
            let grads = ys.sum_all().unwrap().backward().unwrap();
            for (i, var) in params.iter().enumerate() {
                let sum = grads.get(var).unwrap().abs().unwrap().sum_all().unwrap();
                let sum = sum.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
                assert_eq!(sum, 0.0, "branch {branch}, {dtype:?}: parameter {i}");
            }
        }
    }

    #[test]
    fn where_all_is_dropped_the_composition_computes_no_sample() {
        let xs = random(&[5, 3, WIDTH], 1);
        let branch = |xs: &Tensor, share: Share| {
            assert_eq!(
                (xs.to_vec3::<f64>()?, share.batch, share.drop_path),
                (vec![vec![vec![0.0; WIDTH]; 3]], 1, Some(&[0.0][..]))
            );
            xs.narrow(1, 0, 1)
        };
        let ys = compose(&xs, Some(&[0.0; 5]), branch).unwrap();
        let expected = xs.narrow(1, 0, 1).unwrap().to_vec3::<f64>().unwrap();
        assert_eq!(ys.to_vec3::<f64>().unwrap(), expected);
    }
}
