//! Windows against their definition.

use std::collections::BTreeMap;

use candle_core::DType;
use candle_nn::ModuleT;
use masksub::models::swin::{Config, SwinTransformer, WeightNames};
use masksub::{Error, Weights};

use super::build;
use crate::common::{numbers, randn, random_values, small_swin, CPU};

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
                let mut mixed = vec![0.0; d];
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
                let gelu = |x: &f64| x * (1.0 + statrs::function::erf::erf(x / 2f64.sqrt())) / 2.0;
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
