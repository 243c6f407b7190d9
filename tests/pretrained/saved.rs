//! Files that the crate writes: the names and shapes are their peers' own, and so are the values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{Config, Pool, QkvBias, Rotary, VisionTransformer, WeightNames};
use masksub::pretrained::{self, Architecture, Layout, Pretrained};
use masksub::{Error, Seed, Weights};

use super::{checkpoint, model_file, small, timm_vit, vb, weights, Tensors};
use crate::common::{bits, numbers, CPU};

/// The ViT of `tests/fixtures/models`.
fn narrow(form: fn(usize) -> Config) -> Config {
    let form = form(9);
    Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 24 * form.mlp_dim / form.embed_dim,
        rotary: match form.rotary {
            Some(Rotary::Eva { .. }) => Some(Rotary::Eva { grid: 4 }),
            other => other,
        },
        ..form.with_input(32, 8, 3)
    }
}

fn pooled(cfg: Config, pool: Pool) -> Config {
    Config { pool, ..cfg }
}

/// ViTs that timm and transformers have, and the files that these wrote.
fn vits() -> Vec<(PathBuf, Config, Layout)> {
    let timm = |name: &str, cfg| (model_file(&format!("timm_{name}.safetensors")), cfg, Layout::Timm);
    let hugging = |name: &str, cfg| (model_file(&format!("hf_{name}.safetensors")), cfg, Layout::HuggingFace);
    let mut dinov2_registers = narrow(Config::dinov2_small);
    dinov2_registers.num_registers = 4;
    vec![
        timm("vit_antialias", pooled(narrow(Config::mae_base), Pool::ClassToken)),
        timm("reg4", pooled(narrow(Config::dinov2_reg4_small), Pool::ClassToken)),
        timm("siglip", narrow(Config::siglip_base)),
        timm(
            "siglip_gap",
            pooled(narrow(Config::siglip_base), Pool::FinalNormThenMean),
        ),
        timm("deit_distilled", narrow(Config::deit_tiny_distilled)),
        timm("eva02", narrow(Config::eva02_tiny)),
        timm("dinov3", pooled(narrow(Config::dinov3_small), Pool::FinalNormThenMean)),
        timm("beit", narrow(Config::beitv2_base)),
        timm("beitv2", narrow(Config::beitv2_base)),
        (checkpoint("timm_vit"), timm_vit(9), Layout::Timm),
        (checkpoint("timm_deit3"), small(Config::deit3_base(9)), Layout::Timm),
        (checkpoint("timm_clip"), small(Config::clip_base(9)), Layout::Timm),
        hugging("deit", pooled(narrow(Config::deit_tiny_distilled), Pool::ClassToken)),
        hugging("deit_teacher", narrow(Config::deit_tiny_distilled)),
        hugging("siglip", pooled(narrow(Config::siglip_base), Pool::FinalNormThenMean)),
        hugging("dinov2", narrow(Config::dinov2_small)),
        hugging("dinov2_reg", dinov2_registers),
        (checkpoint("hf_vit"), small(Config::hf_base(9)), Layout::HuggingFace),
    ]
}

fn file(path: &PathBuf) -> Tensors {
    candle_core::safetensors::load(path, &CPU)
        .unwrap()
        .into_iter()
        .collect()
}

/// The state of a model that was made from a file.
fn state<M>(path: &PathBuf, make: impl Fn(VarBuilder) -> candle_core::Result<M>) -> Tensors {
    let weights = Pretrained::open(path).unwrap().weights(Seed::new(0));
    make(vb(&weights)).unwrap();
    weights.check_exact(|_| false).unwrap();
    weights.state()
}

/// Names, shapes and values, less those of names that `of` leaves out.
fn told(tensors: &Tensors, of: impl Fn(&str) -> bool) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let tensors = tensors.iter().filter(|(name, _)| of(name));
    let told = |(name, tensor): (&String, &Tensor)| (name.clone(), (tensor.dims().to_vec(), numbers(tensor)));
    tensors.map(told).collect()
}

/// What the crate's models lack of a file: SigLIP's own pooling, beside the mean.
fn is_saved(name: &str) -> bool {
    !name.starts_with("vision_model.head.")
}

