//! The gated MLP beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use rand::Rng as _;

type Factors<'a> = Option<&'a [f32]>;

type Branch = fn(&Tensor, &GatedMlpBranch, Factors) -> Result<Tensor>;

/// Which of the forms that models have.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    packed: bool,
    inner_norm: bool,
    gamma: bool,
}

const fn form(packed: bool, inner_norm: bool, gamma: bool) -> Form {
    Form {
        packed,
        inner_norm,
        gamma,
    }
}

/// DINOv2's, EVA-02's, DINOv3's, and one of the rest.
const FORMS: [Form; 4] = [
    form(true, false, true),
    form(false, true, false),
    form(false, false, true),
    form(true, true, true),
];

fn shapes(form: Form, [b, n, d, h]: [usize; 4]) -> Vec<Vec<usize>> {
    let mut shapes = vec![vec![b, n, d], vec![d], vec![d]];
    if form.packed {
        shapes.extend([vec![2 * h, d], vec![2 * h]]);
    } else {
        shapes.extend([vec![h, d], vec![h], vec![h, d], vec![h]]);
    }
    if form.inner_norm {
        shapes.extend([vec![h], vec![h]]);
    }
    shapes.extend([vec![d, h], vec![d]]);
    if form.gamma {
        shapes.push(vec![d]);
    }
    shapes
}

fn of(f: Branch, form: Form, drop_path: Factors<'_>) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
    move |args| {
        let affine = |i: usize| Affine {
            weight: &args[i],
            bias: &args[i + 1],
        };
        let behind = if form.packed { 5 } else { 7 };
        let fc2 = if form.inner_norm { behind + 2 } else { behind };
        let branch = GatedMlpBranch {
            norm: affine(1),
            eps: 0.1,
            gated: if form.packed {
                Gated::Packed(affine(3))
            } else {
                Gated::Apart([affine(3), affine(5)])
            },
            inner_norm: form.inner_norm.then(|| affine(behind)),
            fc2: affine(fc2),
            gamma: args.get(fc2 + 2),
        };
        f(&args[0], &branch, drop_path)
    }
}

fn check_one(form: Form, sizes: [usize; 4], seed: u64) {
    let shapes = shapes(form, sizes);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let factors: Vec<f32> = (0..sizes[0]).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
    let drop_path = form.gamma.then_some(&factors[..]);
    let [kernel, reference] = [gated_mlp_branch as Branch, composition].map(|f| of(f, form, drop_path));
    check(&kernel, &reference, &shapes, seed);
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(14);
    for (form, seed) in FORMS.into_iter().zip(0..) {
        let mut size = |most| rng.random_range(1..=most);
        check_one(form, [size(4), size(20), 4 + size(30), 4 + size(60)], seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    for form in FORMS {
        check_one(form, [1, 1, 9, 7], 0);
    }
    // Many pieces of work.
    check_one(FORMS[0], [3, 60, 24, 96], 1);
    check_one(FORMS[1], [3, 197, 48, 96], 2);
}

#[test]
fn composition_has_the_right_derivative() {
    for form in FORMS {
        let shapes = shapes(form, [2, 2, 3, 4]);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check_derivative(&of(composition, form, Some(&[0.5, 2.0])), &shapes, 0);
    }
}

#[test]
fn errors_name_the_argument() {
    let message = |form: Form, index: usize, shape: &[usize], drop_path: Factors| {
        let mut shapes = shapes(form, [2, 3, 4, 5]);
        shapes[index] = shape.to_vec();
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        of(gated_mlp_branch, form, drop_path)(&args).unwrap_err().to_string()
    };
    let (packed, apart) = (FORMS[3], form(false, true, true));
    for (form, index, shape, expected) in [
        (packed, 0, &[2, 4][..], "xs has shape [2, 4], but must be [B, N, D]"),
        (packed, 1, &[3], "norm.weight has shape [3], but must be [4]"),
        (packed, 3, &[9, 4], "gated.weight has shape [9, 4], but must be [10, 4]"),
        (packed, 4, &[5], "gated.bias has shape [5], but must be [10]"),
        (packed, 5, &[10], "inner_norm.weight has shape [10], but must be [5]"),
        (packed, 8, &[3], "fc2.bias has shape [3], but must be [4]"),
        (packed, 9, &[3], "gamma has shape [3], but must be [4]"),
        (apart, 3, &[10, 4], "gate.weight has shape [10, 4], but must be [5, 4]"),
        (apart, 6, &[4], "value.bias has shape [4], but must be [5]"),
        (apart, 8, &[4], "inner_norm.bias has shape [4], but must be [5]"),
    ] {
        assert_eq!(message(form, index, shape, None), expected);
    }
    let expected = "drop_path is 1 factors, but must be 2, one for each sample";
    assert_eq!(message(packed, 1, &[4], Some(&[1.0])), expected);
}

#[test]
fn of_nothing_is_nothing() {
    for form in FORMS {
        let args: Vec<_> = shapes(form, [0, 3, 4, 8])
            .iter()
            .map(|shape| random(shape, 0))
            .collect();
        assert_eq!(of(gated_mlp_branch, form, None)(&args).unwrap().dims(), [0, 3, 4]);
    }
}
