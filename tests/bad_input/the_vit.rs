//! Images, tokens and configurations of the ViT.

use candle_core::DType;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{
    DropToken, Error, Fill, Forward, Grid, MaskGenerator, MaskSub, Pass, PatchDrop, Seed, TokenModel, Weights,
};

use super::{assert_invalid, assert_misshapen, error_of, half, key};
use crate::common::{images, randn, tiny, vit, CPU};

#[test]
fn on_images_of_another_size() {
    let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
    for shape in [
        vec![2, 3, 16, 18],
        vec![2, 3, 15, 16],
        vec![2, 3, 32, 32],
        vec![2, 1, 16, 16],
        vec![2, 3, 16],
        vec![3, 16, 16],
        vec![],
        vec![2],
        vec![2, 3, 0, 16],
        vec![2, 0, 16, 16],
        vec![2, 3, 16, 16, 1],
    ] {
        let xs = randn(shape.clone(), "odd");
        let expected = match shape[..] {
            // A size like any other, but not the configured one.
            [2, 3, 32, 32] => "for images of 32 x 32 set Config::image_size",
            [_, _, _, _] => "multiples of the patch, 4 pixels",
            _ => "[B, C, H, W]",
        };
        assert_misshapen(vit.forward_t(&xs, false), "images", &shape, expected);
        assert_misshapen(
            vit.forward_pass(&xs, &mut Pass::train(key())),
            "images",
            &shape,
            expected,
        );
        assert_misshapen(vit.grid(&xs), "images", &shape, expected);
    }
    let empty = randn((0, 3, 16, 16), "odd");
    assert_misshapen(
        vit.forward_t(&empty, false),
        "images",
        &[0, 3, 16, 16],
        "at least one image",
    );
}

#[test]
fn of_configurations_that_do_not_hold_together() {
    let build = |cfg: Config| VisionTransformer::new(&cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU));
    let base = || tiny(Config::deit3_tiny(3));
    type Zero = fn(&mut Config) -> &mut usize;
    let zeros: [(&str, Zero); 7] = [
        ("patch_size", |cfg| &mut cfg.patch_size),
        ("in_channels", |cfg| &mut cfg.in_channels),
        ("num_classes", |cfg| &mut cfg.num_classes),
        ("embed_dim", |cfg| &mut cfg.embed_dim),
        ("depth", |cfg| &mut cfg.depth),
        ("num_heads", |cfg| &mut cfg.num_heads),
        ("mlp_dim", |cfg| &mut cfg.mlp_dim),
    ];
    for (argument, field) in zeros {
        let mut cfg = base();
        *field(&mut cfg) = 0;
        assert_invalid(build(cfg), argument, "0", "at least 1");
    }
    assert_invalid(
        build(Config { num_heads: 5, ..base() }),
        "num_heads",
        "5",
        "divisor of embed_dim, 24",
    );
    for (rate, value) in [(1.0, "1"), (-0.5, "-0.5"), (f64::NAN, "NaN")] {
        let allowed = "at least 0 and below 1";
        assert_invalid(
            build(Config {
                dropout: rate,
                ..base()
            }),
            "dropout",
            value,
            allowed,
        );
        assert_invalid(
            build(Config {
                drop_path: rate,
                ..base()
            }),
            "drop_path",
            value,
            allowed,
        );
    }
    for (height, width) in [(16, 18), (18, 16), (0, 16), (16, 2)] {
        let cfg = Config {
            image_size: (height, width),
            ..base()
        };
        let allowed = "multiples of the patch, 4 pixels";
        assert_invalid(
            build(cfg.clone()),
            "image_size",
            &format!("{height} x {width}"),
            allowed,
        );
        let cropped = Config {
            crop_remainder: true,
            ..cfg
        };
        if height >= 4 && width >= 4 {
            assert!(build(cropped).is_ok())
        } else {
            assert_invalid(
                build(cropped),
                "image_size",
                &format!("{height} x {width}"),
                "at least one patch",
            )
        }
    }
}

/// Whatever it is given, it may refuse, but not panic.
#[test]
fn on_odd_tokens_and_dtypes() {
    let (vit, _) = vit(&tiny(Config::mae_base(3)), 0);
    for shape in [
        vec![],
        vec![24],
        vec![2, 24],
        vec![2, 0, 24],
        vec![0, 5, 24],
        vec![2, 5, 23],
        vec![2, 1, 24],
        vec![2, 5, 24, 1],
    ] {
        let classified = vit.classify(&randn(shape.clone(), "tokens"), None, &mut Pass::eval());
        assert_misshapen(classified, "tokens", &shape, "[B, 1 + K, 24]");
    }
    for dtype in [DType::U8, DType::U32, DType::I64, DType::F64, DType::BF16] {
        let xs = images(2, "dtype").to_dtype(dtype).unwrap();
        assert!(vit.forward_t(&xs, false).is_err(), "{dtype:?} images in a f32 model");
        for fill in [Fill::Zero, Fill::Mean, Fill::Noise] {
            let branch = PatchDrop::new(half(), 4).unwrap().with_fill(fill);
            assert!(MaskSub::unchecked(&vit, branch).forward_pair(&xs, key()).is_err());
        }
        assert!(MaskSub::unchecked(&vit, DropToken::new(half()))
            .forward_pair(&xs, key())
            .is_err());
    }
    // A mask for another batch or grid.
    for mask in [
        half().generate(3, Grid::new(4, 4), key()),
        half().generate(2, Grid::new(4, 5), key()),
    ] {
        let result = vit.embed(&images(2, "mask"), Some(&mask.unwrap()), &mut Pass::eval());
        assert!(matches!(
            error_of(result),
            Error::InvalidArgument { argument: "mask", .. }
        ));
    }
}