fn check(path: &PathBuf, cfg: &impl Architecture, layout: Layout, state: &Tensors) {
    let mut expected = told(&file(path), is_saved);
    for (_, values) in expected
        .iter_mut()
        .filter(|(name, _)| name.ends_with("embeddings.mask_token"))
    {
        // The model has none, which is as if it were 0.
        values.1.fill(0.0);
    }
    let saved = pretrained::state_dict(cfg, state, layout).unwrap();
    assert_eq!(told(&saved, |_| true), expected, "{}", path.display());
}

#[test]
fn a_vit_has_its_writers_names_whatever_its_own_are() {
    for (path, cfg, layout) in vits() {
        for weight_names in [WeightNames::Timm, WeightNames::HuggingFace, WeightNames::Clip] {
            let cfg = Config {
                weight_names,
                ..cfg.clone()
            };
            check(
                &path,
                &cfg,
                layout,
                &state(&path, |vb| VisionTransformer::new(&cfg, vb)),
            );
        }
    }
}

fn narrow_swin() -> swin::Config {
    swin::Config {
        image_size: (64, 64),
        embed_dim: 16,
        depths: vec![2, 2],
        num_heads: vec![2, 4],
        window_size: 4,
        ..swin::Config::tiny(9)
    }
}

fn narrow_resnet() -> resnet::Config {
    resnet::Config {
        block: BlockKind::Bottleneck,
        depths: [1; 4],
        channels: [8, 16, 24, 32],
        stem_channels: 16,
        ..resnet::Config::resnet50(9)
    }
}

fn narrow_convnext(form: convnext::Config) -> convnext::Config {
    convnext::Config {
        depths: [1; 4],
        dims: [8, 16, 24, 32],
        ..form
    }
}

#[test]
fn a_swin_has_its_writers_names_whatever_its_own_are() {
    for (path, layout) in [
        (checkpoint("timm_swin"), Layout::Timm),
        (model_file("hf_swin.safetensors"), Layout::HuggingFace),
    ] {
        for weight_names in [swin::WeightNames::Timm, swin::WeightNames::Microsoft] {
            let cfg = swin::Config {
                weight_names,
                ..narrow_swin()
            };
            check(&path, &cfg, layout, &state(&path, |vb| SwinTransformer::new(&cfg, vb)));
        }
    }
}

#[test]
fn a_convnext_and_a_resnet_have_their_writers_names() {
    for (name, form, layout) in [
        ("timm_convnext", convnext::Config::tiny(9), Layout::Timm),
        ("timm_convnextv2", convnext::Config::v2_tiny(9), Layout::Timm),
        ("hf_convnext", convnext::Config::tiny(9), Layout::HuggingFace),
    ] {
        let (path, cfg) = (model_file(&format!("{name}.safetensors")), narrow_convnext(form));
        check(&path, &cfg, layout, &state(&path, |vb| ConvNeXt::new(&cfg, vb)));
    }
    let (path, cfg) = (model_file("hf_resnet.safetensors"), narrow_resnet());
    check(
        &path,
        &cfg,
        Layout::HuggingFace,
        &state(&path, |vb| ResNet::new(&cfg, vb)),
    );
}

// transformers has no such file here: what it writes is read as what was written.
#[test]
fn what_is_saved_is_read_again_under_either_projects_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let resnet = narrow_resnet();
    let second = narrow_convnext(convnext::Config::v2_tiny(9));
    for layout in Layout::ALL {
        let weights = Weights::seeded(Seed::new(1));
        ResNet::new(&resnet, vb(&weights)).unwrap();
        pretrained::save(&path, &resnet, &weights.state(), layout).unwrap();
        let read = state(&path, |vb| ResNet::new(&resnet, vb));
        assert_eq!(told(&read, |_| true), told(&weights.state(), |_| true), "{layout}");

        let weights = Weights::seeded(Seed::new(1));
        ConvNeXt::new(&second, vb(&weights)).unwrap();
        pretrained::save(&path, &second, &weights.state(), layout).unwrap();
        let read = state(&path, |vb| ConvNeXt::new(&second, vb));
        assert_eq!(told(&read, |_| true), told(&weights.state(), |_| true), "{layout}");
    }
}

