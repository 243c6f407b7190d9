//! Swin: windows against their definition, other people's names, checkpoints without a mask token.

use std::collections::BTreeMap;

use crate::common::{count_params, numbers, randn, random_values, shapes_of, small_swin, CPU};
use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::swin::{Config, SwinTransformer, WeightNames};
use masksub::{Error, Seed, Weights};

fn build(cfg: &Config) -> candle_core::Result<SwinTransformer> {
    SwinTransformer::new(cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU))
}

mod windows {
    use super::*;

    /// Weights as numbers, and what is made of them.
    struct ByHand(BTreeMap<String, Vec<f64>>);

    impl ByHand {
        fn affine(&self, xs: &[f64], name: &str) -> Vec<f64> {
            let (weight, bias) = (&self.0[&format!("{name}.weight")], &self.0[&format!("{name}.bias")]);
            let row = |(row, bias): (&[f64], &f64)| bias + row.iter().zip(xs).map(|(w, x)| w * x).sum::<f64>();
            weight.chunks(xs.len()).zip(bias).map(row).collect()
        }

        fn norm(&self, xs: &[f64], name: &str) -> Vec<f64> {
            let (weight, bias) = (&self.0[&format!("{name}.weight")], &self.0[&format!("{name}.bias")]);
            let mean = xs.iter().sum::<f64>() / xs.len() as f64;
            let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64;
            let scale = (var + 1e-5).sqrt();
            (0..xs.len())
                .map(|i| (xs[i] - mean) / scale * weight[i] + bias[i])
                .collect()
        }

        /// The logits of a Swin of one stage in which a token sees those of the same `window` x `window` square.
        fn logits(&self, cfg: &Config, image: &[f64], window: usize) -> Vec<f64> {
            let (d, p, heads) = (cfg.embed_dim, cfg.patch_size, cfg.num_heads[0]);
            let (rows, columns) = (cfg.image_size.0 / p, cfg.image_size.1 / p);
            let patch = |at: usize| -> Vec<f64> {
                let pixel = |i: usize| {
                    let (c, row, column) = (i / (p * p), at / columns * p + i / p % p, at % columns * p + i % p);
                    image[(c * rows * p + row) * columns * p + column]
                };
                (0..cfg.in_channels * p * p).map(pixel).collect()
            };
            let embed = |at| self.norm(&self.affine(&patch(at), "patch_embed.proj"), "patch_embed.norm");
            let mut tokens: Vec<Vec<f64>> = (0..rows * columns).map(embed).collect();
            for block in 0..cfg.depths[0] {
                let name = |part: &str| format!("layers.0.blocks.{block}.{part}");
                let table = &self.0[&name("attn.relative_position_bias_table")];
                let project = |token: &Vec<f64>| self.affine(&self.norm(token, &name("norm1")), &name("attn.qkv"));
                let qkv: Vec<Vec<f64>> = tokens.iter().map(project).collect();
                let place = |at: usize| (at / columns, at % columns);
                for (query, token) in tokens.iter_mut().enumerate() {
                    let (row, column) = place(query);
                    let square = |at: usize| (place(at).0 / window, place(at).1 / window);
                    let seen: Vec<usize> = (0..qkv.len()).filter(|&key| square(key) == square(query)).collect();
                    let mut mixed = vec![0.; d];
                    for head in 0..heads {
                        let part = head * d / heads..(head + 1) * d / heads;
                        let score = |&key: &usize| {
                            let product: f64 = part.clone().map(|i| qkv[query][i] * qkv[key][d + i]).sum();
                            let down = row + window - 1 - place(key).0;
                            let right = column + window - 1 - place(key).1;
                            let bias = table[(down * (2 * window - 1) + right) * heads + head];
                            (product / (part.len() as f64).sqrt() + bias).exp()
                        };
                        let shares: Vec<f64> = seen.iter().map(score).collect();
                        let total: f64 = shares.iter().sum();
                        for i in part.clone() {
                            let values = seen
                                .iter()
                                .zip(&shares)
                                .map(|(&key, share)| share * qkv[key][2 * d + i]);
                            mixed[i] = values.sum::<f64>() / total;
                        }
                    }
                    let attended = self.affine(&mixed, &name("attn.proj"));
                    token.iter_mut().zip(attended).for_each(|(x, y)| *x += y);
                    let hidden = self.affine(&self.norm(token, &name("norm2")), &name("mlp.fc1"));
                    let gelu = |x: &f64| x * (1. + statrs::function::erf::erf(x / 2f64.sqrt())) / 2.;
                    let hidden: Vec<f64> = hidden.iter().map(gelu).collect();
                    let changed = self.affine(&hidden, &name("mlp.fc2"));
                    token.iter_mut().zip(changed).for_each(|(x, y)| *x += y);
                }
            }
            let normed: Vec<Vec<f64>> = tokens.iter().map(|token| self.norm(token, "norm")).collect();
            let mean = |i: usize| normed.iter().map(|token| token[i]).sum::<f64>() / normed.len() as f64;
            self.affine(&(0..d).map(mean).collect::<Vec<_>>(), "head")
        }
    }

