//! Every published size, narrowed, saved under each project's names and opened again: the same model.

use candle_core::Tensor;
use candle_nn::ModuleT;
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, Pool, Rotary, VisionTransformer};
use masksub::pretrained::{self, Architecture, Layout, Pretrained};
use masksub::{Seed, Weights};

use super::vb;
use crate::common::{bits, distance, randn};

const CLASSES: usize = 9;

/// Weights that are all drawn, norms and biases too, so that no two are alike.
fn trained<M>(make: &impl Fn(candle_nn::VarBuilder) -> candle_core::Result<M>) -> (M, Weights) {
    let weights = Weights::seeded(Seed::new(1));
    let model = make(vb(&weights)).unwrap();
    let mut names: Vec<_> = weights.varmap().data().lock().unwrap().clone().into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    for (index, (name, var)) in names.iter().enumerate() {
        let noise = randn(var.dims(), &format!("{name} {index}"));
        let noise = if name.ends_with("running_var") {
            noise.abs().unwrap()
        } else {
            noise
        };
        var.set(&(var.as_tensor() + (noise * 0.1).unwrap()).unwrap()).unwrap();
    }
    (model, weights)
}

/// Saves a model in each layout that has one, opens it, and compares weights and logits. Gives how many there are.
fn round_trips<M: ModuleT>(
    name: &str,
    cfg: &impl Architecture,
    images: &Tensor,
    make: impl Fn(candle_nn::VarBuilder) -> candle_core::Result<M>,
) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let (model, weights) = trained(&make);
    let logits = model.forward_t(images, false).unwrap();
    let mut layouts = 0;
    for layout in Layout::ALL {
        match pretrained::save(&path, cfg, &weights.state(), layout) {
            Err(masksub::Error::InvalidArgument { argument: "layout", .. }) => continue,
            saved => saved.unwrap(),
        }
        let opened = Pretrained::open(&path).unwrap().weights(Seed::new(2));
        let again = make(vb(&opened)).unwrap();
        opened.check_exact(|name| name == "mask_token").unwrap();
        let (before, after) = (weights.state(), opened.state());
        assert!(before.keys().eq(after.keys()), "{name}, {layout}");
        for (weight, tensor) in before.iter().filter(|(weight, _)| *weight != "mask_token") {
            assert_eq!(bits(&after[weight]), bits(tensor), "{name}, {layout}: {weight}");
        }
        let error = distance(&again.forward_t(images, false).unwrap(), &logits);
        assert!(error < 1e-6, "{name}, {layout}: {error}");
        layouts += 1;
    }
    layouts
}

fn images(side: usize) -> Tensor {
    randn((2, 3, side, side), "images")
}

fn narrow_vit(form: vit::Config) -> vit::Config {
    vit::Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 48,
        rotary: match form.rotary {
            Some(Rotary::Eva { .. }) => Some(Rotary::Eva { grid: 4 }),
            other => other,
        },
        ..form.with_input(32, 8, 3)
    }
}

// With 3 x 5 patches and a position of the class token, a file has as many as a square of 4 x 4.
#[test]
fn every_vit_is_the_same_on_a_square_and_on_another_grid() {
    for (height, width) in [(32, 32), (24, 40)] {
        let images = randn((2, 3, height, width), "images");
        for (name, size) in vit::Config::SIZES {
            let cfg = vit::Config {
                image_size: (height, width),
                ..narrow_vit(size(CLASSES))
            };
            let layouts = round_trips(name, &cfg, &images, |vb| VisionTransformer::new(&cfg, vb));
            assert!(layouts > 0, "{name}");
        }
    }
}

#[test]
fn every_swin_convnext_and_resnet_is_the_same() {
    for (name, size) in swin::Config::SIZES {
        let cfg = swin::Config {
            image_size: (64, 64),
            embed_dim: 16,
            depths: vec![2, 2],
            num_heads: vec![2, 4],
            window_size: 4,
            ..size(CLASSES)
        };
        let layouts = round_trips(name, &cfg, &images(64), |vb| SwinTransformer::new(&cfg, vb));
        assert_eq!(layouts, 2, "{name}");
    }
    for (name, size) in convnext::Config::SIZES {
        let cfg = convnext::Config {
            depths: [1; 4],
            dims: [8, 16, 24, 32],
            ..size(CLASSES)
        };
        let layouts = round_trips(name, &cfg, &images(32), |vb| ConvNeXt::new(&cfg, vb));
        assert_eq!(layouts, 2, "{name}");
    }
    for (name, size) in resnet::Config::SIZES {
        let cfg = resnet::Config {
            depths: [1; 4],
            channels: [8, 16, 24, 32],
            stem_channels: 16,
            ..size(CLASSES)
        };
        let layouts = round_trips(name, &cfg, &images(32), |vb| ResNet::new(&cfg, vb));
        assert_eq!(layouts, 2, "{name}");
    }
}

// FT-CLIP's norm stands where the class token's stood: what is saved says whose it is, and what is published does not.
#[test]
fn a_norm_before_a_mean_is_not_that_of_a_class_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let cfg = narrow_vit(vit::Config::ft_clip_base(CLASSES));
    let (_, weights) = trained(&|vb| VisionTransformer::new(&cfg, vb));
    pretrained::save(&path, &cfg, &weights.state(), Layout::Timm).unwrap();
    let state = |cfg: &vit::Config| {
        let weights = Pretrained::open(&path).unwrap().weights(Seed::new(2));
        super::vit(cfg, &weights);
        weights.check_exact(|_| false).unwrap();
        weights
    };
    let name = |state: &masksub::Weights, end: &str| {
        let state = state.state();
        let (name, tensor) = state.iter().find(|(name, _)| name.ends_with(end)).unwrap();
        (name.clone(), bits(tensor))
    };
    let own = name(&weights, "fc_norm.weight");
    assert_eq!(name(&state(&cfg), "fc_norm.weight"), own);
    // The same under the other name.
    let final_norm = vit::Config {
        pool: Pool::FinalNormThenMean,
        ..cfg.clone()
    };
    assert_eq!(name(&state(&final_norm), "post_layernorm.weight").1, own.1);
    // Refilled, it still is.
    let refilled = directory.path().join("refilled.safetensors");
    let without_place = Pretrained::open(&path)
        .unwrap()
        .save(&refilled, &weights.state())
        .unwrap();
    assert!(without_place.is_empty(), "{without_place:?}");
    std::fs::rename(&refilled, &path).unwrap();
    assert_eq!(name(&state(&cfg), "fc_norm.weight"), own);
    // Of a class token, it begins anew.
    let class_token = vit::Config {
        pool: Pool::ClassToken,
        ..cfg.clone()
    };
    let (_, weights) = trained(&|vb| VisionTransformer::new(&class_token, vb));
    pretrained::save(&path, &class_token, &weights.state(), Layout::Timm).unwrap();
    let begun = name(&state(&cfg), "fc_norm.weight").1;
    assert!(begun.iter().all(|value| *value == begun[0]));
}
