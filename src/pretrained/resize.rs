//! Bicubic interpolation of tables of positions, as PyTorch does it.

use candle_core::{DType, Result, Storage, Tensor, WithDType};

use crate::check;
use crate::grid::Grid;
use crate::ops::cpu::kernel::contiguous_range;

/// Keys' cubic convolution at this parameter is PyTorch's `bicubic`.
const A: f64 = -0.75;

/// Resizes the values at the positions of a grid, [P + H W, D] with H W of `from`, to [P + H' W', D] with H' W' of `to`:
/// `interpolate(mode="bicubic", align_corners=False, antialias=False)`. The first P rows stay as they are.
///
/// A position's value is the sum over the four nearest in each direction, weighted by the cubic convolution kernel
/// (Keys, 1981); beyond the edge its position repeats. Computed in f64 and rounded once, to f32 unless `values` are f64.
/// Beside `values` and the result it needs a row of the grid.
pub(super) fn bicubic(values: &Tensor, from: Grid, to: Grid) -> Result<Tensor> {
    match values.dtype() {
        DType::F64 => resized::<f64>(values, from, to),
        _ => resized::<f32>(&values.to_dtype(DType::F32)?, from, to),
    }
}

fn resized<T: WithDType>(values: &Tensor, from: Grid, to: Grid) -> Result<Tensor> {
    let (rows, dim) = values.dims2()?;
    let values = values.contiguous()?;
    let (storage, layout) = values.storage_and_layout();
    let (Storage::Cpu(storage), Some(range)) = (&*storage, contiguous_range(layout)) else {
        candle_core::bail!("positions are resized on the CPU");
    };
    let (prefix, values) = T::cpu_storage_as_slice(storage)?[range].split_at((rows - from.len()) * dim);
    let len = to.len().checked_mul(dim).and_then(|len| len.checked_add(prefix.len()));
    // As it is resized, in the dtype of the model, and as a variable.
    check::fits_memory("grid", to, len, size_of::<T>() + 2 * size_of::<f64>())?;
    check::fits_memory("grid", to, to.height.checked_add(to.width), size_of::<Taps>())?;
    let mut resized = Vec::with_capacity(len.unwrap_or_default());
    resized.extend_from_slice(prefix);
    let columns = taps(from.width, to.width);
    // One direction after the other.
    let mut blend = vec![0.0; from.width * dim];
    for taps in taps(from.height, to.height) {
        blend.fill(0.0);
        for (row, weight) in taps {
            let row = values.iter().skip(row * blend.len());
            blend
                .iter_mut()
                .zip(row)
                .for_each(|(sum, value)| *sum += weight * value.to_f64());
        }
        for taps in &columns {
            let at = |column: usize, d: usize| blend.get(column * dim + d).copied().unwrap_or_default();
            let value = |d| taps.iter().map(|&(column, weight)| weight * at(column, d)).sum();
            resized.extend((0..dim).map(|d| T::from_f64(value(d))));
        }
    }
    let rows = rows - from.len() + to.len();
    Tensor::from_vec(resized, (rows, dim), &candle_core::Device::Cpu)
}

/// What a position takes of which others.
type Taps = [(usize, f64); 4];

/// For each of `to` positions, what it takes of which of `from`.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let of = |index: usize| {
        let at = (index as f64 + 0.5) * scale - 0.5;
        [-1.0, 0.0, 1.0, 2.0].map(|tap| {
            let position = at.floor() + tap;
            // Beyond the edge, the last position counts again.
            (position.clamp(0.0, from as f64 - 1.0) as usize, kernel(at - position))
        })
    };
    (0..to).map(of).collect()
}

