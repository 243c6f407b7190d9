//! Tokens taken from a sequence, against a loop.

use candle_core::{DType, Tensor, Var};
use masksub::{Error, Grid, Mask};

use super::some_mask;
use crate::common::{bits, numbers, randn};

/// Value and gradient against loops over samples, positions and widths.
fn compare(prefix: usize, mask: &Mask, tokens: &Tensor) {
    let width = tokens.dim(2).unwrap();
    let var = Var::from_tensor(tokens).unwrap();
    let gathered = mask.gather(&var, prefix).unwrap();
    let shape = (mask.batch(), prefix + mask.num_keep(), width);
    assert_eq!(gathered.dims(), [shape.0, shape.1, shape.2]);
    let weights = randn(shape, "weights");
    let loss = (&gathered * &weights).unwrap().sum_all().unwrap();
    let grad = loss.backward().unwrap().get(&var).unwrap().to_vec3::<f32>().unwrap();

    let source = tokens.to_vec3::<f32>().unwrap();
    let gathered = gathered.to_vec3::<f32>().unwrap();
    let weights = weights.to_vec3::<f32>().unwrap();
    let mut expected_grad = vec![vec![vec![0f32; width]; tokens.dim(1).unwrap()]; mask.batch()];
    for (sample, kept) in mask.rows().enumerate() {
        let rows = (0..prefix).chain(kept.iter().map(|&at| prefix + at as usize));
        for (to, from) in rows.enumerate() {
            assert_eq!(gathered[sample][to], source[sample][from]);
            expected_grad[sample][from].clone_from(&weights[sample][to]);
        }
    }
    assert_eq!(grad, expected_grad);
}

#[test]
fn takes_prefix_and_kept_rows() {
    for (prefix, ratio) in [(0, 0.5), (1, 0.5), (2, 0.8), (1, 0.0)] {
        let mask = some_mask(3, Grid::new(2, 5), ratio);
        compare(prefix, &mask, &randn((3, prefix + 10, 4), "tokens"));
    }
}

#[test]
fn takes_rows_in_any_order() {
    let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[3, 0, 1], [2, 1, 3]]).unwrap();
    compare(1, &mask, &randn((2, 5, 3), "tokens"));
}

#[test]
fn returns_the_tokens_where_all_are_kept_in_order() {
    let tokens = randn((2, 5, 3), "tokens");
    let gathered = some_mask(2, Grid::new(2, 2), 0.0).gather(&tokens, 1).unwrap();
    assert_eq!(gathered.id(), tokens.id());
    let permuted = Mask::from_keep_indices(Grid::new(2, 2), &[[0, 1, 2, 3], [0, 1, 3, 2]]).unwrap();
    compare(1, &permuted, &tokens);
}

#[test]
fn takes_tokens_that_are_not_contiguous() {
    let mask = some_mask(2, Grid::new(2, 3), 0.5);
    let transposed = randn((2, 4, 6), "transposed").transpose(1, 2).unwrap();
    let gathered = mask.gather(&transposed, 0).unwrap();
    let expected = mask.gather(&transposed.contiguous().unwrap(), 0).unwrap();
    assert_eq!(bits(&gathered), bits(&expected));
    compare(0, &mask, &transposed);
}

#[test]
fn works_in_other_dtypes() {
    let mask = some_mask(2, Grid::new(2, 3), 0.5);
    let tokens = randn((2, 7, 4), "tokens");
    for dtype in [DType::F64, DType::BF16, DType::F16] {
        let converted = tokens.to_dtype(dtype).unwrap();
        let var = Var::from_tensor(&converted).unwrap();
        let gathered = mask.gather(&var, 1).unwrap();
        assert_eq!(gathered.dtype(), dtype);
        let expected = mask.gather(&converted.to_dtype(DType::F32).unwrap(), 1).unwrap();
        assert_eq!(numbers(&gathered), numbers(&expected));
        let grads = gathered.sum_all().unwrap().backward().unwrap();
        let kept: f64 = numbers(grads.get(&var).unwrap()).iter().sum();
        assert_eq!(kept, (2 * 4 * (1 + 3)) as f64);
    }
}

#[test]
fn refuses_other_shapes() {
    let mask = some_mask(2, Grid::new(2, 3), 0.5);
    for shape in [vec![2, 6, 4], vec![3, 7, 4], vec![2, 7], vec![2, 7, 4, 1], vec![]] {
        let error = mask.gather(&randn(shape.clone(), "odd"), 1).unwrap_err();
        assert!(
            matches!(&error, Error::Shape { argument: "tokens", got, .. } if *got == shape),
            "{error}"
        );
    }
}
