//! Weights of candle-transformers' models, and their outputs.

use candle_core::{DType, Tensor};
use candle_nn::{Module, ModuleT, VarBuilder};
use candle_transformers::models::{clip, resnet as candle_resnet};
use masksub::models::resnet::{self, ResNet};
use masksub::models::vit::Config;
use masksub::pretrained::{Format, Pretrained};
use masksub::Seed;

use super::{saved, small, vb, vit};
use crate::common::{distance, randn, random_values, CPU};

#[test]
fn clip_gives_its_features() {
    let cfg = small(Config::clip_base(48));
    let theirs = clip::vision_model::ClipVisionConfig {
        embed_dim: cfg.embed_dim,
        activation: clip::text_model::Activation::QuickGelu,
        intermediate_size: cfg.mlp_dim,
        num_hidden_layers: cfg.depth,
        num_attention_heads: cfg.num_heads,
        projection_dim: 32,
        num_channels: 3,
        image_size: 32,
        patch_size: 8,
    };
    let build = |vb: VarBuilder| clip::vision_model::ClipVisionTransformer::new(vb.pp("vision_model"), &theirs);
    let mut values = random_values(build);
    // It asks for it where it is there.
    values.insert("vision_model.embeddings.class_embedding".into(), randn(48, "class"));
    let theirs = build(VarBuilder::from_tensors(
        values.clone().into_iter().collect(),
        DType::F32,
        &CPU,
    ))
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pretrained = Pretrained::open(saved(directory.path(), &values)).unwrap();
    assert_eq!(pretrained.format(), Format::HfClip);
    let weights = pretrained.weights(Seed::new(0));
    let ours = vit(&cfg, &weights);
    weights.check_exact(|_| false).unwrap();
    // A head that does nothing.
    let data = weights.varmap().data().lock().unwrap();
    data["head.weight"]
        .set(&Tensor::eye(48, DType::F32, &CPU).unwrap())
        .unwrap();
    let xs = randn((2, 3, 32, 32), "images");
    let (ours, theirs) = (ours.forward_t(&xs, false).unwrap(), theirs.forward(&xs).unwrap());
    assert!(distance(&ours, &theirs) < 1e-5, "{:.1e}", distance(&ours, &theirs));
}

#[test]
fn resnet_gives_its_logits() {
    let values = random_values(|vb| candle_resnet::resnet18(5, vb).map(drop));
    let all = VarBuilder::from_tensors(values.clone().into_iter().collect(), DType::F32, &CPU);
    let theirs = candle_resnet::resnet18(5, all).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pretrained = Pretrained::open(saved(directory.path(), &values)).unwrap();
    assert_eq!(pretrained.format(), Format::ResNet);
    let weights = pretrained.weights(Seed::new(0));
    let ours = ResNet::new(&resnet::Config::resnet18(5), vb(&weights)).unwrap();
    weights.check_exact(|_| false).unwrap();
    assert!(weights.drawn().is_empty());
    let xs = randn((1, 3, 64, 64), "images");
    let (ours, theirs) = (ours.forward_t(&xs, false).unwrap(), theirs.forward(&xs).unwrap());
    assert!(distance(&ours, &theirs) < 1e-5, "{:.1e}", distance(&ours, &theirs));
}