    /// Of one stage whose grid is smaller than a window, or as small along one side: two blocks, the second of which
    /// would be shifted in a larger one.
    #[test]
    fn shrink_to_the_shorter_side_and_are_not_shifted() {
        for (grid, window_size, used) in [
            ((3, 3), 7, 3),
            ((2, 6), 5, 2),
            ((6, 3), 4, 3),
            ((4, 4), 4, 4),
            ((4, 8), 4, 4),
        ] {
            let cfg = Config {
                image_size: (2 * grid.0, 2 * grid.1),
                depths: vec![2],
                num_heads: vec![2],
                window_size,
                mlp_ratio: 2,
                ..small_swin()
            };
            let values = random_values(|vb| SwinTransformer::new(&cfg, vb));
            let by_hand = ByHand(
                values
                    .iter()
                    .map(|(name, value)| (name.clone(), numbers(value)))
                    .collect(),
            );
            let image = randn((1, 3, cfg.image_size.0, cfg.image_size.1), "shrunk");
            let expected = by_hand.logits(&cfg, &numbers(&image), used);
            for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
                let weights = Weights::from_tensors(values.clone());
                let swin = SwinTransformer::new(&cfg, weights.var_builder(dtype, &CPU)).unwrap();
                let logits = numbers(&swin.forward_t(&image.to_dtype(dtype).unwrap(), false).unwrap());
                for (ours, theirs) in logits.iter().zip(&expected) {
                    assert!(
                        (ours - theirs).abs() < tolerance,
                        "{grid:?} {dtype:?}: {logits:?} instead of {expected:?}"
                    );
                }
            }
        }
    }

    /// timm decides along each side for itself, which gives the same only for squares and for grids of several windows.
    #[test]
    fn that_timm_would_not_make_square_are_refused_under_its_names() {
        let with = |weight_names, image_size| {
            let cfg = Config {
                weight_names,
                image_size,
                ..small_swin()
            };
            build(&cfg).map(drop).map_err(Error::from)
        };
        // Stages of 16 x 16 and 8 x 8 tokens, of 32 x 64 and 16 x 32, of 4 x 4 and 2 x 2.
        for fits in [(32, 32), (64, 128), (8, 8)] {
            with(WeightNames::Timm, fits).unwrap();
        }
        // Along one side the grid is one window in the second stage; in the first; both sides are less than one.
        for (odd, stage) in [((16, 32), 1), ((8, 16), 0), ((4, 8), 0)] {
            with(WeightNames::Microsoft, odd).unwrap();
            match with(WeightNames::Timm, odd).unwrap_err() {
                Error::InvalidArgument {
                    argument: "image_size",
                    value,
                    allowed,
                } => {
                    assert_eq!(value, format!("{} x {}", odd.0, odd.1));
                    let more = format!(
                        "square, or of more than {} pixels on each side: in stage {stage}",
                        8 << stage
                    );
                    assert!(allowed.starts_with(&more), "{allowed}");
                }
                other => panic!("{other}"),
            }
        }
    }
}

mod names {
    use super::*;

