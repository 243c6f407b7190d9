//! CLIP's tower under its three heads: the class token's, FT-CLIP's, and that of Hugging Face's classifier.

use std::path::Path;

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, Pool, WeightNames};
use masksub::pretrained::{Format, Pretrained};
use masksub::{grad, Error, Params, Seed, Weights};

use super::{refusal, small, var, vit, weights};
use crate::common::{distance, numbers, CPU};

/// What Hugging Face's `CLIPForImageClassification` saved, or what was recorded of it.
fn classifier(ending: &str) -> std::path::PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    directory.join(format!("hf_clip_classification{ending}"))
}

fn classifier_weights() -> Weights {
    let pretrained = Pretrained::open(classifier(".safetensors")).unwrap();
    assert_eq!(pretrained.format(), Format::HfClipClassifier);
    pretrained.weights(Seed::new(0))
}

/// As wide as the recorded one.
fn narrow(form: Config) -> Config {
    Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(form)
    }
}

#[test]
fn of_hugging_faces_classifier_gives_its_logits_and_gradients() {
    let recorded = candle_core::safetensors::load(classifier(".expect.safetensors"), &CPU).unwrap();
    let weights = classifier_weights();
    let model = vit(&narrow(Config::hf_clip_base(9)), &weights);
    weights.check_exact(|_| false).unwrap();
    assert_eq!(
        weights.notes(),
        [
            "format hf-clip-classifier, 41 tensors",
            "left out: the norm of the class token, which the head does not read, 2 tensors",
        ]
    );
    let logits = model.forward_t(&recorded["input"], false).unwrap();
    let error = distance(&logits, &recorded["logits_eval"]);
    assert!(error < 1e-5, "{error:e}");

    let classes = recorded["target_classes"].to_dtype(DType::U32).unwrap();
    let loss = cross_entropy(&logits, &classes).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let grads = grad::backward(&loss, &params).unwrap();
    let mut seen = 0;
    for (name, theirs) in recorded
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("grad/")?, t)))
    {
        let ours = match name.strip_prefix("classifier.") {
            Some(leaf) => format!("head.{leaf}"),
            None => format!("clip.{name}"),
        };
        let grad = grads.get(params.get(&ours).unwrap()).unwrap();
        // The true gradient of a key's bias is 0: what was recorded is rounding.
        if !name.ends_with("k_proj.bias") {
            let error = distance(grad, theirs);
            assert!(error < 1e-4, "{name} is off by {error:e}");
        }
        seen += 1;
    }
    assert_eq!(seen, params.len());
}

// Behind the class token's norm it would load without a word, and give other logits.
#[test]
fn of_hugging_faces_classifier_is_for_no_other_pooling() {
    for weight_names in [WeightNames::Clip, WeightNames::Timm] {
        let class_token = Config {
            weight_names,
            ..narrow(Config::clip_base(9))
        };
        let error = refusal(&class_token, &classifier_weights());
        assert!(
            matches!(&error, Error::InvalidArgument { argument: "pool", .. }),
            "{error}"
        );
        assert!(error.to_string().contains("vit::Pool::MeanOnly"), "{error}");
        // With a head of its own, it may read what it likes.
        let other = Config {
            num_classes: 4,
            ..class_token
        };
        let weights = classifier_weights();
        vit(&other, &weights);
        weights.check_exact(|_| false).unwrap();
    }
    // FT-CLIP's norm would be new between the tower and a head that was trained without it.
    let weights = classifier_weights();
    vit(&narrow(Config::ft_clip_base(9)), &weights);
    let error = weights.check_exact(|_| false).unwrap_err();
    assert!(
        matches!(&error, Error::WeightsDiffer { missing, .. } if missing[..] == ["fc_norm.bias", "fc_norm.weight"]),
        "{error}"
    );
}

#[test]
fn begins_as_ft_clip_does() {
    for (name, new, text) in [
        ("hf_clip", "fc_norm.bias, fc_norm.weight, head.bias, head.weight", true),
        (
            "open_clip",
            "fc_norm.bias, fc_norm.weight, head.bias, head.weight",
            true,
        ),
        ("timm_clip", "fc_norm.bias, fc_norm.weight", false),
    ] {
        let weights = weights(name);
        let model = vit(&small(Config::ft_clip_base(500)), &weights);
        weights.check_exact(|_| false).unwrap();
        let notes = weights.notes();
        let has = |line: String| assert!(notes.contains(&line), "{name} {line}: {notes:?}");
        has(format!("not in the file, so drawn: {new}"));
        has("left out: the norm of the class token, which the head does not read, 2 tensors".into());
        assert_eq!(notes.iter().any(|note| note.contains("text tower")), text);

        // A norm that does nothing yet, a head of std .02 times .001, biases within .001 / √768 as for a B.
        assert!(numbers(&var(&weights, "fc_norm.weight")).iter().all(|&w| w == 1.0));
        assert!(numbers(&var(&weights, "fc_norm.bias")).iter().all(|&b| b == 0.0));
        let head = numbers(&var(&weights, "head.weight"));
        let std = (head.iter().map(|w| w * w).sum::<f64>() / head.len() as f64).sqrt();
        assert!((1.95e-5..2.05e-5).contains(&std), "{std}");
        let biases = numbers(&var(&weights, "head.bias"));
        let largest = biases.iter().fold(0.0f64, |largest, b| largest.max(b.abs()));
        let bound = 1e-3 / 768f64.sqrt();
        assert!((0.98 * bound..=bound).contains(&largest), "{largest} {bound}");
        let logits = model.forward_t(&Tensor::ones((1, 3, 32, 32), DType::F32, &CPU).unwrap(), false);
        assert!(numbers(&logits.unwrap()).iter().all(|logit| logit.abs() < 1e-3));
    }
    assert_eq!(Config::ft_clip_base(10).pool, Pool::NormThenMean);
}
