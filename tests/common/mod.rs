//! What the integration tests share: seeded data, small models, and how far two tensors are apart.

#![allow(dead_code)] // Every test file is a crate of its own and uses a part of this.

pub mod oracle;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use masksub::models::resnet::{self, BlockKind};
use masksub::models::swin;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Params, Seed, SubModelLoss, Weights};
use rand_distr::{Distribution, StandardNormal};

pub const CPU: Device = Device::Cpu;

/// Standard normal f32, the same for the same name.
pub fn randn(shape: impl Into<Shape>, name: &str) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = StandardNormal
        .sample_iter(Seed::new(0xda7a).rng_for(name))
        .take(shape.elem_count())
        .collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

/// All numbers of a tensor.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// All f32 of a tensor as bits, so that NaN equals NaN and -0 is not 0.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    flat.into_iter().map(f32::to_bits).collect()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// ||a - b||, of whatever dtypes.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    norm(numbers(a).iter().zip(numbers(b)).map(|(a, b)| a - b))
}

/// ||a - b|| / max(||b||, 1e-6).
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    difference(a, b) / norm(numbers(b)).max(1e-6)
}

/// The gradients of the parameters by name.
pub fn by_name(grads: &GradStore, params: &Params) -> BTreeMap<String, Tensor> {
    let grad = |(name, var): (&str, &candle_core::Var)| Some((name.to_string(), grads.get(var)?.clone()));
    params.iter().filter_map(grad).collect()
}

/// The largest [`distance`] between gradients of the same parameters, in relation to the larger ones: a gradient that
/// is zero but for rounding (a key bias has one) does not count by itself.
pub fn gradient_distance(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) -> f64 {
    assert!(!theirs.is_empty());
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let size = |gradient: &Tensor| norm(numbers(gradient));
    let largest = theirs.values().map(size).fold(0.0, f64::max);
    let error = |(name, theirs): (&String, &Tensor)| difference(&ours[name], theirs) / size(theirs).max(1e-3 * largest);
    theirs.iter().map(error).fold(0.0, f64::max)
}

/// A ViT of two blocks and width 24 on 16 x 16-pixel images in 4 x 4-pixel patches, otherwise as `form` says.
pub fn tiny(form: Config) -> Config {
    Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 48,
        // Large enough that the blocks count for something.
        layer_scale: form.layer_scale.map(|_| 0.5),
        head_init_std: 0.2,
        ..form.with_input(16, 4, 3)
    }
}

/// The published forms of the ViT, tiny.
pub fn tiny_forms(classes: usize) -> Vec<(&'static str, Config)> {
    let class_token = |cfg: Config| Config {
        pool: masksub::models::vit::Pool::ClassToken,
        ..cfg
    };
    vec![
        ("deit3", tiny(Config::deit3_tiny(classes))),
        ("mae, mean", tiny(Config::mae_base(classes))),
        ("mae, class token", tiny(class_token(Config::mae_base(classes)))),
        ("hugging face", tiny(Config::hf_base(classes))),
        ("clip", tiny(Config::clip_base(classes))),
        ("ft-clip", tiny(Config::ft_clip_base(classes))),
        ("clip, mean only", tiny(Config::hf_clip_base(classes))),
        ("deit, distilled", tiny(Config::deit_tiny_distilled(classes))),
        ("dinov2, registers", tiny(Config::dinov2_reg4_small(classes))),
        ("siglip", tiny(Config::siglip_base(classes))),
        ("beit", tiny(Config::beitv2_base(classes))),
        ("eva-02", tiny(Config::eva02_tiny(classes))),
        ("eva-02, normed", tiny(Config::eva02_base(classes))),
        ("dinov3", tiny(Config::dinov3_small(classes))),
    ]
}

