//! Bicubic interpolation of tables of positions, as PyTorch does it.

use candle_core::{DType, Device, Result, Tensor};

use crate::grid::Grid;

/// Keys' cubic convolution at this parameter is PyTorch's `bicubic`.
const A: f64 = -0.75;

/// Resizes values [H, W, D] at the positions of a grid to [H', W', D], in f64:
/// `interpolate(mode="bicubic", align_corners=False, antialias=False)`.
///
/// A position's value is the sum over the four nearest in each direction, weighted by the cubic convolution kernel
/// (Keys, 1981); beyond the edge its position repeats.
pub(super) fn bicubic(values: &Tensor, to: Grid) -> Result<Tensor> {
    let (height, width, dim) = values.dims3()?;
    let values = values.to_dtype(DType::F64)?.contiguous()?;
    // One direction after the other, each as a product with the matrix of its weights.
    let rows = weights(height, to.height)?.matmul(&values.reshape((height, width * dim))?)?;
    let rows = rows.reshape((to.height, width, dim))?;
    let columns = weights(width, to.width)?;
    let columns = columns.broadcast_as((to.height, to.width, width))?.contiguous()?;
    columns.matmul(&rows)
}

/// [to, from]: what each position of the result takes of those there are.
fn weights(from: usize, to: usize) -> Result<Tensor> {
    let mut weights = vec![0.0; to * from];
    let scale = from as f64 / to as f64;
    for (index, row) in weights.chunks_exact_mut(from.max(1)).enumerate() {
        let at = (index as f64 + 0.5) * scale - 0.5;
        for tap in -1..=2 {
            let position = at.floor() + f64::from(tap);
            // Beyond the edge, the last position counts again.
            let nearest = position.clamp(0.0, from as f64 - 1.0) as usize;
            if let Some(weight) = row.get_mut(nearest) {
                *weight += kernel(at - position);
            }
        }
    }
    Tensor::from_vec(weights, (to, from), &Device::Cpu)
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
    use rand::Rng;

    fn noise(height: usize, width: usize, dim: usize) -> Vec<f64> {
        let mut rng = Seed::new(3).rng_for("bicubic");
        (0..height * width * dim).map(|_| rng.random::<f64>() - 0.5).collect()
    }

    fn resized(values: &[f64], from: Grid, dim: usize, to: Grid) -> Vec<f64> {
        let values = Tensor::from_vec(values.to_vec(), (from.height, from.width, dim), &Device::Cpu).unwrap();
        let resized = bicubic(&values, to).unwrap();
        assert_eq!(resized.dims(), [to.height, to.width, dim]);
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
}