    /// The tensors of a published checkpoint of Swin-T, less the buffers that follow from the sizes.
    fn published(merging: fn(usize) -> usize, head: &str) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = BTreeMap::new();
        let mut add = |name: String, weight: &[usize], bias: bool| {
            if bias {
                shapes.insert(format!("{name}.bias"), vec![weight[0]]);
            }
            shapes.insert(format!("{name}.weight"), weight.to_vec());
        };
        add("patch_embed.proj".into(), &[96, 3, 4, 4], true);
        add("patch_embed.norm".into(), &[96], true);
        for (stage, (d, depth)) in [(96, 2), (192, 2), (384, 6), (768, 2)].into_iter().enumerate() {
            for block in 0..depth {
                let name = |part| format!("layers.{stage}.blocks.{block}.{part}");
                add(name("norm1"), &[d], true);
                add(name("attn.qkv"), &[3 * d, d], true);
                add(name("attn.proj"), &[d, d], true);
                add(name("norm2"), &[d], true);
                add(name("mlp.fc1"), &[4 * d, d], true);
                add(name("mlp.fc2"), &[d, 4 * d], true);
            }
            if stage < 3 {
                let name = |part| format!("layers.{}.downsample.{part}", merging(stage));
                add(name("norm"), &[4 * d], true);
                add(name("reduction"), &[2 * d, 4 * d], false);
            }
        }
        add("norm".into(), &[768], true);
        add(head.into(), &[1000, 768], true);
        for (stage, (heads, depth)) in [(3, 2), (6, 2), (12, 6), (24, 2)].into_iter().enumerate() {
            for block in 0..depth {
                let name = format!("layers.{stage}.blocks.{block}.attn.relative_position_bias_table");
                shapes.insert(name, vec![169, heads]);
            }
        }
        shapes
    }

    #[test]
    fn are_those_of_the_published_checkpoints() {
        let with = |weight_names| Config {
            weight_names,
            ..Config::tiny(1000)
        };
        let ours = |weight_names| shapes_of(|vb| SwinTransformer::new(&with(weight_names), vb));
        for (weight_names, mut expected) in [
            // https://github.com/microsoft/Swin-Transformer: a stage ends with its merging.
            (WeightNames::Microsoft, published(|stage| stage, "head")),
            // timm from 0.9 on: a stage starts with it (its `checkpoint_filter_fn` adds the 1), the head has a pooling.
            (WeightNames::Timm, published(|stage| stage + 1, "head.fc")),
        ] {
            assert_eq!(
                expected
                    .values()
                    .map(|shape| shape.iter().product::<usize>())
                    .sum::<usize>(),
                28_288_354
            );
            expected.insert("mask_token".into(), vec![1, 1, 96]);
            assert_eq!(ours(weight_names), expected);
        }
        let timm = ours(WeightNames::Timm);
        assert_eq!(timm["layers.1.downsample.norm.weight"], [384]);
        assert_eq!(timm["head.fc.weight"], [1000, 768]);
        assert!(!timm.contains_key("layers.0.downsample.norm.weight") && !timm.contains_key("head.weight"));
        // As torchvision publishes the number, with the mask token's.
        assert_eq!(
            count_params(|vb| SwinTransformer::new(&Config::tiny(1000), vb)),
            28_288_354 + 96
        );
    }
}

#[test]
fn a_checkpoint_without_a_mask_token_loads_and_one_is_drawn() {
    let cfg = small_swin();
    let mut values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    values.remove("mask_token").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("swin.safetensors");
    candle_core::safetensors::save(&values.clone().into_iter().collect(), &path).unwrap();

    let refused = SwinTransformer::new(
        &cfg,
        Weights::from_safetensors(&path).unwrap().var_builder(DType::F32, &CPU),
    );
    let refused = refused.map(drop).map_err(Error::from);
    assert!(matches!(refused, Err(Error::MissingWeight { path, .. }) if path == "mask_token"));

    let weights = Weights::from_safetensors_or_seed(&path, Seed::new(1)).unwrap();
    let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!(weights.drawn(), ["mask_token"]);
    assert!(weights.left_over().is_empty());
    // It is used by the sub-branch alone.
    let xs = randn((1, 3, 32, 64), "checkpoint");
    values.insert("mask_token".into(), Tensor::zeros((1, 1, 8), DType::F32, &CPU).unwrap());
    let zero = SwinTransformer::new(&cfg, Weights::from_tensors(values).var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!(
        numbers(&swin.forward_t(&xs, false).unwrap()),
        numbers(&zero.forward_t(&xs, false).unwrap())
    );
}