#[test]
fn what_a_peer_has_and_the_model_has_not_is_nothing() {
    // DeiT-III's class token has no position.
    let cfg = Config {
        layer_scale: None,
        qkv_bias: QkvBias::QueryAndValue,
        ..small(Config::deit3_base(9))
    };
    let weights = Weights::seeded(Seed::new(1));
    super::vit(&cfg, &weights);
    let saved = pretrained::state_dict(&cfg, &weights.state(), Layout::HuggingFace).unwrap();
    let positions = &saved["vit.embeddings.position_embeddings"];
    assert_eq!(positions.dims(), [1, 17, 48]);
    assert!(numbers(&positions.narrow(1, 0, 1).unwrap())
        .iter()
        .all(|value| *value == 0.0));
    let own = &weights.state()["pos_embed"];
    assert_eq!(bits(&positions.narrow(1, 1, 16).unwrap()), bits(own));
    let keys = &saved["vit.encoder.layer.1.attention.attention.key.bias"];
    assert!(numbers(keys).iter().all(|value| *value == 0.0));
}

#[test]
fn a_model_that_a_project_has_not_is_refused_by_what_it_lacks() {
    let weights = Weights::seeded(Seed::new(1));
    let told = |cfg: &Config, layout| {
        let error = pretrained::state_dict(cfg, &weights.state(), layout).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidArgument { argument: "layout", .. }),
            "{error}"
        );
        error.to_string()
    };
    let message = told(&narrow(Config::dinov2_small), Layout::Timm);
    assert!(message.contains("beside the mean of the patches"), "{message}");
    for (form, told_as) in [
        (Config::deit3_base as fn(usize) -> Config, "LayerScale"),
        (Config::mae_base, "Mean"),
        (Config::clip_base, "CLIP"),
        (Config::eva02_tiny, "EVA-02"),
        (Config::dinov3_small, "DINOv3"),
        (Config::beitv2_base, "BEiT"),
        (Config::siglip_base, "Attention"),
    ] {
        let message = told(&narrow(form), Layout::HuggingFace);
        assert!(message.contains(told_as), "{message}");
    }
}

/// A state that is refused, for what it has or lacks.
fn refused(result: masksub::Result<impl Sized>, told: &str) {
    let error = result.map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument { argument: "state", .. }),
        "{error}"
    );
    assert!(error.to_string().contains(told), "{error}");
}

fn vit_state(cfg: &Config) -> Tensors {
    let weights = Weights::seeded(Seed::new(1));
    super::vit(cfg, &weights);
    weights.state()
}

#[test]
fn a_state_with_more_or_less_than_the_model_is_refused() {
    let cfg = timm_vit(9);
    let whole = vit_state(&cfg);
    for layout in Layout::ALL {
        let check = |state: &Tensors, told| refused(pretrained::state_dict(&cfg, state, layout), told);
        check(&Tensors::new(), "one without");
        let deeper = Config {
            depth: 3,
            ..cfg.clone()
        };
        check(&vit_state(&deeper), "one with blocks.2.");
        for lost in ["blocks.1.norm2.bias", "norm.weight", "pos_embed"] {
            let mut state = whole.clone();
            state.remove(lost);
            check(&state, lost);
        }
        check(&vit_state(&timm_vit(8)), "head.bias of [8], not [9]");
        let gapped = Config {
            pool: Pool::Mean,
            ..cfg.clone()
        };
        check(&vit_state(&gapped), "one without norm.");
    }
    let swin = narrow_swin();
    let weights = Weights::seeded(Seed::new(1));
    SwinTransformer::new(&swin, vb(&weights)).unwrap();
    let mut state = weights.state();
    state.remove("layers.0.blocks.0.mlp.fc1.bias");
    refused(
        pretrained::state_dict(&swin, &state, Layout::Timm),
        "layers.0.blocks.0.mlp.fc1.bias",
    );
}

