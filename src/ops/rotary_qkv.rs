//! Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) of a packed projection.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, D};

use super::attention::Dims;
use super::cpu::kernel::{self, Elements};
use super::rotary_emb::{rope_i, rope_thd};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::{Error, Result as OurResult};

/// Elements of a head of width d that are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Elements 2i and 2i + 1, as in the paper.
    Neighbours,
    /// Elements i and i + d/2.
    Halves,
}

/// Angles of positions, as [`rotary_qkv`] takes them: constants, which get no gradient.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines of the last K tokens, [K, d/2], or [B, K, d/2] where samples have angles of their own.
    pub cos: &'a Tensor,
    /// Their sines, of the same shape.
    pub sin: &'a Tensor,
    /// Elements that an angle turns.
    pub pairs: Pairs,
}

/// Queries and keys of the last K tokens turned by the angles of their positions; values, and tokens in front of those K,
/// stay as they are. A pair (a, b) becomes (a cos - b sin, a sin + b cos).
///
/// # Arguments
///
/// - `qkv`: [B, N, 3 D], packed as for [`attention`](super::attention())
/// - `num_heads`: divides D; heads have an even width d
/// - `rotation`: the angles, of any floating-point dtype
///
/// Returns [B, N, 3 D].
///
/// # Derivative
///
/// The rotation back: da = ga cos + gb sin, db = gb cos - ga sin.
///
/// # PyTorch
///
/// ```text
/// q, k, v = qkv.reshape(B, N, 3, num_heads, d).unbind(2)
/// rotate(q[:, N - K:]), rotate(k[:, N - K:])  # timm.layers.apply_rot_embed
/// ```
///
/// # Errors
///
/// If shapes do not fit, d is odd, a dtype is no floating-point one, or an angle asks for a gradient, which
/// [`rotary_emb`](super::rotary_emb) has.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::ops::{rotary_qkv, Pairs, Rotation};
/// // One head of width 2; the second of two tokens is turned by 90 degrees.
/// let qkv = Tensor::new(&[[[3f32, 1.0, 2.0, 0.0, 5.0, 5.0], [3.0, 1.0, 2.0, 0.0, 5.0, 5.0]]], &Device::Cpu)?;
/// let (cos, sin) = (Tensor::new(&[[0f32]], &Device::Cpu)?, Tensor::new(&[[1f32]], &Device::Cpu)?);
/// let rotation = Rotation { cos: &cos, sin: &sin, pairs: Pairs::Halves };
/// let ys = rotary_qkv(&qkv, 1, &rotation)?.to_vec3::<f32>()?;
/// assert_eq!(ys, [[[3.0, 1.0, 2.0, 0.0, 5.0, 5.0], [-1.0, 3.0, 0.0, 2.0, 5.0, 5.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rotary_qkv(qkv: &Tensor, num_heads: usize, rotation: &Rotation) -> Result<Tensor> {
    let dims = check(qkv, num_heads, rotation)?;
    routed(qkv, dims, rotation)
}

/// [`rotary_qkv`] of arguments that fit.
pub(crate) fn routed(qkv: &Tensor, dims: Dims, rotation: &Rotation) -> Result<Tensor> {
    match Route::of(&[qkv]) {
        Route::Kernel => qkv.contiguous()?.apply_op1(Rotate::new(rotation, dims, &[qkv])?),
        Route::InF32 => in_f32(&[qkv], |t| routed(&t[0], dims, rotation)),
        Route::Composition => compose(qkv, dims, rotation),
    }
}

fn check(qkv: &Tensor, num_heads: usize, rotation: &Rotation) -> OurResult<Dims> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    check::float("qkv", qkv)?;
    rotation.check(dims)?;
    Ok(dims)
}

impl Rotation<'_> {
    /// An error unless the angles fit.
    pub(crate) fn check(&self, dims: Dims) -> OurResult<()> {
        let &Self { cos, sin, .. } = self;
        for (argument, angles) in [("cos", cos), ("sin", sin)] {
            check::float(argument, angles)?;
            if angles.track_op() {
                let allowed = "detached, or turned by ops::rotary_emb, through which angles get gradients";
                return Err(Error::invalid(argument, "a tensor with a gradient", allowed));
            }
        }
        let Dims {
            batch,
            tokens,
            heads,
            head_width,
            ..
        } = dims;
        if !head_width.is_multiple_of(2) {
            let allowed = format!("such that heads have an even width, of D = {}", dims.width());
            return Err(Error::invalid("num_heads", heads, allowed));
        }
        let half = head_width / 2;
        match *cos.dims() {
            [k, h] if k <= tokens && h == half => {}
            [b, k, h] if b == batch && k <= tokens && h == half => {}
            _ => {
                let expected = format!("[K, {half}] or [{batch}, K, {half}] with K at most {tokens}");
                return Err(Error::shape("cos", cos.dims(), expected));
            }
        }
        if sin.dims() != cos.dims() {
            let expected = format!("{:?} like cos", cos.dims());
            return Err(Error::shape("sin", sin.dims(), expected));
        }
        Ok(())
    }
}

