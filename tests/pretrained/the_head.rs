//! Heads for other classes.

use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::vit::Config;
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed, Weights};

use super::{model_file, refusal, saved, small, tensors, timm_vit, var, vb, vit, weights};
use crate::common::{bits, numbers, randn};

#[test]
fn of_other_classes_is_drawn_anew() {
    let (cfg, weights) = (small(Config::mae_base(500)), weights("mae_finetuned"));
    vit(&cfg, &weights);
    weights.check_exact(|_| false).unwrap();
    assert_eq!(
        weights.notes(),
        [
            "format mae-finetuned, 32 tensors, below `model`",
            "head: 9 -> 500 classes, drawn anew",
            "left out: epoch, beside the weights"
        ]
    );
    assert_eq!(weights.drawn(), ["head.bias", "head.weight"]);
    // As the seed alone draws it, and as MAE's fine-tuning wants it: with a deviation of 2e-5.
    let seeded = Weights::seeded(Seed::new(0));
    vit(&cfg, &seeded);
    let head = var(&weights, "head.weight");
    assert_eq!(bits(&head), bits(&var(&seeded, "head.weight")));
    let squares: f64 = numbers(&head).iter().map(|value| value * value).sum();
    let std = (squares / head.elem_count() as f64).sqrt();
    assert!((1.9e-5..2.1e-5).contains(&std), "{std}");
}

// Random logits would pass for the checkpoint's.
#[test]
fn that_a_file_has_lost_needs_leave() {
    let directory = tempfile::tempdir().unwrap();
    for lost in [&["head.weight", "head.bias"][..], &["head.bias"]] {
        let mut tensors = tensors("timm_vit");
        tensors.retain(|name, _| !lost.contains(&name.as_str()));
        let path = saved(directory.path(), &tensors);
        for classes in [9, 4] {
            let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
            vit(&timm_vit(classes), &weights);
            let error = weights.check_exact(|_| false).unwrap_err();
            let Error::WeightsDiffer { missing, left_over, .. } = &error else {
                panic!("{error}")
            };
            assert!(left_over.is_empty() && missing.len() == lost.len(), "{error}");
            let line = format!("missing, so drawn: {}", missing.join(", "));
            assert!(weights.notes().contains(&line), "{:?}", weights.notes());
            weights.check_exact(|name| name.starts_with("head.")).unwrap();
        }
    }
}

#[test]
fn is_replaced_in_every_family() {
    let weights = weights("resnet");
    let cfg = resnet::Config {
        block: BlockKind::Basic,
        depths: [1, 1, 2, 1],
        channels: [8, 16, 24, 32],
        ..resnet::Config::resnet18(4)
    };
    ResNet::new(&cfg, vb(&weights)).unwrap();
    weights.check_exact(|_| false).unwrap();
    assert_eq!(weights.notes()[1], "head: 9 -> 4 classes, drawn anew");
    assert_eq!(weights.drawn(), ["fc.bias", "fc.weight"]);
}

#[test]
fn of_a_distilled_vit_are_two() {
    let narrow = |cfg| Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(cfg)
    };
    let pretrained = Pretrained::open(model_file("timm_deit_distilled.safetensors")).unwrap();
    let weights = pretrained.weights(Seed::new(0));
    vit(&narrow(Config::deit_tiny_distilled(4)), &weights);
    weights.check_exact(|_| false).unwrap();
    assert_eq!(
        weights.drawn(),
        ["head.bias", "head.weight", "head_dist.bias", "head_dist.weight"]
    );
    assert_eq!(weights.notes()[1..], ["head: 9 -> 4 classes, drawn anew"]);
}

// It reads the mean of the patches, and not what the attention pooling finds.
#[test]
fn of_siglips_classifier_is_for_no_other_pooling() {
    let narrow = |cfg| Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(cfg)
    };
    let open = || {
        Pretrained::open(model_file("hf_siglip.safetensors"))
            .unwrap()
            .weights(Seed::new(0))
    };
    let error = refusal(&narrow(Config::siglip_base(9)), &open());
    assert!(
        matches!(&error, Error::InvalidArgument { argument: "pool", allowed, .. } if allowed.contains("FinalNormThenMean")),
        "{error}"
    );
    // With a head of its own, the tower is whole.
    let weights = open();
    vit(&narrow(Config::siglip_base(4)), &weights);
    weights.check_exact(|_| false).unwrap();
}

#[test]
fn of_another_width_is_misshapen() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tensors("timm_vit");
    tensors.insert("head.weight".into(), randn((9, 40), "head"));
    let weights = Pretrained::open(saved(directory.path(), &tensors))
        .unwrap()
        .weights(Seed::new(0));
    let error = refusal(&timm_vit(9), &weights);
    assert!(
        matches!(&error, Error::MisshapenWeight { got, expected, .. } if *got == [9, 40] && *expected == [9, 48]),
        "{error}"
    );
}