/// A ViT with weights drawn from a seed, and its parameters.
pub fn vit(cfg: &Config, seed: u64) -> (VisionTransformer, Params) {
    let weights = Weights::seeded(Seed::new(seed));
    let vit = VisionTransformer::new(cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    (vit, Params::from_varmap(weights.varmap()))
}

/// Images [B, 3, 16, 16] for the tiny ViT.
pub fn images(batch: usize, name: &str) -> Tensor {
    randn((batch, 3, 16, 16), name)
}

/// Class indices [B] below `classes`, all of them in turn.
pub fn labels(batch: usize, classes: usize) -> Tensor {
    let labels: Vec<u32> = (0..batch as u32).map(|i| i % classes as u32).collect();
    Tensor::new(labels, &CPU).unwrap()
}

/// Every loss of the sub-branch, [`SubModelLoss::bce`] last.
pub fn sub_losses() -> [SubModelLoss; 4] {
    [
        SubModelLoss::soft_cross_entropy(),
        SubModelLoss::kl(),
        SubModelLoss::symmetric_kl(),
        SubModelLoss::bce(),
    ]
}

/// The chance that a chi-square variable with `freedom` degrees exceeds `statistic`.
pub fn p_value(statistic: f64, freedom: usize) -> f64 {
    use statrs::distribution::{ChiSquared, ContinuousCDF};
    ChiSquared::new(freedom as f64).unwrap().sf(statistic)
}

/// A ResNet of five blocks.
pub fn small_resnet(block: BlockKind) -> resnet::Config {
    resnet::Config {
        block,
        depths: [1, 2, 1, 1],
        channels: [4, 6, 8, 10],
        stem_channels: 4,
        zero_init_last: false,
        ..resnet::Config::resnet18(5)
    }
}

/// A Swin of two stages of two blocks on images of 32 x 64 pixels: 16 x 32 tokens, then 8 x 16, in windows of 4 x 4.
pub fn small_swin() -> swin::Config {
    swin::Config {
        image_size: (32, 64),
        patch_size: 2,
        embed_dim: 8,
        depths: vec![2, 2],
        num_heads: vec![2, 4],
        window_size: 4,
        ..swin::Config::tiny(5)
    }
}

/// Remembers the shapes of the tensors that a model asks for, without drawing them.
struct Shapes(Arc<Mutex<BTreeMap<String, Vec<usize>>>>);

impl SimpleBackend for Shapes {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.0.lock().unwrap().insert(name.to_string(), shape.dims().to_vec());
        Tensor::zeros(shape, dtype, device)
    }
    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} has no shape")
    }
    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// The shapes of a model's tensors by name, running statistics too.
pub fn shapes_of<M>(build: impl FnOnce(VarBuilder) -> candle_core::Result<M>) -> BTreeMap<String, Vec<usize>> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    build(VarBuilder::from_backend(
        Box::new(Shapes(seen.clone())),
        DType::F32,
        CPU,
    ))
    .unwrap();
    let shapes = seen.lock().unwrap().clone();
    shapes
}

/// How many numbers the parameters of a model hold.
pub fn count_params<M>(build: impl FnOnce(VarBuilder) -> candle_core::Result<M>) -> usize {
    let shapes = shapes_of(build).into_iter();
    let trained = shapes.filter(|(name, _)| !name.contains("running_"));
    trained.map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Values for every tensor of a model, so that none is without effect: matrices and kernels that keep the size of what
/// they are applied to, norms that are not the identity, variances above 0.
pub fn random_values<M>(build: impl FnOnce(VarBuilder) -> candle_core::Result<M>) -> BTreeMap<String, Tensor> {
    let value = |(name, shape): (String, Vec<usize>)| {
        let spread = match shape[..] {
            [_] => 0.3,
            _ => (shape[1..].iter().product::<usize>() as f64).powf(-0.5),
        };
        let drawn = (randn(&shape[..], &name) * spread).unwrap();
        let value = match name {
            _ if name.ends_with("running_var") => (drawn.sqr().unwrap() + 0.5).unwrap(),
            _ if shape.len() == 1 && name.ends_with("weight") => (drawn + 1.0).unwrap(),
            _ => drawn,
        };
        (name, value)
    };
    shapes_of(build).into_iter().map(value).collect()
}