/// [`rotary_qkv`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize, rotation: &Rotation) -> Result<Tensor> {
    compose(qkv, Dims::of(qkv.dims(), num_heads)?, rotation)
}

fn compose(qkv: &Tensor, dims: Dims, rotation: &Rotation) -> Result<Tensor> {
    let Dims {
        batch,
        tokens,
        heads,
        head_width,
        ..
    } = dims;
    if qkv.elem_count() == 0 || rotation.cos.elem_count() == 0 {
        return Ok(qkv.clone());
    }
    let turned = rotation.cos.dim(D::Minus2)?;
    let (width, first) = (dims.width(), tokens - turned);
    let last = qkv.narrow(1, first, turned)?;
    let both = last.narrow(2, 0, 2 * width)?.contiguous()?;
    let both = both.reshape((batch, turned, 2 * heads, head_width))?;
    let angles = |angles: &Tensor| angles.detach().to_dtype(qkv.dtype());
    let (cos, sin) = (angles(rotation.cos)?, angles(rotation.sin)?);
    let both = match rotation.pairs {
        Pairs::Halves => rope_thd(&both, &cos, &sin)?,
        Pairs::Neighbours => rope_i(&both.transpose(1, 2)?.contiguous()?, &cos, &sin)?.transpose(1, 2)?,
    };
    let both = both.contiguous()?.reshape((batch, turned, 2 * width))?;
    let last = Tensor::cat(&[both, last.narrow(2, 2 * width, width)?], 2)?;
    Tensor::cat(&[qkv.narrow(1, 0, first)?, last], 1)
}

/// The kernel: it turns rows of [B, N, 3 D] in place.
#[derive(Clone)]
pub(crate) struct Rotate {
    dims: Dims,
    /// Cosines of the last tokens of all samples, [K, d/2], or of each, [B, K, d/2]: contiguous `f32` on the CPU.
    cos: Tensor,
    sin: Tensor,
    pairs: Pairs,
    /// -1 to turn back.
    sign: f32,
}

impl Rotate {
    /// By angles that fit. They lie apart from the tensors `beside`, whose locks candle may hold when they are taken.
    pub(crate) fn new(rotation: &Rotation, dims: Dims, beside: &[&Tensor]) -> Result<Self> {
        let angles = |angles: &Tensor, others: &[&Tensor]| {
            let angles = angles.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
            match others.iter().any(|other| kernel::same_storage(&angles, other)) {
                true => angles.force_contiguous(),
                false => Ok(angles),
            }
        };
        let cos = angles(rotation.cos, beside)?;
        let others: Vec<_> = beside.iter().copied().chain([&cos]).collect();
        Ok(Self {
            dims,
            sin: angles(rotation.sin, &others)?,
            cos,
            pairs: rotation.pairs,
            sign: 1.0,
        })
    }

    /// The way back.
    pub(crate) fn back(&self) -> Self {
        Self {
            sign: -self.sign,
            ..self.clone()
        }
    }

    /// Turns all keys, and the queries that are asked for.
    pub(crate) fn turn(&self, qkv: &mut [f32]) -> Result<()> {
        let Dims {
            tokens,
            queries,
            head_width,
            ..
        } = self.dims;
        let (width, half) = (self.dims.width(), head_width / 2);
        let turned = self.cos.dim(D::Minus2)?;
        let per_sample = turned * half;
        let own_angles = self.cos.rank() == 3;
        let (cos, sin) = (Elements::of(&self.cos)?, Elements::of(&self.sin)?);
        kernel::for_rows(qkv, 3 * width, |first, rows| {
            for (row, y) in (first..).zip(rows.chunks_exact_mut(3 * width)) {
                let (sample, token) = (row / tokens, row % tokens);
                let Some(at) = token.checked_sub(tokens - turned) else {
                    continue;
                };
                let of_sample = if own_angles { sample * per_sample } else { 0 };
                let angles = [&cos, &sin].map(|angles| &angles[of_sample + at * half..][..half]);
                let part = if token < queries { 0 } else { width };
                for head in y[part..2 * width].chunks_exact_mut(head_width) {
                    self.turn_head(head, angles);
                }
            }
        });
        Ok(())
    }

