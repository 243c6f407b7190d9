//! Dropped tokens, which leave a model of the kept ones.

use candle_core::{DType, IndexOp, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::vit::Config;
use masksub::{DropToken, Grid, Mask, MaskSub, Pass, RandomMasking, TokenModel};

use super::{from_values, key, random_values};
use crate::common::{bits, distance, images, labels, tiny_forms, vit, CPU};

fn is_positions(name: &str) -> bool {
    name.contains("pos_embed") || name.contains("position")
}

/// Rows of tables of positions for 4 x 4 patches that are those of a table for 2 x 3.
fn rows_of_part(cfg: &Config, table: &str, kept: &[u32]) -> Vec<u32> {
    if table.ends_with("relative_position_bias_table") {
        // Distances within ±1 and ±2, and three with the class token.
        let distances = (2..5).flat_map(|down| (1..6).map(move |right| down * 7 + right));
        return distances.chain(49..52).collect();
    }
    let before = u32::from(cfg.class_token) + u32::from(cfg.distillation_token);
    let prefix = if cfg.class_token_position { before } else { 0 };
    (0..prefix).chain(kept.iter().map(|at| at + prefix)).collect()
}

/// Keeping a rectangle of patches is running a model made for that part of the image on it.
#[test]
fn leave_a_model_of_the_kept_ones() {
    let xs = images(2, "kept");
    // Rows 1 and 2, columns 0, 1 and 2 of 4 x 4 patches.
    let kept: Vec<u32> = vec![4, 5, 6, 8, 9, 10];
    let part = xs.i((.., .., 4..12, 0..12)).unwrap().contiguous().unwrap();
    // Rotary positions are those of the whole image: what peers recorded of them is in `peers`.
    for (name, cfg) in tiny_forms(5).into_iter().filter(|(_, cfg)| cfg.rotary.is_none()) {
        let values = random_values(&cfg);
        let (whole, _) = from_values(&cfg, &values, DType::F32);
        let mask = Mask::from_keep_indices(Grid::new(4, 4), &[&kept, &kept]).unwrap();
        let mut pass = Pass::eval();
        let dropped = whole
            .classify(
                &whole.embed(&xs, Some(&mask), &mut pass).unwrap(),
                Some(&mask),
                &mut pass,
            )
            .unwrap();

        let mut values = values.clone();
        for (name, value) in values.iter_mut().filter(|(name, _)| is_positions(name)) {
            let rows = Tensor::new(rows_of_part(&cfg, name, &kept), &CPU).unwrap();
            *value = value.index_select(&rows, value.rank() - 2).unwrap();
        }
        let smaller = Config {
            image_size: (8, 12),
            ..cfg
        };
        let (smaller, _) = from_values(&smaller, &values, DType::F32);
        let alone = smaller.forward_t(&part, false).unwrap();
        assert!(
            distance(&dropped, &alone) < 1e-5,
            "{name}: {:.1e}",
            distance(&dropped, &alone)
        );
        let everything = whole.forward_t(&xs, false).unwrap();
        assert!(distance(&dropped, &everything) > 1e-2, "{name}");
    }
}

/// Samples that keep different tokens are what each is by itself.
#[test]
fn are_those_of_each_sample() {
    let xs = images(2, "each");
    let rows = [[0u32, 3, 5, 10, 15], [1, 2, 7, 8, 12]];
    for (name, cfg) in tiny_forms(5) {
        let (whole, _) = from_values(&cfg, &random_values(&cfg), DType::F32);
        let logits = |xs: &Tensor, rows: &[[u32; 5]]| {
            let mask = Mask::from_keep_indices(Grid::new(4, 4), rows).unwrap();
            let mut pass = Pass::eval();
            let tokens = whole.embed(xs, Some(&mask), &mut pass).unwrap();
            whole.classify(&tokens, Some(&mask), &mut pass).unwrap()
        };
        let together = logits(&xs, &rows);
        for (sample, row) in rows.iter().enumerate() {
            let alone = logits(&xs.narrow(0, sample, 1).unwrap(), &[*row]);
            let off = distance(&together.narrow(0, sample, 1).unwrap(), &alone);
            assert!(off < 1e-5, "{name}, sample {sample}: {off:.1e}");
        }
    }
}

#[test]
fn are_gone_whatever_they_were() {
    for (name, cfg) in tiny_forms(5) {
        let (vit, _) = vit(&cfg, 1);
        let rows = [[0u32, 1, 2, 3], [4, 5, 6, 7]];
        let mask = Mask::from_keep_indices(Grid::new(4, 4), &rows).unwrap();
        let logits = |xs: &Tensor| {
            let mut pass = Pass::eval();
            bits(
                &vit.classify(&vit.embed(xs, Some(&mask), &mut pass).unwrap(), Some(&mask), &mut pass)
                    .unwrap(),
            )
        };
        let xs = images(2, "gone");
        // The lower half of the image is dropped in both samples.
        let nan = Tensor::full(f32::NAN, (2, 3, 8, 16), &CPU).unwrap();
        let broken = xs.slice_assign(&[0..2, 0..3, 8..16, 0..16], &nan).unwrap();
        assert_eq!(logits(&broken), logits(&xs), "{name}");
    }
}

/// Tokens have no order but their positions.
#[test]
fn may_be_kept_in_any_order() {
    for (name, cfg) in tiny_forms(5) {
        let (vit, _) = vit(&cfg, 1);
        let logits = |row: [u32; 5]| {
            let mask = Mask::from_keep_indices(Grid::new(4, 4), &[row]).unwrap();
            let mut pass = Pass::eval();
            vit.classify(
                &vit.embed(&images(1, "order"), Some(&mask), &mut pass).unwrap(),
                Some(&mask),
                &mut pass,
            )
            .unwrap()
        };
        let (sorted, shuffled) = (logits([1, 4, 7, 9, 15]), logits([15, 7, 1, 9, 4]));
        assert!(distance(&shuffled, &sorted) < 1e-5, "{name}");
        assert!(distance(&logits([0, 4, 7, 9, 15]), &sorted) > 1e-4, "{name}");
    }
}

#[test]
fn never_are_prefix_tokens() {
    // Their gradients arrive even where a single patch is kept.
    for (name, cfg) in tiny_forms(5) {
        let (vit, params) = vit(&cfg, 1);
        let branch = DropToken::new(RandomMasking::new(0.99).unwrap());
        let model = MaskSub::new(vit, branch, &params).with_weight(1.0).unwrap();
        let step = model
            .backward(&images(2, "class"), key(0), |logits| {
                cross_entropy(logits, &labels(2, 5))
            })
            .unwrap();
        assert_eq!(step.mask.unwrap().num_keep(), 1);
        let is_prefix = |name: &str| name.ends_with("_token") || name.ends_with("class_embedding");
        let tokens: Vec<(&str, &Var)> = params.iter().filter(|(name, _)| is_prefix(name)).collect();
        let expected = [cfg.class_token, cfg.distillation_token, cfg.num_registers > 0];
        assert_eq!(
            tokens.len(),
            expected.into_iter().filter(|there_is| *there_is).count(),
            "{name}"
        );
        for (token, var) in tokens {
            // Each of the registers by itself.
            let gradient = step.grads.get(var).unwrap().reshape(((), cfg.embed_dim)).unwrap();
            for row in gradient.to_vec2::<f32>().unwrap() {
                assert!(row.iter().any(|&g| g != 0.0), "{name}: {token}");
            }
        }
    }
}
