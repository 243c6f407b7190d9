//! Operations beside loops over their definitions, in every layout and dtype.

use candle_core::{DType, Tensor};
use masksub::{ops, Grid};
use proptest::prelude::*;

use crate::common::numbers;
use crate::{any_float, any_lying, furthest, normal, tolerance, Lying};

/// A tensor's numbers by their four indices.
struct Four(Vec<f64>, [usize; 4]);

impl Four {
    fn of(tensor: &Tensor) -> Self {
        let (b, c, h, w) = tensor.dims4().unwrap();
        Self(numbers(tensor), [b, c, h, w])
    }

    /// Nothing outside of the image.
    fn at(&self, b: usize, c: usize, y: isize, x: isize) -> Option<f64> {
        let [_, channels, h, w] = self.1;
        let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
        inside.then(|| self.0[((b * channels + c) * h + y as usize) * w + x as usize])
    }
}

#[track_caller]
fn assert_near(ys: &Tensor, expected: &[f64], dtype: DType, dims: &[usize]) {
    assert_eq!((ys.dims(), ys.dtype()), (dims, dtype));
    let far = furthest(&numbers(ys), expected);
    assert!(far < tolerance(dtype), "off by {far:e} in {dtype:?}");
}

proptest! {
    #[test]
    fn softmax_and_norms(
        rows in 1usize..5, dim in 2usize..40, dtype in any_float(), lying in any_lying()
    ) {
        let xs = normal(&[rows, 3, dim], dtype, lying, "xs");
        let [weight, bias] = ["weight", "bias"].map(|name| normal(&[dim], dtype, Lying::Narrowed, name));
        let (w, b, from) = (numbers(&weight), numbers(&bias), numbers(&xs));
        let eps = 1e-3;
        let [mut softmax, mut layer, mut rms] = [(); 3].map(|()| Vec::new());
        for row in from.chunks(dim) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
            softmax.extend(row.iter().map(|x| (x - max).exp() / sum));
            let mean = row.iter().sum::<f64>() / dim as f64;
            let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64;
            let square = row.iter().map(|x| x * x).sum::<f64>() / dim as f64;
            for (d, x) in row.iter().enumerate() {
                layer.push((x - mean) / (var + f64::from(eps)).sqrt() * w[d] + b[d]);
                rms.push(x / (square + f64::from(eps)).sqrt() * w[d]);
            }
        }
        let dims = [rows, 3, dim];
        assert_near(&ops::softmax_last_dim(&xs).unwrap(), &softmax, dtype, &dims);
        assert_near(&ops::layer_norm(&xs, &weight, &bias, eps).unwrap(), &layer, dtype, &dims);
        assert_near(&ops::rms_norm(&xs, &weight, eps).unwrap(), &rms, dtype, &dims);
    }

    #[test]
    fn linear(
        rows in 1usize..6, input in 1usize..20, output in 1usize..20, dtype in any_float(), lying in (any_lying(), any_lying())
    ) {
        let xs = normal(&[rows, 2, input], dtype, lying.0, "xs");
        let weight = (normal(&[output, input], dtype, lying.1, "weight") * 0.2).unwrap();
        let bias = normal(&[output], dtype, Lying::Narrowed, "bias");
        let (x, w, b) = (numbers(&xs), numbers(&weight), numbers(&bias));
        let mut expected = vec![];
        for row in x.chunks(input) {
            for o in 0..output {
                expected.push(b[o] + row.iter().zip(&w[o * input..]).map(|(x, w)| x * w).sum::<f64>());
            }
        }
        let ys = ops::linear(&xs, &weight, Some(&bias)).unwrap();
        assert_near(&ys, &expected, dtype, &[rows, 2, output]);
    }

    #[test]
    fn convolution_and_pooling(
        batch in 1usize..3, channels in 1usize..4, out in 1usize..4, h in 3usize..9, w in 3usize..9, kernel in 1usize..4,
        stride in 1usize..4, padding in 0usize..3, dtype in any_float(), lying in any_lying()
    ) {
        let xs = normal(&[batch, channels, h, w], dtype, lying, "xs");
        let weight = (normal(&[out, channels, kernel, kernel], dtype, lying, "weight") * 0.2).unwrap();
        let (x, k) = (Four::of(&xs), Four::of(&weight));
        let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let taps = || (0..kernel).flat_map(|u| (0..kernel).map(move |v| (u, v)));
        let place = |at: usize, tap: usize| (at * stride + tap) as isize - padding as isize;
        let (mut convolved, mut pooled) = (vec![], vec![]);
        for b in 0..batch {
            for o in 0..out.max(channels) {
                for (i, j) in (0..side(h)).flat_map(|i| (0..side(w)).map(move |j| (i, j))) {
                    let at = |c: usize, (u, v): (usize, usize)| x.at(b, c, place(i, u), place(j, v));
                    if o < out {
                        let tap = |c, (u, v)| at(c, (u, v)).unwrap_or(0.0) * k.at(o, c, u as isize, v as isize).unwrap();
                        let of_channel = |c| taps().map(|uv| tap(c, uv)).sum::<f64>();
                        convolved.push((0..channels).map(of_channel).sum::<f64>());
                    }
                    if o < channels {
                        pooled.push(taps().filter_map(|uv| at(o, uv)).fold(f64::NEG_INFINITY, f64::max));
                    }
                }
            }
        }
        let config = masksub::nn::Conv2dConfig {
            stride,
            padding,
            ..Default::default()
        };
        let ys = ops::conv2d(&xs, &weight, None, config).unwrap();
        assert_near(&ys, &convolved, dtype, &[batch, out, side(h), side(w)]);
        if 2 * padding <= kernel {
            let ys = ops::max_pool2d(&xs, kernel, stride, padding).unwrap();
            assert_near(&ys, &pooled, dtype, &[batch, channels, side(h), side(w)]);
        }
    }

    #[test]
    fn what_only_moves_is_exact(
        batch in 1usize..3, rows in 1usize..4, columns in 1usize..4, window in 1usize..4, shift in 0usize..4, dim in 1usize..4,
        dtype in any_float(), lying in any_lying()
    ) {
        let (grid, shift) = (Grid::new(rows * window, columns * window), shift % window);
        let tokens = normal(&[batch, grid.len(), dim], dtype, lying, "tokens");
        let windows = ops::window_partition(&tokens, grid, window, shift).unwrap();
        let from = numbers(&tokens);
        let mut expected = vec![];
        for b in 0..batch {
            for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                for (u, v) in (0..window).flat_map(|u| (0..window).map(move |v| (u, v))) {
                    // Rolled up and left by the shift.
                    let y = (i * window + u + shift) % grid.height;
                    let x = (j * window + v + shift) % grid.width;
                    expected.extend_from_slice(&from[((b * grid.height + y) * grid.width + x) * dim..][..dim]);
                }
            }
        }
        prop_assert_eq!(numbers(&windows), expected);
        let back = ops::window_reverse(&windows, grid, window, shift).unwrap();
        prop_assert_eq!(numbers(&back), from);

        let images = normal(&[batch, dim, grid.height, grid.width], dtype, lying, "images");
        let patches = numbers(&ops::patchify(&images, window).unwrap());
        let pixels = Four::of(&images);
        let mut expected = vec![];
        for b in 0..batch {
            for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                for c in 0..dim {
                    for (u, v) in (0..window).flat_map(|u| (0..window).map(move |v| (u, v))) {
                        expected.extend(pixels.at(b, c, (i * window + u) as isize, (j * window + v) as isize));
                    }
                }
            }
        }
        prop_assert_eq!(patches, expected);
    }
}