    fn turn_head(&self, head: &mut [f32], [cos, sin]: [&[f32]; 2]) {
        let turn = |a: &mut f32, b: &mut f32, cos: f32, sin: f32| {
            let sin = self.sign * sin;
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        };
        match self.pairs {
            Pairs::Halves => {
                let (first, second) = head.split_at_mut(cos.len());
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    turn(a, b, *cos, *sin);
                }
            }
            Pairs::Neighbours => {
                for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                    if let [a, b] = pair {
                        turn(a, b, *cos, *sin);
                    }
                }
            }
        }
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotary-qkv"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut ys = kernel::elements(storage, layout)?.to_vec();
        self.turn(&mut ys)?;
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&self.back()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};

    fn run(
        op: fn(&Tensor, usize, &Rotation) -> Result<Tensor>,
        qkv: &Tensor,
        heads: usize,
        angles: &[usize],
        pairs: Pairs,
    ) -> Result<Tensor> {
        let angle = random(angles, 7).to_device(qkv.device())?;
        let (cos, sin) = (angle.cos()?, angle.sin()?);
        let rotation = Rotation {
            cos: &cos,
            sin: &sin,
            pairs,
        };
        op(qkv, heads, &rotation)
    }

    fn check_one([b, n, heads, d]: [usize; 4], turned: usize, seed: u64) {
        for pairs in [Pairs::Neighbours, Pairs::Halves] {
            for angles in [vec![turned, d / 2], vec![b, turned, d / 2]] {
                let kernel = |args: &[Tensor]| run(rotary_qkv, &args[0], heads, &angles, pairs);
                let reference = |args: &[Tensor]| run(composition, &args[0], heads, &angles, pairs);
                check(&kernel, &reference, &[&[b, n, 3 * heads * d]], seed);
            }
        }
    }

    #[test]
    fn equals_its_composition() {
        check_one([2, 5, 3, 8], 4, 0);
        check_one([1, 1, 1, 2], 1, 1);
        check_one([3, 4, 2, 6], 4, 2);
        // Nothing is turned.
        check_one([2, 3, 2, 4], 0, 3);
        // Many pieces of work.
        check_one([3, 197, 3, 64], 196, 4);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for pairs in [Pairs::Neighbours, Pairs::Halves] {
            let reference = |args: &[Tensor]| run(composition, &args[0], 2, &[2, 3, 2], pairs);
            check_derivative(&reference, &[&[2, 4, 24]], 0);
        }
    }

    /// Scores of turned queries and keys depend on how far apart their positions are, and values do not turn.
    #[test]
    fn scores_depend_on_distances() {
        let (d, step) = (4, random(&[1, 2], 3));
        let one = random(&[1, 1, 3 * d], 5);
        let qkv = Tensor::cat(&[&one, &one, &one], 1).unwrap();
        for pairs in [Pairs::Neighbours, Pairs::Halves] {
            let places = Tensor::new(&[[0f64], [1.0], [2.0]], &candle_core::Device::Cpu).unwrap();
            let angle = places.matmul(&step).unwrap();
            let (cos, sin) = (angle.cos().unwrap(), angle.sin().unwrap());
            let rotation = Rotation {
                cos: &cos,
                sin: &sin,
                pairs,
            };
            let ys = rotary_qkv(&qkv, 1, &rotation).unwrap().squeeze(0).unwrap();
            let part = |token: usize, at: usize| ys.get(token).unwrap().narrow(0, at * d, d).unwrap();
            let score = |q: usize, k: usize| {
                let product = (part(q, 0) * part(k, 1)).unwrap().sum_all().unwrap();
                product.to_scalar::<f64>().unwrap()
            };
            assert!((score(0, 1) - score(1, 2)).abs() < 1e-12 && (score(0, 0) - score(2, 2)).abs() < 1e-12);
            assert!((score(0, 1) - score(1, 0)).abs() > 1e-3 && (score(0, 1) - score(0, 2)).abs() > 1e-3);
            let values = one.flatten_all().unwrap().narrow(0, 2 * d, d).unwrap();
            assert_eq!(part(2, 2).to_vec1::<f64>().unwrap(), values.to_vec1::<f64>().unwrap());
        }
    }

    /// Rows of one table, which lies with what is turned.
    #[test]
    fn angles_may_share_memory() {
        let all = random(&[40], 0).to_dtype(DType::F32).unwrap();
        let part = |start, len, shape: &[usize]| all.narrow(0, start, len).unwrap().reshape(shape).unwrap();
        let (qkv, cos, sin) = (part(0, 24, &[1, 2, 12]), part(24, 4, &[2, 2]), part(28, 4, &[2, 2]));
        let rotation = |cos: &Tensor, sin: &Tensor| {
            let rotation = Rotation {
                cos,
                sin,
                pairs: Pairs::Halves,
            };
            rotary_qkv(&qkv, 1, &rotation)
        };
        let apart = |xs: &Tensor| xs.force_contiguous().unwrap();
        let (together, alone) = (
            rotation(&cos, &sin).unwrap(),
            rotation(&apart(&cos), &apart(&sin)).unwrap(),
        );
        assert_eq!(crate::ops::testing::relative(&together, &alone), 0.0);
        let error = rotation(&candle_core::Var::from_tensor(&cos).unwrap(), &sin).unwrap_err();
        assert!(
            error.to_string().starts_with("cos is a tensor with a gradient"),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |qkv: &[usize], angles: &[usize]| {
            let error = run(rotary_qkv, &random(qkv, 0), 2, angles, Pairs::Halves);
            error.unwrap_err().to_string()
        };
        assert_eq!(
            message(&[2, 3, 18], &[3, 1]),
            "num_heads is 2, but must be such that heads have an even width, of D = 6"
        );
        assert_eq!(
            message(&[2, 3, 24], &[4, 2]),
            "cos has shape [4, 2], but must be [K, 2] or [2, K, 2] with K at most 3"
        );
        assert_eq!(
            message(&[2, 3, 24], &[1, 3, 2]),
            "cos has shape [1, 3, 2], but must be [K, 2] or [2, K, 2] with K at most 3"
        );
    }
}
