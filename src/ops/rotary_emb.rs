//! Rotary position embeddings (Su et al. 2021, arXiv 2104.09864).
//!
//! The functions of [`candle_nn::rotary_emb`] under the same names and with the same arguments. candle's have no
//! backward: gradients stop there, and queries and keys are never trained.
//!
//! All take pairs (a, b) of elements of each head, the angles' `cos` and `sin` by position, and return (a cos - b sin,
//! a sin + b cos). They differ in where a pair's elements lie and in the order of the dimensions. With T positions, H
//! heads and heads of width d:
//!
//! | function | `xs` and result | a pair is |
//! |---|---|---|
//! | [`rope`] | [B, H, T, d] | elements i and i + d/2 |
//! | [`rope_i`] | [B, H, T, d] | elements 2i and 2i + 1 |
//! | [`rope_thd`] | [B, T, H, d] | elements i and i + d/2 |
//!
//! `cos` and `sin` are [T', d/2], or [B, T', d/2] where samples have angles of their own; of their T' positions the
//! first T are used.
//!
//! # Derivative
//!
//! That of a rotation is the rotation back: da = ga cos + gb sin, db = gb cos - ga sin; with respect to the angles'
//! cosine ga a + gb b, to their sine gb a - ga b.
//!
//! # Errors
//!
//! If a shape does not fit, d is odd, there are more positions in `xs` than in `cos` or `sin`, or the dtypes differ or
//! are no floating-point ones.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! // One head of width 2 at one position, turned by 90 degrees.
//! let xs = Tensor::new(&[[[[3f32, 1.0]]]], &Device::Cpu)?;
//! let (cos, sin) = (Tensor::new(&[[0f32]], &Device::Cpu)?, Tensor::new(&[[1f32]], &Device::Cpu)?);
//! let ys = masksub::ops::rotary_emb::rope(&xs, &cos, &sin)?;
//! assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [-1.0, 3.0]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor, D};

use super::route;
use crate::check;
use crate::error::Error;

/// Rotates elements i and i + d/2 of each head of `xs` [B, H, T, d]: Llama's arrangement in the weights of Hugging
/// Face.
///
/// Arguments, derivative and errors: see the [module](self).
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply(xs, cos, sin, 2, halves)
}

/// Rotates elements 2i and 2i + 1 of each head of `xs` [B, H, T, d]: the arrangement of the paper.
///
/// Arguments, derivative and errors: see the [module](self).
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply(xs, cos, sin, 2, neighbours)
}

/// Rotates elements i and i + d/2 of each head of `xs` [B, T, H, d].
///
/// Arguments, derivative and errors: see the [module](self).
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply(xs, cos, sin, 1, halves)
}

type Rotate = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// Checks the arguments, brings `cos` and `sin` to a shape that broadcasts, and rotates; `positions` is the dimension
/// of T in `xs`.
fn apply(xs: &Tensor, cos: &Tensor, sin: &Tensor, positions: usize, rotate: Rotate) -> Result<Tensor> {
    check::float("xs", xs)?;
    let expected = if positions == 1 {
        "[B, T, H, d] with d even"
    } else {
        "[B, H, T, d] with d even"
    };
    let &[batch, _, _, width] = xs.dims() else {
        return Err(Error::shape("xs", xs.dims(), expected).into());
    };
    if !width.is_multiple_of(2) {
        return Err(Error::shape("xs", xs.dims(), expected).into());
    }
    let length = xs.dim(positions)?;
    let angles = |argument, angles: &Tensor| -> Result<Tensor> {
        check::same_dtype(argument, angles, "xs", xs)?;
        let samples = match *angles.dims() {
            [t, half] if t >= length && half == width / 2 => 1,
            [b, t, half] if b == batch && t >= length && half == width / 2 => b,
            _ => {
                let half = width / 2;
                let expected = format!("[T', {half}] or [{batch}, T', {half}] with T' at least {length}");
                return Err(Error::shape(argument, angles.dims(), expected).into());
            }
        };
        let angles = angles.narrow(D::Minus2, 0, length)?;
        match positions {
            1 => angles.reshape((samples, length, 1, width / 2)),
            _ => angles.reshape((samples, 1, length, width / 2)),
        }
    };
    let (cos, sin) = (angles("cos", cos)?, angles("sin", sin)?);
    if route::is_half(xs) {
        return route::in_f32(&[xs, &cos, &sin], |t| rotate(&t[0], &t[1], &t[2]));
    }
    rotate(xs, &cos, &sin)
}

