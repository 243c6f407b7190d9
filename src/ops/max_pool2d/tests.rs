//! Max pooling beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, random, relative, rng};
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
fn equals_its_composition_where_sides_differ() {
    for (seed, k, s, padding) in [(0, (2, 3), (1, 2), 1), (1, (4, 1), (3, 1), 0), (2, (3, 2), (2, 5), 1)] {
        let kernel = |args: &[Tensor]| max_pool2d(&args[0], k, s, padding);
        let reference = |args: &[Tensor]| composition(&args[0], k, s, padding);
        check(&kernel, &reference, &[&[2, 3, 9, 8]], seed);
    }
    // Neither is told its sides by the other here.
    let xs = random(&[2, 3, 9, 8], 3);
    let candles = xs.max_pool2d_with_stride((4, 2), (3, 1)).unwrap();
    let ours = max_pool2d(&xs, (4, 2), (3, 1), 0).unwrap();
    assert_eq!(relative(&ours, &candles), 0.0);
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
        let upstream = Tensor::arange(1f32, 1.0 + ys.elem_count() as f32, &Device::Cpu).unwrap();
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
    for (ys, grads) in both(&[&[5.0, 5.0, 1.0], &[5.0, 0.0, 5.0]], 2, 1, 0) {
        assert_eq!(ys, [5.0, 5.0]);
        assert_eq!(grads, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    }
    for (ys, grads) in both(&[&[-0.0, 0.0], &[0.0, 0.0]], 2, 1, 0) {
        assert_eq!(ys, [0.0]);
        assert_eq!(grads, [1.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn padding_never_wins() {
    const LOWEST: f32 = f32::NEG_INFINITY;
    for (ys, grads) in both(&[&[-3.0, -1.0], &[-2.0, -4.0]], 2, 2, 1) {
        assert_eq!(ys, [-3.0, -1.0, -2.0, -4.0]);
        assert_eq!(grads, [1.0, 2.0, 3.0, 4.0]);
    }
    for (ys, grads) in both(&[&[LOWEST, f32::MIN], &[LOWEST, LOWEST]], 2, 2, 1) {
        assert_eq!(ys, [LOWEST, f32::MIN, LOWEST, LOWEST]);
        assert_eq!(grads, [1.0, 2.0, 3.0, 4.0]);
    }
    for (ys, grads) in both(&[&[LOWEST; 2], &[LOWEST; 2]], 3, 1, 1) {
        assert_eq!(ys, [LOWEST; 4]);
        assert_eq!(grads, [10.0, 0.0, 0.0, 0.0]);
    }
}

/// As PyTorch does it: `(x > largest) || isnan(x)`.
#[test]
fn an_undefined_element_wins_and_the_last_one_of_several() {
    for (ys, grads) in both(&[&[f32::NAN, 9.0], &[f32::NAN, 8.0], &[1.0, 2.0]], 2, 1, 0) {
        assert!(ys[0].is_nan() && ys[1].is_nan());
        assert_eq!(grads, [0.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
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
    let sides = max_pool2d(&random(&[1, 1, 2, 2], 0), (3, 1), 1, 0)
        .unwrap_err()
        .to_string();
    assert!(
        sides.ends_with("with sides of at least [3, 1] for windows of [3, 1] and a padding of 0"),
        "{sides}"
    );
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
