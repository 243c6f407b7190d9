//! Images of other shapes, cut as a convolution cuts them.

use candle_core::{DType, IndexOp, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{DropToken, Error, Grid, MaskSub, Pass, PatchDrop, Seed, TokenModel, Weights};

use super::{from_values, half, key, random_values};
use crate::common::{bits, distance, images, labels, randn, tiny, tiny_forms, vit, CPU};

#[test]
fn with_a_remainder_are_cropped_where_asked() {
    // DeiT-III's ViT-H/14 at 160 pixels: 11 x 11 patches and 6 pixels.
    let cfg = Config {
        embed_dim: 8,
        depth: 1,
        num_heads: 2,
        mlp_dim: 16,
        crop_remainder: true,
        ..Config::deit3_huge(5).with_input(160, 14, 3)
    };
    let (cropping, params) = vit(&cfg, 1);
    assert_eq!(params.get("pos_embed").unwrap().dims(), [1, 121, 8]);
    let xs = randn((2, 3, 160, 160), "remainder");
    assert_eq!(cropping.grid(&xs).unwrap(), Grid::new(11, 11));
    assert_eq!(
        cropping.embed(&xs, None, &mut Pass::eval()).unwrap().dims(),
        [2, 122, 8]
    );
    // The same as a model for the whole patches alone, on those.
    let whole = Config {
        crop_remainder: false,
        image_size: (154, 154),
        ..cfg.clone()
    };
    let (whole, _) = vit(&whole, 1);
    let inside = xs.i((.., .., ..154, ..154)).unwrap();
    let logits = bits(&whole.forward_t(&inside.contiguous().unwrap(), false).unwrap());
    assert_eq!(bits(&cropping.forward_t(&xs, false).unwrap()), logits);
    // It trains.
    let model = MaskSub::new(cropping, DropToken::new(half()), params);
    let step = model
        .backward(&xs, key(0), |logits| cross_entropy(logits, &labels(2, 5)))
        .unwrap();
    assert_eq!(step.mask.unwrap().num_keep(), 60);
    // Not asked, it is an error.
    let refused = Config {
        crop_remainder: false,
        ..cfg
    };
    let error = VisionTransformer::new(&refused, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU));
    assert!(matches!(
        Error::from(error.unwrap_err()),
        Error::InvalidArgument {
            argument: "image_size",
            ..
        }
    ));
}

#[test]
fn need_not_be_square() {
    let cfg = Config {
        image_size: (8, 20),
        ..tiny(Config::deit3_tiny(5))
    };
    let (wide, _) = vit(&cfg, 1);
    let xs = randn((2, 3, 8, 20), "wide");
    assert_eq!(wide.grid(&xs).unwrap(), Grid::new(2, 5));
    // Position 7 is row 1, column 2: its pixels move its token and no other.
    let tokens = |xs: &Tensor| wide.embed(xs, None, &mut Pass::eval()).unwrap();
    let patch = (Tensor::ones((2, 3, 4, 4), DType::F32, &CPU).unwrap() * 5.0).unwrap();
    let changed = xs.slice_assign(&[0..2, 0..3, 4..8, 8..12], &patch).unwrap();
    let moved = (tokens(&changed) - tokens(&xs)).unwrap().abs().unwrap().sum(2).unwrap();
    for row in moved.to_vec2::<f32>().unwrap() {
        let which: Vec<usize> = (0..row.len()).filter(|&at| row[at] > 0.0).collect();
        assert_eq!(which, [1 + 7]);
    }
    // The transposed image does not fit.
    assert!(wide.forward_t(&randn((2, 3, 20, 8), "tall"), false).is_err());
    for branch in [PatchDrop::new(half(), 4).unwrap(), PatchDrop::new(half(), 2).unwrap()] {
        MaskSub::unchecked(&wide, branch).forward_pair(&xs, key(0)).unwrap();
    }
}

#[test]
fn may_come_alone_or_strided() {
    for (name, cfg) in tiny_forms(5) {
        let (vit, _) = vit(&cfg, 1);
        let xs = images(3, "alone");
        let together = vit.forward_t(&xs, false).unwrap();
        for sample in 0..3 {
            let alone = vit.forward_t(&xs.narrow(0, sample, 1).unwrap(), false).unwrap();
            let error = distance(&alone, &together.narrow(0, sample, 1).unwrap());
            assert!(error < 1e-5, "{name}: {error:.1e}");
        }
        let channels_last = xs.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let strided = channels_last.permute((0, 3, 1, 2)).unwrap();
        assert_eq!(
            bits(&vit.forward_t(&strided, false).unwrap()),
            bits(&together),
            "{name}"
        );
    }
}

/// The patch projection is a convolution with stride = kernel, as the weights' shape says.
#[test]
fn are_cut_as_a_convolution_cuts() {
    let cfg = tiny(Config::deit3_tiny(5));
    let values = random_values(&cfg);
    let (vit, _) = from_values(&cfg, &values, DType::F32);
    let xs = images(2, "convolution");
    let tokens = vit.embed(&xs, None, &mut Pass::eval()).unwrap();
    let convolved = xs.conv2d(&values["patch_embed.proj.weight"], 0, 4, 1, 1).unwrap();
    let convolved = convolved.flatten_from(2).unwrap().transpose(1, 2).unwrap();
    let expected = convolved
        .broadcast_add(&values["patch_embed.proj.bias"])
        .and_then(|patches| patches.broadcast_add(&values["pos_embed"]))
        .unwrap();
    let patches = tokens.narrow(1, 1, 16).unwrap();
    assert!(distance(&patches, &expected) < 1e-5);
}