/// The rotated pair, its elements one after the other along `dim`.
fn rotate(a: &Tensor, b: &Tensor, cos: &Tensor, sin: &Tensor, dim: usize) -> Result<Tensor> {
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
    Tensor::cat(&[first, second], dim)
}

fn halves(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = xs.dim(3)? / 2;
    rotate(&xs.narrow(3, 0, half)?, &xs.narrow(3, half, half)?, cos, sin, 3)
}

fn neighbours(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (b, h, t, d) = xs.dims4()?;
    let pairs = xs.reshape((b, h, t, d / 2, 2))?;
    let (cos, sin) = (cos.unsqueeze(4)?, sin.unsqueeze(4)?);
    rotate(&pairs.narrow(4, 0, 1)?, &pairs.narrow(4, 1, 1)?, &cos, &sin, 4)?.reshape((b, h, t, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, relative};
    use candle_core::DType;

    type Rope = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

    /// Name, ours, candle's, and the shape of `xs` for B = 2, T = 3, H = 5, d = 8.
    const ALL: [(&str, Rope, Rope, [usize; 4]); 3] = [
        ("rope", rope, candle_nn::rotary_emb::rope, [2, 5, 3, 8]),
        ("rope_i", rope_i, candle_nn::rotary_emb::rope_i, [2, 5, 3, 8]),
        ("rope_thd", rope_thd, candle_nn::rotary_emb::rope_thd, [2, 3, 5, 8]),
    ];

    #[test]
    fn equal_candles() {
        for (name, ours, candles, shape) in ALL {
            for (positions, angles) in [(3, vec![3, 4]), (7, vec![7, 4]), (3, vec![2, 3, 4])] {
                let (xs, cos, sin) = (random(&shape, 0), random(&angles, 1), random(&angles, 2));
                let got = ours(&xs, &cos, &sin).unwrap();
                let want = candles(&xs, &cos, &sin).unwrap();
                assert!(relative(&got, &want) < 1e-15, "{name} with {positions} positions");
            }
        }
    }

    #[test]
    fn are_differentiable() {
        for (_, ours, _, [b, x, y, d]) in ALL {
            let op = move |args: &[Tensor]| ours(&args[0], &args[1], &args[2]);
            check_derivative(&op, &[&[b, x, y, d], &[5, d / 2], &[5, d / 2]], 0);
            check_derivative(&op, &[&[b, x, y, d], &[b, 5, d / 2], &[b, 5, d / 2]], 0);
            check(&op, &op, &[&[b, x, y, d], &[5, d / 2], &[5, d / 2]], 0);
            check(&op, &op, &[&[b, 1, 1, 2], &[b, 1, 1], &[1, 1]], 1);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], cos: &[usize], sin: &[usize]| {
            rope_thd(&random(xs, 0), &random(cos, 0), &random(sin, 0))
                .unwrap_err()
                .to_string()
        };
        let angles = "[T', 4] or [2, T', 4] with T' at least 3";
        assert_eq!(
            message(&[2, 3, 5, 8], &[2, 4], &[3, 4]),
            format!("cos has shape [2, 4], but must be {angles}")
        );
        assert_eq!(
            message(&[2, 3, 5, 8], &[3, 4], &[3, 8]),
            format!("sin has shape [3, 8], but must be {angles}")
        );
        let expected = "[B, T, H, d] with d even";
        assert_eq!(
            message(&[2, 3, 5, 7], &[3, 3], &[3, 3]),
            format!("xs has shape [2, 3, 5, 7], but must be {expected}")
        );
        assert_eq!(
            message(&[3, 5, 8], &[3, 4], &[3, 4]),
            format!("xs has shape [3, 5, 8], but must be {expected}")
        );
        let xs = random(&[2, 3, 5, 8], 0);
        let cos = random(&[3, 4], 0).to_dtype(DType::F32).unwrap();
        assert!(rope_thd(&xs, &cos, &cos)
            .unwrap_err()
            .to_string()
            .starts_with("cos has dtype F32"));
    }
}
