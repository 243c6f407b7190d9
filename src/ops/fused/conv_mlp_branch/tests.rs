//! The block of a ConvNeXt beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use rand::Rng as _;

type Factors<'a> = Option<&'a [f32]>;

type Branch = fn(&Tensor, Grid, &ConvMlpBranch, Factors) -> Result<Tensor>;

/// Which of the parameters there are that only one version of the ConvNeXt has.
#[derive(Clone, Copy, PartialEq)]
enum Version {
    Plain,
    Scaled,
    Response,
    Both,
}

const VERSIONS: [Version; 4] = [Version::Plain, Version::Scaled, Version::Response, Version::Both];

/// A map of `grid` with C channels, kernels of `side`, and H numbers in the middle.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    grid: Grid,
    channels: usize,
    side: usize,
    hidden: usize,
}

impl Sizes {
    fn shapes(self, version: Version) -> Vec<Vec<usize>> {
        let (c, h, k) = (self.channels, self.hidden, self.side);
        let mut shapes = vec![vec![self.batch, self.grid.len(), c], vec![c, 1, k, k], vec![c]];
        if matches!(version, Version::Response | Version::Both) {
            shapes.extend([vec![h], vec![h]]);
        }
        shapes.extend([vec![c], vec![c], vec![h, c], vec![h], vec![c, h], vec![c]]);
        if matches!(version, Version::Scaled | Version::Both) {
            shapes.push(vec![c]);
        }
        shapes
    }
}

fn of(
    f: Branch,
    grid: Grid,
    version: Version,
    drop_path: Factors<'_>,
) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
    move |args| {
        let affine = |i: usize| Affine {
            weight: &args[i],
            bias: &args[i + 1],
        };
        let response = matches!(version, Version::Response | Version::Both).then(|| affine(3));
        let branch = &args[if response.is_some() { 5 } else { 3 }..];
        let [norm, fc1, fc2] = affines(branch);
        let branch = ConvMlpBranch {
            conv: affine(1),
            norm,
            eps: 0.1,
            fc1,
            response,
            fc2,
            gamma: branch.get(6),
        };
        f(&args[0], grid, &branch, drop_path)
    }
}

fn check_one(sizes: Sizes, version: Version, seed: u64) {
    let shapes = sizes.shapes(version);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let factors: Vec<f32> = (0..sizes.batch).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
    let drop_path = (version != Version::Plain).then_some(&factors[..]);
    let [kernel, reference] = [conv_mlp_branch as Branch, composition].map(|f| of(f, sizes.grid, version, drop_path));
    check(&kernel, &reference, &shapes, seed);
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(12);
    for seed in 0..4 {
        let mut size = |most| rng.random_range(1..=most);
        let sizes = Sizes {
            batch: size(3),
            grid: Grid::new(size(9), size(9)),
            channels: 8 + size(20),
            side: [7, 3, 9, 1][seed],
            hidden: 8 + size(30),
        };
        check_one(sizes, VERSIONS[seed], seed as u64);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    let mut sizes = Sizes {
        batch: 1,
        grid: Grid::new(1, 1),
        channels: 8,
        side: 7,
        hidden: 5,
    };
    for version in VERSIONS {
        check_one(sizes, version, 1);
    }
    // Whole registers and runs, and many pieces of work.
    sizes.grid = Grid::new(14, 7);
    (sizes.batch, sizes.channels, sizes.hidden) = (2, 48, 192);
    check_one(sizes, Version::Scaled, 2);
    check_one(sizes, Version::Response, 3);
}

#[test]
fn composition_has_the_right_derivative() {
    let sizes = Sizes {
        batch: 2,
        grid: Grid::new(2, 3),
        channels: 3,
        side: 3,
        hidden: 4,
    };
    for version in [Version::Scaled, Version::Response] {
        let shapes = sizes.shapes(version);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let reference = of(composition, sizes.grid, version, Some(&[0.5, 2.0]));
        check_derivative(&reference, &shapes, 0);
    }
}

/// A layer of no channel's response: its norm has no slope.
#[test]
fn a_channel_without_response_has_finite_gradients() {
    let sizes = Sizes {
        batch: 2,
        grid: Grid::new(2, 2),
        channels: 4,
        side: 3,
        hidden: 3,
    };
    let shapes = sizes.shapes(Version::Response);
    let vars: Vec<_> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, seed)| {
            let random = random(shape, seed).to_dtype(candle_core::DType::F32).unwrap();
            // The first layer's weight and bias.
            let random = if seed == 7 || seed == 8 {
                random.zeros_like().unwrap()
            } else {
                random
            };
            candle_core::Var::from_tensor(&random).unwrap()
        })
        .collect();
    let args: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = of(conv_mlp_branch, sizes.grid, Version::Response, None)(&args).unwrap();
    let grads = ys.sum_all().unwrap().backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let sum = grads.get(var).unwrap().sqr().unwrap().sum_all().unwrap();
        assert!(sum.to_scalar::<f32>().unwrap().is_finite(), "{i}");
    }
}

#[test]
fn errors_name_the_argument() {
    let sizes = Sizes {
        batch: 2,
        grid: Grid::new(2, 3),
        channels: 4,
        side: 3,
        hidden: 5,
    };
    let message = |index: usize, shape: &[usize], drop_path: Factors| {
        let mut shapes = sizes.shapes(Version::Both);
        shapes[index] = shape.to_vec();
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        let error = of(conv_mlp_branch, sizes.grid, Version::Both, drop_path)(&args).unwrap_err();
        error.to_string()
    };
    for (index, shape, expected) in [
        (0, &[2, 6][..], "xs has shape [2, 6], but must be [B, N, D]"),
        (
            0,
            &[2, 5, 4],
            "xs has shape [2, 5, 4], but must be [B, 6, C], not empty, for a grid of 2 x 3",
        ),
        (
            0,
            &[0, 6, 4],
            "xs has shape [0, 6, 4], but must be [B, 6, C], not empty, for a grid of 2 x 3",
        ),
        (
            1,
            &[4, 1, 3, 5],
            "conv.weight has shape [4, 1, 3, 5], but must be [4, 1, k, k] with an odd k",
        ),
        (
            1,
            &[4, 1, 2, 2],
            "conv.weight has shape [4, 1, 2, 2], but must be [4, 1, k, k] with an odd k",
        ),
        (2, &[3], "conv.bias has shape [3], but must be [4]"),
        (3, &[4], "response.weight has shape [4], but must be [5]"),
        (4, &[4], "response.bias has shape [4], but must be [5]"),
        (5, &[3], "norm.weight has shape [3], but must be [4]"),
        (7, &[5, 3], "fc1.weight has shape [5, 3], but must be [5, 4]"),
        (10, &[3], "fc2.bias has shape [3], but must be [4]"),
        (11, &[3], "gamma has shape [3], but must be [4]"),
    ] {
        assert_eq!(message(index, shape, None), expected);
    }
    let expected = "drop_path is 1 factors, but must be 2, one for each sample";
    assert_eq!(message(2, &[4], Some(&[1.0])), expected);
}