#[test]
fn a_checkpoint_is_not_refilled_by_halves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let cfg = timm_vit(9);
    let deeper = Config {
        depth: 3,
        ..cfg.clone()
    };
    pretrained::save(&path, &deeper, &vit_state(&deeper), Layout::Timm).unwrap();
    let open = || Pretrained::open(&path).unwrap();
    refused(open().refilled(&vit_state(&cfg)), "one without blocks.2.");
    let wider = Config {
        mlp_dim: 96,
        ..deeper.clone()
    };
    refused(open().refilled(&vit_state(&wider)), "mlp.fc1.bias is [96], not [192]");
    let scaled = Config {
        layer_scale: Some(0.1),
        ..deeper.clone()
    };
    refused(open().refilled(&vit_state(&scaled)), "gamma_1");
    // Of a Swin, which has a norm and a head of these names as well.
    let swin = swin::Config {
        embed_dim: 24,
        num_heads: vec![3, 6],
        ..narrow_swin()
    };
    let weights = Weights::seeded(Seed::new(1));
    SwinTransformer::new(&swin, vb(&weights)).unwrap();
    refused(open().refilled(&weights.state()), "state");
    // What images and classes tell may differ.
    let larger = Config {
        num_classes: 5,
        ..deeper.clone()
    }
    .with_input(48, 8, 3);
    let refilled = open().refilled(&vit_state(&larger)).unwrap();
    assert!(refilled.without_place.is_empty());
    assert_eq!(refilled.tensors["head.bias"].dims(), [5]);
    assert_eq!(refilled.tensors["pos_embed"].dims(), [1, 37, 48]);
}

#[test]
fn a_state_of_another_model_is_refused() {
    let weights = Weights::seeded(Seed::new(1));
    ResNet::new(&narrow_resnet(), vb(&weights)).unwrap();
    for layout in Layout::ALL {
        let error = pretrained::state_dict(&timm_vit(9), &weights.state(), layout).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidArgument { argument: "state", .. }),
            "{error}"
        );
    }
    let opened = Pretrained::open(checkpoint("timm_vit")).unwrap();
    let error = opened.refilled(&weights.state()).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument { argument: "state", .. }),
        "{error}"
    );
}

// Each of the recorded files, from models under either project's names: nothing of it is lost or called otherwise.
#[test]
fn a_checkpoint_refilled_with_its_own_weights_is_itself() {
    let clip = pooled(narrow(Config::clip_base), Pool::ClassToken);
    let mut all: Vec<_> = vits().into_iter().map(|(path, cfg, _)| (path, cfg)).collect();
    let dinov3 = Config {
        qkv_bias: QkvBias::QueryAndValue,
        ..narrow(Config::dinov3_small)
    };
    all.extend([
        (checkpoint("open_clip"), small(Config::clip_base(9))),
        (checkpoint("hf_clip"), small(Config::clip_base(9))),
        (model_file("hf_clip_vision.safetensors"), clip.clone()),
        (
            model_file("hf_clip_classification.safetensors"),
            pooled(clip, Pool::MeanOnly),
        ),
        (model_file("hf_vitmae.safetensors"), narrow(Config::mae_base)),
        (model_file("hf_dinov3.safetensors"), dinov3),
    ]);
    for (path, cfg) in all {
        for weight_names in [WeightNames::Timm, WeightNames::HuggingFace] {
            let cfg = Config {
                weight_names,
                ..cfg.clone()
            };
            let state = state(&path, |vb| VisionTransformer::new(&cfg, vb));
            let refilled = Pretrained::open(&path).unwrap().refilled(&state).unwrap();
            assert_eq!(
                told(&refilled.tensors, |_| true),
                told(&file(&path), |_| true),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn a_tower_goes_back_beside_what_it_was_published_with() {
    let cfg = Config {
        num_classes: 5,
        weight_names: WeightNames::Timm,
        ..small(Config::clip_base(5))
    };
    let weights = weights("open_clip");
    super::vit(&cfg, &weights);
    for var in weights.varmap().all_vars() {
        var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fine_tuned.safetensors");
    let opened = Pretrained::open(checkpoint("open_clip")).unwrap();
    let without_place = opened.save(&path, &weights.state()).unwrap();
    assert_eq!(without_place, ["head.bias", "head.weight"]);
    let (before, after) = (file(&checkpoint("open_clip")), file(&path));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &before {
        let is_of_tower = name.starts_with("visual.") && name != "visual.proj";
        let factor = if is_of_tower { 2.0 } else { 1.0 };
        assert_eq!(bits(&after[name]), bits(&(tensor * factor).unwrap()), "{name}");
    }
}
