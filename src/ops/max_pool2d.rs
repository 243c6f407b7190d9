//! Max pooling, of windows that may overlap.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, D};
use rayon::prelude::*;

use super::cpu::kernel::{self, Elements};
use super::cpu::sliding::{check_padding, zip_strided, Sliding};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y\[b, c, i, j\] = the largest of x\[b, c, i * stride + u - padding, j * stride + v - padding\] for u and v below `kernel`
/// that lie in the image.
///
/// [`Tensor::max_pool2d_with_stride`] has a backward only where windows do not overlap, and no padding.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `kernel`: side of a window
/// - `stride`: at least 1
/// - `padding`: positions around the image, on each side, that never win, whatever is in it; at most `kernel / 2`
///
/// Returns [B, C, H', W'], where H' = (H + 2 padding - kernel) / stride + 1, rounded down, and W' likewise. An undefined
/// element makes its windows undefined.
///
/// # Derivative
///
/// Each result's gradient goes to the element it is: where there are several, to the first of them, row by row (but to the
/// last undefined one, as in PyTorch). The backward looks for it again: nothing is kept.
///
/// # PyTorch
///
/// `torch.nn.functional.max_pool2d(xs, kernel, stride, padding)`
///
/// # Errors
///
/// If `xs` has another rank, no element or no floating-point dtype; `kernel` or `stride` is 0; `padding` is more than
/// half of `kernel`; or a window is larger than the padded image.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[-1f32, -2.0], [-3.0, -4.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::max_pool2d(&xs, 2, 1, 1)?;
/// assert_eq!(ys.squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?, [[-1., -1., -2.], [-1., -1., -2.], [-3., -3., -4.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    check::float("xs", xs)?;
    routed(xs, MaxPool2d::new(xs.dims(), kernel, stride, padding)?)
}

/// [`max_pool2d`] of arguments that fit.
fn routed(xs: &Tensor, pool: MaxPool2d) -> Result<Tensor> {
    match Route::of(&[xs]) {
        Route::Kernel => xs.contiguous()?.apply_op1(pool),
        Route::InF32 => in_f32(&[xs], |t| routed(&t[0], pool)),
        Route::Composition => compose(xs, pool),
    }
}

/// [`max_pool2d`] of candle's operations.
pub fn composition(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    compose(xs, MaxPool2d::new(xs.dims(), kernel, stride, padding)?)
}

fn compose(xs: &Tensor, pool: MaxPool2d) -> Result<Tensor> {
    let MaxPool2d { rows, columns, .. } = pool;
    let padding = rows.padding;
    let padded = xs.pad_with_zeros(D::Minus1, padding, padding)?;
    let padded = padded.pad_with_zeros(D::Minus2, padding, padding)?.contiguous()?;
    // The window's element `tap` at every place.
    let pick = |xs: &Tensor, dim: D, axis: Sliding, tap: usize| {
        let at: Vec<u32> = (0..axis.out).map(|i| (i * axis.stride + tap) as u32).collect();
        xs.index_select(&Tensor::from_vec(at, axis.out, xs.device())?, dim)
    };
    let places = rows.out * columns.out;
    let on_device = |flags: &[u8], like: &Tensor| {
        let flags = Tensor::from_slice(flags, (1, 1, rows.out, columns.out), like.device())?;
        flags.broadcast_as(like.shape())
    };
    // `maximum` would halve the gradient of equal elements.
    let mut best = pick(&pick(&padded, D::Minus2, rows, 0)?, D::Minus1, columns, 0)?;
    let mut seen = vec![false; places];
    for u in 0..rows.window {
        let row = pick(&padded, D::Minus2, rows, u)?;
        for v in 0..columns.window {
            let candidate = pick(&row, D::Minus1, columns, v)?;
            let inside: Vec<bool> = (0..places)
                .map(|at| {
                    let (i, j) = (at / columns.out, at % columns.out);
                    rows.source(i, u).is_some() && columns.source(j, v).is_some()
                })
                .collect();
            // What is in the image wins over padding, which only the first element can have left in its place.
            let first: Vec<u8> = inside.iter().zip(&seen).map(|(&i, &s)| u8::from(i && !s)).collect();
            let later: Vec<u8> = inside.iter().zip(&seen).map(|(&i, &s)| u8::from(i && s)).collect();
            let wins = (candidate.gt(&best)? + candidate.ne(&candidate)?)?;
            let wins = ((wins * on_device(&later, &best)?)? + on_device(&first, &best)?)?;
            best = wins.where_cond(&candidate, &best)?;
            seen.iter_mut().zip(inside).for_each(|(seen, inside)| *seen |= inside);
        }
    }
    Ok(best)
}

#[derive(Clone, Copy)]
pub(crate) struct MaxPool2d {
    batch: usize,
    channels: usize,
    rows: Sliding,
    columns: Sliding,
}

