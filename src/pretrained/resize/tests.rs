//! Each way of resizing beside its definition, and what all of them keep.

use super::*;
use crate::key::Seed;
use candle_core::Device;
use rand::Rng;

fn noise(height: usize, width: usize, dim: usize) -> Vec<f64> {
    let mut rng = Seed::new(3).rng_for("bicubic");
    (0..height * width * dim).map(|_| rng.random::<f64>() - 0.5).collect()
}

fn resized(values: &[f64], from: Grid, dim: usize, to: Grid, how: Resize) -> Vec<f64> {
    let values = Tensor::from_vec(values.to_vec(), (from.len(), dim), &Device::Cpu).unwrap();
    let resized = super::resized(&values, from, to, how).unwrap();
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
        let ours = resized(&values, from, 3, to, Resize::Bicubic);
        let theirs = brute_force(&values, from, 3, to);
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 1e-12, "{from} to {to}: {a} instead of {b}");
        }
    }
}

// Sums over all positions: the triangle and the cubic kernel of Pillow, as wide as the new grid's positions.
#[test]
fn antialiased_follows_its_definition() {
    let kernel = |x: f64| match x.abs() {
        x if x < 1.0 => 1.5 * x * x * x - 2.5 * x * x + 1.0,
        x if x < 2.0 => -0.5 * x * x * x + 2.5 * x * x - 4.0 * x + 2.0,
        _ => 0.0,
    };
    for (from, to) in [(4, 6), (14, 12), (14, 5), (7, 1), (1, 3), (24, 24), (2, 9)] {
        let values = noise(from, 1, 1);
        let ours = resized(
            &values,
            Grid::new(from, 1),
            1,
            Grid::new(to, 1),
            Resize::AntialiasedBicubic,
        );
        let scale = from as f64 / to as f64;
        for (index, ours) in ours.into_iter().enumerate() {
            let at = (index as f64 + 0.5) * scale;
            let weights: Vec<f64> = (0..from)
                .map(|i| kernel((i as f64 + 0.5 - at) / scale.max(1.0)))
                .collect();
            let sum: f64 = weights.iter().sum();
            let theirs: f64 = weights.iter().zip(&values).map(|(w, value)| w * value / sum).sum();
            assert!(
                (ours - theirs).abs() < 1e-12,
                "{from} to {to}: {ours} instead of {theirs}"
            );
        }
    }
}

#[test]
fn aligned_corners_stay() {
    let (from, to) = (Grid::new(4, 3), Grid::new(7, 9));
    let values = noise(4, 3, 1);
    for how in [Resize::AlignedBicubic, Resize::AlignedLinear] {
        let ours = resized(&values, from, 1, to, how);
        for (corner, old) in [(0, 0), (8, 2), (54, 9), (62, 11)] {
            assert!((ours[corner] - values[old]).abs() < 1e-12, "{how}");
        }
        // Every second row of a grid twice as fine is one of the old.
        assert!((ours[2 * 9] - values[3]).abs() < 1e-12, "{how}");
        assert_eq!(resized(&values, from, 1, Grid::new(1, 1), how).len(), 1);
    }
    let linear = resized(&[0.0, 4.0], Grid::new(2, 1), 1, Grid::new(5, 1), Resize::AlignedLinear);
    assert_eq!(linear, [0.0, 1.0, 2.0, 3.0, 4.0]);
}

// The ratio is where the sum reaches the end; what is even stays even, and the middle is the middle.
#[test]
fn a_geometric_series_reaches_from_the_middle_to_the_end() {
    let values: Vec<f64> = (0..7).map(f64::from).collect();
    for (to, largest) in [(7, 6.0), (9, 6.0), (5, 5.0), (1, 3.0)] {
        let ours = resized(&values, Grid::new(7, 1), 1, Grid::new(to, 1), Resize::Geometric);
        assert_eq!(ours[to / 2], 3.0);
        assert!(ours.windows(2).all(|pair| pair[0] < pair[1]), "{ours:?}");
        assert!((ours[to - 1] - largest).abs() < 0.03, "{ours:?}");
    }
    // 1 + 1.5 + 1.5² at most: beyond it, the last counts.
    let ours = resized(&values, Grid::new(7, 1), 1, Grid::new(13, 1), Resize::Geometric);
    assert_eq!((ours[0], ours[1], ours[11], ours[12]), (0.0, 0.0, 6.0, 6.0));
    assert!(ours[10] < 6.0);
}

#[test]
fn what_does_not_fit_in_memory_is_refused() {
    let values = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
    for to in [
        Grid::new(1 << 25, 1 << 25),
        Grid::new(1, 1 << 44),
        Grid::new(usize::MAX, 2),
    ] {
        let message = super::resized(&values, Grid::new(2, 2), to, Resize::Bicubic)
            .unwrap_err()
            .to_string();
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
    assert_eq!(resized(&values, grid, 2, grid, Resize::Bicubic), values);
}

#[test]
fn what_is_even_stays_even() {
    for how in [
        Resize::Bicubic,
        Resize::AntialiasedBicubic,
        Resize::AlignedBicubic,
        Resize::AlignedLinear,
    ] {
        let ours = resized(&[2.5; 12], Grid::new(4, 3), 1, Grid::new(9, 5), how);
        assert!(ours.iter().all(|value| (value - 2.5).abs() < 1e-12), "{how}");
    }
}

#[test]
fn what_stands_before_the_positions_stays_and_halves_are_rounded_once() {
    let (from, to) = (Grid::new(3, 3), Grid::new(4, 2));
    let values = Tensor::from_vec(noise(11, 1, 2), (11, 2), &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let values = values.to_dtype(dtype).unwrap();
        let ours = super::resized(&values, from, to, Resize::Bicubic).unwrap();
        assert_eq!((ours.dims(), ours.dtype()), (&[10, 2][..], DType::F32));
        let wide = values.to_dtype(DType::F64).unwrap();
        let exact = super::resized(&wide, from, to, Resize::Bicubic)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap();
        assert_eq!(ours.to_vec2::<f32>().unwrap(), exact.to_vec2::<f32>().unwrap());
        let prefix = wide.narrow(0, 0, 2).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(
            ours.narrow(0, 0, 2).unwrap().to_vec2::<f32>().unwrap(),
            prefix.to_vec2::<f32>().unwrap()
        );
    }
}
