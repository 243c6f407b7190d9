//! Configurations that do not hold together, and images that they do not fit.

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::swin::{Config, SwinTransformer};
use masksub::{MaskToken, Pass, Seed, SubBranch, Weights};

use crate::common::{small_swin, CPU};
use crate::{message, named, random};

#[test]
fn configurations_that_do_not_hold_together_name_the_field() {
    let swin = |change: fn(&mut Config)| {
        let mut cfg = small_swin();
        change(&mut cfg);
        named(SwinTransformer::new(
            &cfg,
            Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU),
        ))
    };
    assert_eq!(swin(|cfg| cfg.patch_size = 0), "patch_size");
    assert_eq!(swin(|cfg| cfg.patch_size = 1 << 12), "patch_size");
    assert_eq!(swin(|cfg| cfg.in_channels = 0), "in_channels");
    assert_eq!(swin(|cfg| cfg.num_classes = usize::MAX), "num_classes");
    assert_eq!(swin(|cfg| cfg.embed_dim = 0), "embed_dim");
    assert_eq!(swin(|cfg| cfg.window_size = 0), "window_size");
    assert_eq!(swin(|cfg| cfg.window_size = usize::MAX / 2), "window_size");
    assert_eq!(swin(|cfg| cfg.mlp_ratio = usize::MAX), "mlp_ratio");
    assert_eq!(swin(|cfg| cfg.depths[1] = 0), "depths");
    assert_eq!(swin(|cfg| (cfg.depths, cfg.num_heads) = (vec![], vec![])), "depths");
    assert_eq!(
        swin(|cfg| (cfg.depths, cfg.num_heads) = (vec![1; 70], vec![1; 70])),
        "depths"
    );
    assert_eq!(swin(|cfg| cfg.num_heads = vec![2]), "num_heads");
    assert_eq!(swin(|cfg| cfg.num_heads[1] = 0), "num_heads");
    assert_eq!(swin(|cfg| cfg.image_size = (0, 64)), "image_size");
    assert_eq!(swin(|cfg| cfg.image_size = (usize::MAX - 1, 64)), "image_size");
    assert_eq!(swin(|cfg| cfg.dropout = -0.1), "dropout");
    assert_eq!(swin(|cfg| cfg.drop_path = f64::NAN), "drop_path");
    assert_eq!(swin(|cfg| cfg.norm_eps = f64::INFINITY), "norm_eps");
}

#[test]
fn sizes_that_do_not_fit_say_which_would() {
    let build = |cfg: Config| {
        let weights = Weights::seeded(Seed::new(0));
        SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU))
    };
    let with = |image_size| Config {
        image_size,
        ..Config::tiny(10)
    };
    for (size, multiple) in [
        ((200, 224), "28"),
        ((226, 224), "4"),
        ((224, 252), "multiples of 8 pixels"),
        ((56, 84), "multiples of 224 fit every stage"),
    ] {
        let text = message(build(with(size)));
        assert!(
            text.contains(&format!("{} x {}", size.0, size.1)) && text.contains(multiple),
            "{text}"
        );
    }
    let text = message(build(Config {
        num_heads: vec![3, 6],
        ..small_swin()
    }));
    assert!(text.contains("num_heads is 3") && text.contains("8"), "{text}");

    let weights = Weights::seeded(Seed::new(0));
    let swin = SwinTransformer::new(&small_swin(), weights.var_builder(DType::F32, &CPU)).unwrap();
    let xs = Tensor::zeros((1, 3, 32, 64), DType::F32, &CPU).unwrap();
    let mut pass = Pass::train(Seed::new(0).at(0));
    let mut refusal = |block| message(MaskToken::new(random(0.5), block).unwrap().sub(&swin, &xs, &mut pass));
    assert!(refusal(24).contains("24 pixels"));
    assert_eq!(
        refusal(1),
        "block is 1 pixels, 32 x 64 of them over a grid of 16 x 32 positions, but must be a multiple of 2 pixels"
    );
    let text = message(swin.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &CPU).unwrap(), false));
    assert!(
        text.contains("[1, 3, 32, 32]") && text.contains("[B, 3, 32, 64]"),
        "{text}"
    );
}