impl MaxPool2d {
    /// Of images of these dimensions.
    pub(crate) fn new(xs: &[usize], kernel: usize, stride: usize, padding: usize) -> crate::error::Result<Self> {
        for (argument, value) in [("kernel", kernel), ("stride", stride)] {
            check::at_least_one(argument, value)?;
        }
        if padding > kernel / 2 {
            return Err(Error::invalid(
                "padding",
                padding,
                format!("at most half of the kernel, {}", kernel / 2),
            ));
        }
        let unfit = || {
            let least = kernel.saturating_sub(2 * padding).max(1);
            Error::shape(
            "xs",
            xs,
            format!("[B, C, H, W], not empty, with sides of at least {least} for windows of {kernel} and a padding of {padding}"),
        )
        };
        let [batch, channels, height, width] = *xs else {
            return Err(unfit());
        };
        if xs.contains(&0) {
            return Err(unfit());
        }
        check_padding(batch.saturating_mul(channels), [height, width], padding)?;
        let axis = |side| Sliding::new(side, kernel, stride, padding).ok_or_else(unfit);
        Ok(Self {
            batch,
            channels,
            rows: axis(height)?,
            columns: axis(width)?,
        })
    }

    pub(crate) fn result_dims(&self) -> [usize; 4] {
        [self.batch, self.channels, self.rows.out, self.columns.out]
    }

    /// Writes the result to `ys`.
    pub(crate) fn forward(&self, xs: &[f32], ys: &mut [f32]) {
        let (area, out_area) = self.areas();
        ys.par_chunks_mut(out_area)
            .zip(xs.par_chunks(area))
            .for_each(|(ys, xs)| forward(*self, xs, ys));
    }

    /// Writes the gradients of the input to `dxs`.
    pub(crate) fn backward(&self, xs: &[f32], ys: &[f32], grads: &[f32], dxs: &mut [f32]) {
        let (area, out_area) = self.areas();
        let results = ys.par_chunks(out_area).zip(grads.par_chunks(out_area));
        dxs.par_chunks_mut(area)
            .zip(xs.par_chunks(area))
            .zip(results)
            .for_each(|((dxs, xs), (ys, grads))| {
                // The memory may have been used before.
                dxs.fill(0.0);
                backward(*self, xs, ys, grads, dxs);
            });
    }

    /// Elements of a channel of the input, and of the result.
    fn areas(&self) -> (usize, usize) {
        (self.rows.side * self.columns.side, self.rows.out * self.columns.out)
    }
}

kernel::simd_fn! {
    /// Pools one channel.
    fn forward<S>(pool: MaxPool2d, xs: &[f32], ys: &mut [f32]) -> () {
        let width = pool.columns.side;
        for (i, ys) in ys.chunks_exact_mut(pool.columns.out).enumerate() {
            ys.fill(f32::NEG_INFINITY);
            for row in (0..pool.rows.window).filter_map(|u| pool.rows.source(i, u)) {
                let row = &xs[row * width..][..width];
                for v in 0..pool.columns.window {
                    let (inside, first) = pool.columns.inside(v);
                    if !inside.is_empty() {
                        let ys = &mut ys[inside];
                        zip_strided(ys, &row[first..], pool.columns.stride, |y, x| {
                            // An undefined x is not at most y.
                            *y = if x <= *y || y.is_nan() { *y } else { x };
                        });
                    }
                }
            }
        }
    }
}

