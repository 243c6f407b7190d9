//! Layers of candle-nn, and a model of candle-transformers, on our source of weights.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::Weights;

use super::{builder, seeded, Stored};
use crate::common::{bits, distance, images, numbers, randn, tiny, CPU};

#[test]
fn work_on_a_seed() {
    let (weights, vb) = seeded(0);
    // Both look for old names first, by `contains_tensor`.
    let norm = candle_nn::layer_norm(4, 1e-5, vb.pp("ln")).unwrap();
    candle_nn::rms_norm(4, 1e-5, vb.pp("rms")).unwrap();
    let batch_norm = candle_nn::batch_norm(4, 1e-5, vb.pp("bn")).unwrap();
    candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv")).unwrap();
    candle_nn::embedding(5, 4, vb.pp("embedding")).unwrap();
    assert_eq!(
        weights.drawn(),
        [
            "bn.bias",
            "bn.running_mean",
            "bn.running_var",
            "bn.weight",
            "conv.bias",
            "conv.weight",
            "embedding.weight",
            "ln.bias",
            "ln.weight",
            "rms.weight"
        ]
    );
    assert_eq!(numbers(norm.weight()), [1.0; 4]);
    assert_eq!(numbers(norm.bias().unwrap()), [0.0; 4]);
    // The statistics that it updates are those of the map, so they are saved with it.
    batch_norm.forward_t(&randn((2, 4, 3, 3), "xs"), true).unwrap();
    let data = weights.varmap().data().lock().unwrap();
    assert_eq!(bits(&data["bn.running_mean"]), bits(batch_norm.running_mean()));
    assert!(numbers(&data["bn.running_mean"]).iter().all(|&mean| mean != 0.0));
}

#[test]
fn find_old_names_in_a_file() {
    let stored = Stored::new(&[("ln.gamma", randn(4, "gamma")), ("ln.beta", randn(4, "beta"))]);
    let (weights, vb) = stored.load();
    assert!(vb.contains_tensor("ln.gamma") && !vb.contains_tensor("ln.weight"));
    let norm = candle_nn::layer_norm(4, 1e-5, vb.pp("ln")).unwrap();
    assert_eq!(bits(norm.weight()), bits(&randn(4, "gamma")));
    assert_eq!(bits(norm.bias().unwrap()), bits(&randn(4, "beta")));
    assert!(weights.left_over().is_empty());
}

/// One file of Hugging Face's names, read by candle-transformers and by us.
#[test]
fn hugging_face_weights_give_the_logits_of_candle_transformers() {
    use candle_transformers::models::vit as candle_vit;
    let cfg = tiny(Config::hf_base(5));
    let theirs = candle_vit::Config {
        hidden_size: cfg.embed_dim,
        num_hidden_layers: cfg.depth,
        num_attention_heads: cfg.num_heads,
        intermediate_size: cfg.mlp_dim,
        image_size: 16,
        patch_size: 4,
        ..candle_vit::Config::vit_base_patch16_224()
    };
    // Every weight random, biases and norms too, so that none is without effect.
    let shapes = {
        let varmap = VarMap::new();
        candle_vit::Model::new(&theirs, 5, VarBuilder::from_varmap(&varmap, DType::F32, &CPU)).unwrap();
        let data = varmap.data().lock().unwrap();
        data.iter()
            .map(|(name, var)| (name.clone(), var.shape().clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let tensors: HashMap<String, Tensor> = shapes
        .iter()
        .map(|(name, shape)| (name.clone(), (randn(shape.clone(), name) * 0.3).unwrap()))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &CPU).unwrap();
    let theirs = candle_vit::Model::new(&theirs, 5, vb).unwrap();
    let (weights, vb) = builder(Weights::from_safetensors(&path).unwrap());
    let ours = VisionTransformer::new(&cfg, vb).unwrap();
    assert!(weights.left_over().is_empty());
    assert_eq!(weights.varmap().all_vars().len(), shapes.len());
    for batch in [1, 3] {
        let xs = images(batch, "hugging face");
        let (theirs, ours) = (theirs.forward(&xs).unwrap(), ours.forward_t(&xs, false).unwrap());
        assert!(numbers(&theirs).iter().any(|logit| logit.abs() > 0.1));
        assert!(
            distance(&ours, &theirs) < 1e-5,
            "batch {batch}: {:.1e}",
            distance(&ours, &theirs)
        );
    }
}
