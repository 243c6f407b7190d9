//! Sizes beyond all measure, for which an allocation would abort, and numbers that floats do not tell.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use candle_nn::{Conv2dConfig, Init, VarBuilder};
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups};
use masksub::{num_keep, ops, BlockMasking, Grid, Mask, MaskGenerator, Params, RandomMasking, Seed, Weights};

use super::{assert_invalid, key};
use crate::common::{randn, CPU};

const FITS: &str = "so small that the result fits in memory";

#[test]
fn of_masks() {
    let blocks = BlockMasking::new(0.5, 256).unwrap();
    let mask = blocks.generate(1 << 16, Grid::new(1024, 1024), key());
    assert_invalid(mask, "factor", "256", FITS);
    let small = Mask::from_keep_indices(Grid::new(1, 1), &vec![[0]; 1 << 20]).unwrap();
    assert_invalid(small.upsample(60_000), "factor", "60000", FITS);
    // Of K positions, K * K scores.
    let long = RandomMasking::new(0.5).unwrap();
    let long = long.generate(1, Grid::new(1, 1 << 25), key()).unwrap();
    let bias = long.attention_bias(DType::F32, &CPU);
    assert_invalid(bias, "mask", "for 1 samples of 16777216 kept positions", FITS);
    let mask = RandomMasking::new(0.5)
        .unwrap()
        .generate(usize::MAX, Grid::new(2, 2), key());
    assert_invalid(mask, "batch", &usize::MAX.to_string(), "at most");
}

#[test]
fn of_padding() {
    let (xs, weight) = (randn((1, 1, 3, 3), "xs"), randn((1, 1, 3, 3), "weight"));
    for dtype in [DType::F32, DType::F64] {
        let [xs, weight] = [&xs, &weight].map(|t| t.to_dtype(dtype).unwrap());
        let conv = |padding| {
            let config = Conv2dConfig {
                padding,
                ..Default::default()
            };
            ops::conv2d(&xs, &weight, None, config)
        };
        assert_invalid(conv(1 << 20), "padding", "1048576", FITS);
        // What can be had is had.
        assert_eq!(conv(64).unwrap().dims(), [1, 1, 129, 129]);
    }
}

#[test]
fn of_weights() {
    let weights = Weights::seeded(Seed::new(0));
    let vb: VarBuilder = weights.var_builder(DType::F32, &CPU);
    for init in [Init::Const(0.0), Init::Randn { mean: 0.0, stdev: 1.0 }] {
        let error = vb.get_with_hints((1 << 20, 1 << 20), "fc1.weight", init);
        assert_invalid(error, "shape", "of weight fc1.weight", FITS);
        let error = vb.get_with_hints((usize::MAX, 2), "fc2.weight", init);
        assert_invalid(error, "shape", "of weight fc2.weight", FITS);
    }
}

#[test]
fn of_windows() {
    let grid = Grid::new(1 << 16, 1 << 15);
    assert_invalid(ops::shift_mask(grid, 128, 1, &CPU), "window", "128", FITS);
    let table = Tensor::zeros((1, 1), DType::F32, &CPU).unwrap();
    let table = table.broadcast_as((255 * 255, 1 << 24)).unwrap();
    assert_invalid(ops::relative_position_bias(&table, 128), "window", "128", FITS);
}

#[test]
fn of_a_grid_of_which_little_is_kept() {
    let grid = Grid::new(65535, 65535);
    // Two indices, not four billion places for them.
    let mask = Mask::from_keep_indices(grid, &vec![[7, 4_294_836_224]; 1 << 12]).unwrap();
    assert_eq!(mask.num_keep(), 2);
    assert_invalid(mask.to_dense(DType::U8, &CPU), "grid", "65535 x 65535", FITS);
    assert_invalid(mask.dropped_indices(&CPU), "grid", "65535 x 65535", FITS);
}

#[test]
fn of_initial_weights() {
    let weights = Weights::seeded(Seed::new(0));
    for (dtype, init) in [
        (DType::F32, Init::Randn { mean: 0.0, stdev: 1e39 }),
        (DType::F32, Init::Const(f64::NAN)),
        (
            DType::F32,
            Init::Uniform {
                lo: f64::NEG_INFINITY,
                up: 0.0,
            },
        ),
        (DType::F16, Init::Const(1e5)),
    ] {
        let vb = weights.var_builder(dtype, &CPU);
        assert_invalid(vb.get_with_hints(3, "fc.weight", init), "init", "fc.weight", "finite");
    }
    assert!(weights
        .var_builder(DType::BF16, &CPU)
        .get_with_hints(3, "w", Init::Const(1e5))
        .is_ok());
}

#[test]
fn of_mixing() {
    let labels = Tensor::new(&[0u32, 1], &CPU).unwrap();
    let many = Mix::new(1 << 50, 1.0, 0.0).unwrap();
    let mixed = many.apply(&randn((2, 3, 4, 4), "xs"), &labels, key());
    assert_invalid(mixed, "num_classes", &(1usize << 50).to_string(), FITS);
    assert_invalid(Mix::new(3, 1e308, 0.0), "mixup_alpha", "1", "below a million");
    assert_invalid(Mix::new(3, 0.0, 1e6), "cutmix_alpha", "1000000", "below a million");
    // The largest one still mixes half and half, and not to NaN.
    let mix = Mix::new(2, 999_999.0, 0.0).unwrap();
    let labels = Tensor::new(&[0u32, 1], &CPU).unwrap();
    let mixed = mix.apply(&randn((2, 3, 4, 4), "xs"), &labels, key()).unwrap();
    for target in mixed.targets.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
        assert!((target - 0.5).abs() < 0.01, "{target}");
    }
}

#[test]
fn of_positions_that_a_float_does_not_tell() {
    for len in [(1 << 53) + 1, (1 << 53) + 3, usize::MAX] {
        assert!(num_keep(len, 0.0).unwrap() <= len, "{len}");
    }
}

#[test]
fn of_updates_in_a_saved_state() {
    let params = Params::new([("w".to_string(), candle_core::Var::from_tensor(&randn(2, "w")).unwrap())]);
    let mut opt = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
    let mut ema = Ema::new(vars.collect::<Vec<_>>(), 0.9).unwrap();
    for updates in [i64::MAX, -1, 1 << 53] {
        let count = Tensor::new(updates, &CPU).unwrap();
        let with = |mut state: BTreeMap<String, Tensor>, name: &str| {
            assert!(state.insert(name.into(), count.clone()).is_some());
            state
        };
        let state = with(opt.state().unwrap(), "w.step");
        assert_invalid(
            opt.load_state(&state),
            "state",
            &format!("{updates} updates"),
            "0 to 2^53 - 1",
        );
        let state = with(ema.state().unwrap(), "updates");
        assert_invalid(
            ema.load_state(&state),
            "state",
            &format!("{updates} updates"),
            "0 to 2^53 - 1",
        );
    }
}

#[test]
fn of_layers_that_decay() {
    let params = Params::new([("w".to_string(), candle_core::Var::from_tensor(&randn(2, "w")).unwrap())]);
    let groups = ParamGroups::new(&params).with_layer_decay(0.5, usize::MAX, |_| 0);
    assert_invalid(groups, "num_layers", &usize::MAX.to_string(), "at most");
    // Without blocks, embeddings are one layer below the head.
    let groups = ParamGroups::new(&params).with_layer_decay(0.5, 0, |_| 0).unwrap();
    assert_eq!(groups.iter().next().map(|(_, scale, _)| scale), Some(0.5));
}