/// Adds the gradient of one channel's result to that of the elements it is.
fn backward(pool: MaxPool2d, xs: &[f32], ys: &[f32], grads: &[f32], dxs: &mut [f32]) {
    let (rows, columns) = (pool.rows, pool.columns);
    for (at, (&y, g)) in ys.iter().zip(grads).enumerate() {
        let (i, j) = (at / columns.out, at % columns.out);
        let mut window = (0..rows.window).filter_map(|u| rows.source(i, u)).flat_map(|row| {
            let columns = (0..columns.window).filter_map(|v| columns.source(j, v));
            columns.map(move |column| row * pool.columns.side + column)
        });
        let winner = match y.is_nan() {
            true => window.rev().find(|&at| xs[at].is_nan()),
            false => window.find(|&at| xs[at] == y),
        };
        if let Some(winner) = winner {
            dxs[winner] += g;
        }
    }
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let dims = self.result_dims();
        let mut ys = vec![0f32; dims.iter().product()];
        self.forward(xs, &mut ys);
        Ok((CpuStorage::F32(ys), Shape::from(&dims)))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(ys)?, Elements::of(&grad)?);
        let mut dxs = vec![0f32; x.len()];
        self.backward(&x, &y, &g, &mut dxs);
        kernel::tensor(dxs, xs.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use candle_core::{DType, Device, Var};
    use rand::Rng as _;

    fn kernel(kernel: usize, stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| max_pool2d(&args[0], kernel, stride, padding)
    }

    fn reference(kernel: usize, stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], kernel, stride, padding)
    }

    fn check_pool(xs: [usize; 4], k: usize, stride: usize, padding: usize, seed: u64) {
        check(
            &kernel(k, stride, padding),
            &reference(k, stride, padding),
            &[&xs],
            seed,
        );
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(13);
        for seed in 0..10 {
            let mut size = |most| rng.random_range(1..=most);
            let (k, stride): (usize, usize) = (size(4), size(4));
            let padding = size(1 + k / 2) - 1;
            let least = k - 2 * padding;
            let xs = [size(3), size(5), least + size(12), least + size(12)];
            check_pool(xs, k, stride, padding, seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_pool([1, 1, 1, 1], 1, 1, 0, 0);
        check_pool([1, 2, 1, 1], 3, 2, 1, 1);
        check_pool([2, 2, 5, 7], 5, 3, 0, 2);
        check_pool([2, 3, 6, 3], 2, 5, 1, 3);
        check_pool([2, 3, 6, 3], 2, usize::MAX, 1, 3);
        check_pool([3, 9, 32, 30], 3, 2, 1, 4);
    }

    /// The result, and its gradient with upstream 1, 2, 3, .., of the kernel and of the composition.
    fn both(xs: &[&[f32]], k: usize, stride: usize, padding: usize) -> [(Vec<f32>, Vec<f32>); 2] {
        let rows = xs.len();
        let xs = Tensor::from_vec(xs.concat(), (1, 1, rows, xs[0].len()), &Device::Cpu).unwrap();
        let run = |op: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
            let var = Var::from_tensor(&xs).unwrap();
            let ys = op(&[var.as_tensor().clone()]).unwrap();
            let upstream = Tensor::arange(1f32, 1. + ys.elem_count() as f32, &Device::Cpu).unwrap();
            // A gradient from above that does not depend on the result, which may be infinite.
            let loss = (ys.flatten_all().unwrap() * upstream).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (flat(&ys), flat(grads.get(&var).unwrap()))
        };
        [run(&kernel(k, stride, padding)), run(&reference(k, stride, padding))]
    }

    #[test]
    fn ties_go_to_the_first() {
        for (ys, grads) in both(&[&[5., 5., 1.], &[5., 0., 5.]], 2, 1, 0) {
            assert_eq!(ys, [5., 5.]);
            assert_eq!(grads, [1., 2., 0., 0., 0., 0.]);
        }
        for (ys, grads) in both(&[&[-0., 0.], &[0., 0.]], 2, 1, 0) {
            assert_eq!(ys, [0.]);
            assert_eq!(grads, [1., 0., 0., 0.]);
        }
    }

    #[test]
    fn padding_never_wins() {
        const LOWEST: f32 = f32::NEG_INFINITY;
        for (ys, grads) in both(&[&[-3., -1.], &[-2., -4.]], 2, 2, 1) {
            assert_eq!(ys, [-3., -1., -2., -4.]);
            assert_eq!(grads, [1., 2., 3., 4.]);
        }
        for (ys, grads) in both(&[&[LOWEST, f32::MIN], &[LOWEST, LOWEST]], 2, 2, 1) {
            assert_eq!(ys, [LOWEST, f32::MIN, LOWEST, LOWEST]);
            assert_eq!(grads, [1., 2., 3., 4.]);
        }
        for (ys, grads) in both(&[&[LOWEST; 2], &[LOWEST; 2]], 3, 1, 1) {
            assert_eq!(ys, [LOWEST; 4]);
            assert_eq!(grads, [10., 0., 0., 0.]);
        }
    }

    /// As PyTorch does it: `(x > largest) || isnan(x)`.
    #[test]
    fn an_undefined_element_wins_and_the_last_one_of_several() {
        for (ys, grads) in both(&[&[f32::NAN, 9.], &[f32::NAN, 8.], &[1., 2.]], 2, 1, 0) {
            assert!(ys[0].is_nan() && ys[1].is_nan());
            assert_eq!(grads, [0., 0., 3., 0., 0., 0.]);
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference(3, 2, 1), &[&[2, 2, 5, 4]], 0);
        check_derivative(&reference(2, 1, 0), &[&[1, 2, 3, 4]], 1);
    }

    #[test]
    fn errors_name_the_argument() {
        let message =
            |xs: &[usize], k, stride, padding| max_pool2d(&random(xs, 0), k, stride, padding).unwrap_err().to_string();
        let xs = [2, 3, 4, 5];
        assert_eq!(message(&xs, 0, 1, 0), "kernel is 0, but must be at least 1");
        assert_eq!(message(&xs, 2, 0, 0), "stride is 0, but must be at least 1");
        assert_eq!(
            message(&xs, 3, 1, 2),
            "padding is 2, but must be at most half of the kernel, 1"
        );
        let expected = "[B, C, H, W], not empty, with sides of at least 5 for windows of 7 and a padding of 1";
        for xs in [&xs[..], &[2, 3, 5, 4], &[3, 5, 5], &[2, 0, 5, 5]] {
            assert_eq!(
                message(xs, 7, 1, 1),
                format!("xs has shape {xs:?}, but must be {expected}")
            );
        }
        for padding in [1 << 40, usize::MAX / 2 - 3] {
            let error = message(&xs, usize::MAX, 1, padding);
            assert!(error.starts_with(&format!("padding is {padding}, ")), "{error}");
        }
        let integers = Tensor::zeros(&xs, DType::U8, &Device::Cpu).unwrap();
        assert!(max_pool2d(&integers, 2, 2, 0)
            .unwrap_err()
            .to_string()
            .starts_with("xs has dtype U8"));
    }
}