fn kernel(distance: f64) -> f64 {
    let x = distance.abs();
    match x {
        _ if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Seed;
    use candle_core::Device;
    use rand::Rng;

    fn noise(height: usize, width: usize, dim: usize) -> Vec<f64> {
        let mut rng = Seed::new(3).rng_for("bicubic");
        (0..height * width * dim).map(|_| rng.random::<f64>() - 0.5).collect()
    }

    fn resized(values: &[f64], from: Grid, dim: usize, to: Grid) -> Vec<f64> {
        let values = Tensor::from_vec(values.to_vec(), (from.len(), dim), &Device::Cpu).unwrap();
        let resized = bicubic(&values, from, to).unwrap();
        assert_eq!(resized.dims(), [to.len(), dim]);
        resized.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The definition, pixel by pixel: four neighbours in either direction, weighted by the polynomials written out for
    /// a = -3/4.
    fn brute_force(values: &[f64], from: Grid, dim: usize, to: Grid) -> Vec<f64> {
        let coefficients = |t: f64| {
            let far = |x: f64| -0.75 * x * x * x + 3.75 * x * x - 6.0 * x + 3.0;
            let near = |x: f64| 1.25 * x * x * x - 2.25 * x * x + 1.0;
            [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
        };
        let mut out = vec![];
        for y in 0..to.height {
            for x in 0..to.width {
                for d in 0..dim {
                    let source = |i: usize, from: usize, to: usize| (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                    let (sy, sx) = (source(y, from.height, to.height), source(x, from.width, to.width));
                    let (cy, cx) = (coefficients(sy - sy.floor()), coefficients(sx - sx.floor()));
                    let mut sum = 0.0;
                    for (i, wy) in cy.iter().enumerate() {
                        for (j, wx) in cx.iter().enumerate() {
                            let row = (sy.floor() as i64 + i as i64 - 1).clamp(0, from.height as i64 - 1) as usize;
                            let column = (sx.floor() as i64 + j as i64 - 1).clamp(0, from.width as i64 - 1) as usize;
                            sum += wy * wx * values[(row * from.width + column) * dim + d];
                        }
                    }
                    out.push(sum);
                }
            }
        }
        out
    }

    #[test]
    fn follows_its_definition() {
        for (from, to) in [
            ((4, 4), (6, 6)),
            ((7, 7), (11, 11)),
            ((14, 14), (12, 12)),
            ((5, 3), (2, 9)),
            ((3, 8), (8, 3)),
            ((1, 1), (3, 2)),
            ((4, 2), (1, 1)),
        ] {
            let (from, to) = (Grid::new(from.0, from.1), Grid::new(to.0, to.1));
            let values = noise(from.height, from.width, 3);
            let ours = resized(&values, from, 3, to);
            let theirs = brute_force(&values, from, 3, to);
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() < 1e-12, "{from} to {to}: {a} instead of {b}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_in_memory_is_refused() {
        let values = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
        for to in [
            Grid::new(1 << 25, 1 << 25),
            Grid::new(1, 1 << 44),
            Grid::new(usize::MAX, 2),
        ] {
            let message = bicubic(&values, Grid::new(2, 2), to).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("grid is {to}, but must be so small that the result fits in memory")
            );
        }
    }

    #[test]
    fn the_same_size_is_the_same() {
        let grid = Grid::new(3, 5);
        let values = noise(3, 5, 2);
        assert_eq!(resized(&values, grid, 2, grid), values);
    }

    #[test]
    fn what_is_even_stays_even() {
        let ours = resized(&[2.5; 12], Grid::new(4, 3), 1, Grid::new(9, 5));
        assert!(ours.iter().all(|value| (value - 2.5).abs() < 1e-12));
    }

    #[test]
    fn what_stands_before_the_positions_stays_and_halves_are_rounded_once() {
        let (from, to) = (Grid::new(3, 3), Grid::new(4, 2));
        let values = Tensor::from_vec(noise(11, 1, 2), (11, 2), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let values = values.to_dtype(dtype).unwrap();
            let ours = bicubic(&values, from, to).unwrap();
            assert_eq!((ours.dims(), ours.dtype()), (&[10, 2][..], DType::F32));
            let wide = values.to_dtype(DType::F64).unwrap();
            let exact = bicubic(&wide, from, to).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(ours.to_vec2::<f32>().unwrap(), exact.to_vec2::<f32>().unwrap());
            let prefix = wide.narrow(0, 0, 2).unwrap().to_dtype(DType::F32).unwrap();
            assert_eq!(
                ours.narrow(0, 0, 2).unwrap().to_vec2::<f32>().unwrap(),
                prefix.to_vec2::<f32>().unwrap()
            );
        }
    }
}
