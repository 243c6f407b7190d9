//! The embedding of patches beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, random};
use candle_core::DType;

fn embed(params: &[Tensor]) -> PatchEmbed<'_> {
    PatchEmbed {
        weight: &params[0],
        positions: &params[1],
        bias: params.get(3),
        prefix: params.get(2),
    }
}

/// Without tokens in front.
fn embed_patches(params: &[Tensor]) -> PatchEmbed<'_> {
    PatchEmbed {
        prefix: None,
        bias: params.get(2),
        ..embed(params)
    }
}

/// Of images, weight, positions, tokens in front and bias.
fn shapes(images: [usize; 4], d: usize, p: usize, prefix: Prefix) -> [Vec<usize>; 5] {
    let count = images[2] / p * (images[3] / p);
    [
        images.to_vec(),
        vec![d, images[1], p, p],
        vec![1, prefix.positions + count, d],
        vec![1, prefix.tokens, d],
        vec![d],
    ]
}

/// One token in front without and with a position, and three.
const PREFIXES: [Prefix; 4] = [
    Prefix {
        tokens: 1,
        positions: 0,
    },
    Prefix {
        tokens: 1,
        positions: 1,
    },
    Prefix {
        tokens: 3,
        positions: 0,
    },
    Prefix {
        tokens: 3,
        positions: 3,
    },
];

fn check_one(images: [usize; 4], d: usize, p: usize, keep: Option<&[u32]>, seed: u64) {
    for prefix in PREFIXES {
        let shapes = shapes(images, d, p, prefix);
        let shapes = shapes.each_ref().map(Vec::as_slice);
        let kernel = |args: &[Tensor]| patch_embed(&args[0], &embed(&args[1..]), keep);
        let reference = |args: &[Tensor]| composition(&args[0], &embed(&args[1..]), keep);
        check(&kernel, &reference, &shapes, seed);
        check(&kernel, &reference, &shapes[..4], seed);
    }
    let shapes = shapes(images, d, p, PREFIXES[0]);
    let shapes = [0, 1, 2, 4].map(|at| shapes[at].as_slice());
    let kernel = |args: &[Tensor]| patch_embed(&args[0], &embed_patches(&args[1..]), keep);
    let reference = |args: &[Tensor]| composition(&args[0], &embed_patches(&args[1..]), keep);
    check(&kernel, &reference, &shapes, seed);
    check(&kernel, &reference, &shapes[..3], seed);
}

#[test]
fn equals_its_composition() {
    check_one([2, 3, 8, 12], 5, 4, None, 0);
    check_one([2, 3, 8, 12], 5, 4, Some(&[0, 5, 3, 4, 2, 1]), 1);
    // One sample; one patch, and a rest that is ignored; an index twice; none at all.
    check_one([1, 1, 5, 4], 3, 3, None, 2);
    check_one([2, 2, 4, 4], 7, 2, Some(&[3, 3, 0, 2]), 3);
    check_one([2, 1, 2, 4], 3, 2, Some(&[]), 4);
    // Many pieces of work.
    check_one([5, 3, 64, 48], 33, 8, None, 5);
}

#[test]
fn composition_has_the_right_derivative() {
    for (seed, prefix) in (0..).zip(PREFIXES) {
        let shapes = shapes([2, 1, 4, 4], 3, 2, prefix);
        let shapes = shapes.each_ref().map(Vec::as_slice);
        let reference = |args: &[Tensor]| composition(&args[0], &embed(&args[1..]), Some(&[3, 1, 0, 2]));
        check_derivative(&reference, &shapes, seed);
    }
}

#[test]
fn errors_name_the_argument() {
    let message = |at: usize, shape: &[usize], keep: Option<&[u32]>| {
        let shapes = shapes([2, 3, 4, 4], 5, 2, PREFIXES[1]);
        let mut args: Vec<_> = shapes
            .iter()
            .map(|shape| random(shape, 0).to_dtype(DType::F32).unwrap())
            .collect();
        args[at] = random(shape, 0).to_dtype(DType::F32).unwrap();
        patch_embed(&args[0], &embed(&args[1..]), keep).unwrap_err().to_string()
    };
    assert_eq!(
        message(0, &[2, 1, 4, 4], None),
        "images has shape [2, 1, 4, 4], but must be [B, 3, H, W], with at least one image"
    );
    assert_eq!(
        message(0, &[2, 3, 1, 4], None),
        "images has shape [2, 3, 1, 4], but must be [B, C, H, W] with sides of at least one patch, 2 pixels"
    );
    assert_eq!(
        message(1, &[5, 3, 2, 1], None),
        "weight has shape [5, 3, 2, 1], but must be [D, C, p, p]"
    );
    assert_eq!(
        message(1, &[5, 3, 0, 0], None),
        "weight has shape [5, 3, 0, 0], but must be [D, C, p, p], not empty"
    );
    assert_eq!(
        message(3, &[1, 5], None),
        "prefix has shape [1, 5], but must be [1, P, 5] with P > 0"
    );
    assert_eq!(
        message(2, &[1, 3, 5], None),
        "positions has shape [1, 3, 5], but must be [1, 4, 5] or [1, 5, 5]"
    );
    assert_eq!(message(4, &[4], None), "bias has shape [4], but must be [5]");
    assert_eq!(
        message(4, &[5], Some(&[0, 1, 2])),
        "keep is 3 indices, but must be as many indices for each of 2 samples"
    );
    assert_eq!(message(4, &[5], Some(&[0, 4])), "keep is 4, but must be below L = 4");
    let wide = random(&[5], 0);
    let args = shapes([2, 3, 4, 4], 5, 2, PREFIXES[1]).map(|shape| random(&shape, 0).to_dtype(DType::F32).unwrap());
    let with_wide = PatchEmbed {
        bias: Some(&wide),
        ..embed(&args[1..])
    };
    assert_eq!(
        patch_embed(&args[0], &with_wide, None).unwrap_err().to_string(),
        "bias has dtype F64, but must be F32 like weight"
    );
}
