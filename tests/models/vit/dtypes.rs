//! f64 and half precision.

use candle_core::{DType, Tensor};
use masksub::models::vit::Config;
use masksub::{grad, DropToken, MaskSub};

use super::{from_values, half, key, random_values};
use crate::common::{distance, images, labels, tiny_forms};

#[test]
fn f64_and_half_precision_agree_with_f32() {
    for (name, cfg) in tiny_forms(5) {
        let values = random_values(&cfg);
        let run = |dtype: DType| {
            let (vit, params) = from_values(&cfg, &values, dtype);
            let xs = images(4, "dtypes").to_dtype(dtype).unwrap();
            let model = MaskSub::new(vit, DropToken::new(half()), &params);
            let loss = |logits: &Tensor| masksub::Criterion::cross_entropy().forward(logits, &labels(4, 5));
            let step = model.backward(&xs, key(0), loss).unwrap();
            let audit = grad::audit(&step.grads, &params).unwrap();
            assert!(audit.is_ok(), "{name}, {dtype:?}: {audit}");
            assert_eq!(step.main_logits.dtype(), dtype);
            (
                step.main_logits.to_dtype(DType::F64).unwrap(),
                step.main_loss,
                step.sub_loss.unwrap(),
            )
        };
        let (logits, main, sub) = run(DType::F64);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
            let (ours, our_main, our_sub) = run(dtype);
            let error = distance(&ours, &logits);
            assert!(error < tolerance, "{name}, {dtype:?}: {error:.1e}");
            assert!((our_main - main).abs() < tolerance * (1.0 + main), "{name}, {dtype:?}");
            assert!((our_sub - sub).abs() < tolerance * (1.0 + sub), "{name}, {dtype:?}");
        }
    }
}

/// A row of a table of relative positions gets a gradient from each pair of patches that far apart, in each sample:
/// more than half precision can add up one by one.
#[test]
fn a_tables_gradient_is_summed_in_f32() {
    let small = Config {
        embed_dim: 16,
        depth: 1,
        num_heads: 2,
        mlp_dim: 16,
        ..Config::beitv2_base(5)
    };
    let cfg = small.with_input(56, 4, 3);
    let values = random_values(&cfg);
    let gradient = |dtype: DType| {
        let (vit, params) = from_values(&cfg, &values, dtype);
        let xs = crate::common::randn((16, 3, 56, 56), "table").to_dtype(dtype).unwrap();
        let model = MaskSub::new(vit, DropToken::new(half()), &params);
        let loss = |logits: &Tensor| masksub::Criterion::cross_entropy().forward(logits, &labels(16, 5));
        let step = model.backward(&xs, key(0), loss).unwrap();
        let (_, table) = params.iter().find(|(name, _)| name.ends_with("bias_table")).unwrap();
        step.grads.get(table).unwrap().to_dtype(DType::F64).unwrap()
    };
    let error = distance(&gradient(DType::BF16), &gradient(DType::F64));
    assert!(error < 2e-2, "{error:.1e}");
}
