//! Formats, told from the file alone.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use masksub::models::resnet::ResNet;
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{Config, VisionTransformer, WeightNames};
use masksub::models::{resnet, swin};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Error, Seed};

use super::{checkpoint, saved, tensors, timm_vit, vb, vit, weights, Tensors};
use crate::common::randn;

#[test]
fn are_told_from_the_file_alone() {
    for (name, format, text) in [
        ("timm_vit", Format::TimmVit, "timm-vit"),
        ("timm_deit3", Format::TimmDeit3, "timm-deit3"),
        ("timm_clip", Format::TimmClip, "timm-clip"),
        ("timm_swin", Format::TimmSwin, "timm-swin"),
        ("facebook_deit3", Format::FacebookDeit3, "facebook-deit3"),
        ("mae_pretrained", Format::MaePretrained, "mae-pretrained"),
        ("mae_finetuned", Format::MaeFinetuned, "mae-finetuned"),
        ("hf_vit", Format::HfVit, "hf-vit"),
        ("hf_clip", Format::HfClip, "hf-clip"),
        ("open_clip", Format::OpenClip, "open-clip"),
        ("openai_clip", Format::OpenClip, "open-clip"),
        ("microsoft_swin", Format::MicrosoftSwin, "microsoft-swin"),
        ("resnet", Format::ResNet, "resnet"),
    ] {
        let pretrained = Pretrained::open(checkpoint(name)).unwrap();
        assert_eq!(pretrained.format(), format, "{name}");
        assert_eq!(format.to_string(), text);
    }
}

#[test]
fn of_towers_that_are_saved_alone_are_told_too() {
    let directory = tempfile::tempdir().unwrap();
    let bare = |name: &str, prefix: &str| -> Tensors {
        let bare = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor));
        tensors(name).into_iter().filter_map(bare).collect()
    };
    // `ViTModel`, and what is left of CLIP.
    let path = saved(directory.path(), &bare("hf_vit", "vit."));
    let pretrained = Pretrained::open(&path).unwrap();
    assert_eq!(pretrained.format(), Format::HfVit);
    let weights = pretrained.weights(Seed::new(0));
    vit(&timm_vit(9), &weights);
    weights.check_exact(|name| name.starts_with("head.")).unwrap();
    assert_eq!(weights.drawn(), ["head.bias", "head.weight"]);

    let tower = tensors("hf_clip")
        .into_iter()
        .filter(|(name, _)| name.starts_with("vision_model."));
    let path = saved(directory.path(), &tower.collect());
    assert_eq!(Pretrained::open(&path).unwrap().format(), Format::HfClip);
}

// DINOv2 in timm: LayerScale like DeiT-III's, and a position for the class token like everyone's.
#[test]
fn of_deit3_are_told_by_their_positions() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tensors("timm_deit3");
    tensors.insert("pos_embed".into(), randn((1, 17, 48), "positions"));
    let pretrained = Pretrained::open(saved(directory.path(), &tensors)).unwrap();
    assert_eq!(pretrained.format(), Format::TimmVit);
    let weights = pretrained.weights(Seed::new(0));
    let cfg = Config {
        layer_scale: Some(1e-4),
        ..timm_vit(9)
    };
    vit(&cfg, &weights);
    weights.check_exact(|_| false).unwrap();
}

#[test]
fn that_are_not_known_are_refused_with_the_names() {
    let directory = tempfile::tempdir().unwrap();
    let names = [
        // A ResNet with a deep stem.
        vec!["conv1.0.weight", "bn1.running_mean", "layer1.0.conv1.weight"],
        vec!["weight"],
    ];
    for names in names {
        let tensors = names.iter().map(|name| (name.to_string(), randn((2, 2), name)));
        let path = saved(directory.path(), &tensors.collect());
        let error = Pretrained::open(&path).unwrap_err();
        assert!(matches!(&error, Error::UnknownFormat { .. }), "{error}");
        for part in [path.to_str().unwrap(), names[0], "timm-vit, timm-deit3", "resnet"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}

// Some have all that a ViT has, beside what tells them.
#[test]
fn of_models_that_the_crate_has_not_are_refused_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    for (more, told) in [
        ("blocks.1.proj.weight", "a Hiera"),
        ("patch_embed.backbone.conv.weight", "a hybrid ViT"),
        ("blocks_token_only.0.norm1.weight", "a CaiT"),
        ("blocks.0.attn.rel_pos_h", "SAM"),
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight", "a Swin V2"),
    ] {
        for (beside, prefix) in [(true, ""), (true, "backbone."), (false, "module.")] {
            let mut all = if beside { tensors("timm_vit") } else { Tensors::new() };
            all.insert(more.to_string(), randn((2, 2), more));
            let all = all
                .into_iter()
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
            let path = saved(directory.path(), &all.collect());
            let error = Pretrained::open(&path).unwrap_err();
            assert!(
                matches!(&error, Error::OtherModel { model, .. } if model.contains(told)),
                "{error}"
            );
            let path = path.display().to_string();
            assert!(error.to_string().starts_with(&format!("{path} holds ")), "{error}");
        }
    }
}

#[test]
fn of_another_architecture_are_refused() {
    let resnet_cfg = resnet::Config {
        depths: [1, 1, 2, 1],
        channels: [8, 16, 24, 32],
        ..resnet::Config::resnet18(9)
    };
    let swin_cfg = swin::Config {
        image_size: (64, 64),
        embed_dim: 16,
        depths: vec![2, 2],
        num_heads: vec![2, 4],
        window_size: 4,
        ..swin::Config::tiny(9)
    };
    // As wide as the Swin, so that no shape gives it away.
    let vit_cfg = |weight_names| Config {
        weight_names,
        patch_size: 4,
        embed_dim: 16,
        num_heads: 2,
        ..timm_vit(9)
    };
    let build = |family: &str, vb: VarBuilder| match family {
        "ViT" => VisionTransformer::new(&vit_cfg(WeightNames::Timm), vb).map(drop),
        "ViT of Hugging Face" => VisionTransformer::new(&vit_cfg(WeightNames::HuggingFace), vb).map(drop),
        "Swin" => SwinTransformer::new(&swin_cfg, vb).map(drop),
        _ => ResNet::new(&resnet_cfg, vb).map(drop),
    };
    for (file, theirs, ours) in [
        ("resnet", "ResNet", "ViT"),
        ("resnet", "ResNet", "ViT of Hugging Face"),
        ("resnet", "ResNet", "Swin"),
        ("timm_swin", "Swin", "ViT"),
        ("timm_swin", "Swin", "ViT of Hugging Face"),
        ("microsoft_swin", "Swin", "ResNet"),
        ("hf_vit", "ViT", "ResNet"),
        ("hf_clip", "ViT", "ResNet"),
    ] {
        let error = Error::from(build(ours, vb(&weights(file))).unwrap_err());
        let Error::OtherArchitecture {
            path, family, other, ..
        } = &error
        else {
            panic!("{ours} of {file}: {error}")
        };
        assert_eq!(
            (*family, *other),
            (
                theirs,
                &ours[..ours.len().min(3).max(ours.find(' ').unwrap_or(ours.len()))]
            )
        );
        assert!(
            path.contains(file) && error.to_string().contains(path.as_str()),
            "{error}"
        );
    }
    // Between a ViT and a Swin of another width, the first shape tells.
    let error = Error::from(build("Swin", vb(&weights("timm_vit"))).unwrap_err());
    assert!(
        matches!(&error, Error::MisshapenWeight { path, .. } if path == "patch_embed.proj.weight"),
        "{error}"
    );
}
