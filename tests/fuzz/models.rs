//! Models of configurations, and steps of branches, that nobody would give.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use candle_nn::{ModuleT, VarBuilder};
use masksub::models::convnext::{Config as ConvNeXtConfig, ConvNeXt};
use masksub::models::resnet::{BlockKind, Config as ResNetConfig, ResNet};
use masksub::models::swin::{Config as SwinConfig, SwinTransformer};
use masksub::models::vit::{Config as VitConfig, Gate, Pool, QkvBias, Rotary, VisionTransformer};
use masksub::{
    BlockMasking, Criterion, DropSub, DropToken, Forward, MaskSub, MaskToken, Params, PatchDrop, PathSub,
    RandomMasking, Result, Seed, SubBranch, Weights,
};
use masksub::{KeyedRng, StepKey};
use rand::Rng as _;

use crate::common::{numbers, small_resnet, small_swin, tiny};
use crate::draw::{self, count, float, pick, small, tensor};
use crate::settings::key;
use crate::Scratch;

/// A size of a model: small, or refused.
fn size(rng: &mut KeyedRng) -> usize {
    match count(rng) {
        1000 => 33,
        size => size,
    }
}

/// One of the fields is replaced, most often.
fn spoil<T>(rng: &mut KeyedRng, config: &mut T, fields: &[fn(&mut T, &mut KeyedRng)]) {
    for _ in 0..rng.random_range(0..3) {
        pick(rng, fields)(config, rng);
    }
}

fn vit_config(rng: &mut KeyedRng) -> VitConfig {
    let forms = [
        VitConfig::deit3_tiny(5),
        VitConfig::mae_base(5),
        VitConfig::hf_base(5),
        VitConfig::clip_base(5),
        VitConfig::deit_tiny_distilled(5),
        VitConfig::dinov2_reg4_small(5),
        VitConfig::siglip_base(5),
        VitConfig::beitv2_base(5),
        VitConfig::eva02_tiny(5),
        VitConfig::eva02_base(5),
        VitConfig::dinov3_small(5),
    ];
    const POOLS: [Pool; 8] = [
        Pool::ClassToken,
        Pool::ClassAndDistillation,
        Pool::ClassAndMean,
        Pool::Mean,
        Pool::NormThenMean,
        Pool::FinalNormThenMean,
        Pool::Attention,
        Pool::MeanOnly,
    ];
    const ROTARY: [Option<Rotary>; 3] = [None, Some(Rotary::Eva { grid: 3 }), Some(Rotary::DinoV3)];
    let mut config = tiny(pick(rng, &forms));
    let fields: &[fn(&mut VitConfig, &mut KeyedRng)] = &[
        |c, rng| c.image_size = (size(rng), size(rng)),
        |c, rng| c.patch_size = size(rng),
        |c, rng| c.crop_remainder = rng.random(),
        |c, rng| c.in_channels = size(rng),
        |c, rng| c.num_classes = size(rng),
        |c, rng| c.embed_dim = size(rng),
        |c, rng| c.depth = size(rng),
        |c, rng| c.num_heads = size(rng),
        |c, rng| c.mlp_dim = size(rng),
        |c, rng| c.norm_eps = float(rng),
        |c, rng| c.layer_scale = Some(float(rng)),
        |c, rng| c.head_init_std = float(rng),
        |c, rng| c.dropout = float(rng),
        |c, rng| c.drop_path = float(rng),
        |c, rng| c.pool = pick(rng, &POOLS),
        |c, rng| c.class_token = rng.random(),
        |c, rng| c.distillation_token = rng.random(),
        |c, rng| c.num_registers = size(rng),
        |c, rng| c.class_token_position = rng.random(),
        |c, rng| c.absolute_positions = rng.random(),
        |c, rng| c.relative_positions = rng.random(),
        |c, rng| c.rotary = pick(rng, &ROTARY),
        |c, rng| c.rotary = Some(Rotary::Eva { grid: count(rng) }),
        |c, rng| c.gate = pick(rng, &[None, Some(Gate::Packed), Some(Gate::Normed)]),
        |c, rng| c.qkv_bias = pick(rng, &[QkvBias::All, QkvBias::QueryAndValue, QkvBias::Absent]),
    ];
    spoil(rng, &mut config, fields);
    config
}

fn swin_config(rng: &mut KeyedRng) -> SwinConfig {
    let mut config = small_swin();
    let fields: &[fn(&mut SwinConfig, &mut KeyedRng)] = &[
        |c, rng| c.image_size = (size(rng), size(rng)),
        |c, rng| c.patch_size = size(rng),
        |c, rng| c.in_channels = size(rng),
        |c, rng| c.num_classes = size(rng),
        |c, rng| c.embed_dim = size(rng),
        |c, rng| c.depths = (0..rng.random_range(0..4)).map(|_| size(rng)).collect(),
        |c, rng| c.num_heads = (0..rng.random_range(0..4)).map(|_| size(rng)).collect(),
        |c, rng| c.window_size = size(rng),
        |c, rng| c.mlp_ratio = size(rng),
        |c, rng| c.norm_eps = float(rng),
        |c, rng| c.dropout = float(rng),
        |c, rng| c.drop_path = float(rng),
    ];
    spoil(rng, &mut config, fields);
    config
}

fn resnet_config(rng: &mut KeyedRng) -> ResNetConfig {
    let mut config = small_resnet(pick(rng, &[BlockKind::Basic, BlockKind::Bottleneck]));
    let fields: &[fn(&mut ResNetConfig, &mut KeyedRng)] = &[
        |c, rng| c.depths[rng.random_range(0..4)] = size(rng),
        |c, rng| c.channels[rng.random_range(0..4)] = size(rng),
        |c, rng| c.stem_channels = size(rng),
        |c, rng| c.in_channels = size(rng),
        |c, rng| c.num_classes = size(rng),
        |c, rng| c.norm_eps = float(rng),
        |c, rng| c.norm_momentum = float(rng),
        |c, rng| c.drop_path = float(rng),
    ];
    spoil(rng, &mut config, fields);
    config
}

fn convnext_config(rng: &mut KeyedRng) -> ConvNeXtConfig {
    let mut config = ConvNeXtConfig {
        depths: [1; 4],
        dims: [4, 6, 8, 10],
        ..pick(rng, &[ConvNeXtConfig::tiny(5), ConvNeXtConfig::v2_tiny(5)])
    };
    let fields: &[fn(&mut ConvNeXtConfig, &mut KeyedRng)] = &[
        |c, rng| c.depths[rng.random_range(0..4)] = size(rng),
        |c, rng| c.dims[rng.random_range(0..4)] = size(rng),
        |c, rng| c.in_channels = size(rng),
        |c, rng| c.num_classes = size(rng),
        |c, rng| c.norm_eps = float(rng),
        |c, rng| c.layer_scale = Some(float(rng)),
        |c, rng| c.response_norm = rng.random(),
        |c, rng| c.drop_path = float(rng),
    ];
    spoil(rng, &mut config, fields);
    config
}

/// A model whose weights are numbers.
fn build<M>(rng: &mut KeyedRng, new: impl FnOnce(VarBuilder) -> CandleResult<M>) -> Result<(M, Params)> {
    let weights = Weights::seeded(Seed::new(1));
    let dtype = if rng.random_bool(0.9) {
        DType::F32
    } else {
        draw::dtype(rng)
    };
    let model = new(weights.var_builder(dtype, &Device::Cpu))?;
    for (name, tensor) in weights.state() {
        assert!(
            numbers(&tensor).iter().all(|value| value.is_finite()),
            "{name}: {tensor}"
        );
    }
    Ok((model, Params::from_varmap(weights.varmap())))
}

fn step<M, S: SubBranch<M>>(model: M, branch: S, params: Params, xs: &Tensor, key: StepKey) -> Result<()> {
    let classes = Tensor::zeros(xs.dims().first().copied().unwrap_or(0), DType::U32, &Device::Cpu)?;
    let model = MaskSub::new(model, branch, params);
    let step = model.backward(xs, key, |logits| Criterion::cross_entropy().forward(logits, &classes))?;
    assert!(step.main_loss.is_finite() && step.sub_loss.is_some_and(f64::is_finite));
    Ok(())
}

/// A step in a branch that any model takes, or an evaluation.
fn any_branch<M: Forward + ModuleT>(rng: &mut KeyedRng, model: M, params: Params, xs: &Tensor) -> Result<()> {
    let key = key(rng);
    match rng.random_range(0..5) {
        0 => model.forward_t(xs, rng.random()).map(drop).map_err(Into::into),
        1 => step(model, DropSub::new(float(rng))?, params, xs, key),
        2 => step(model, PathSub::new(float(rng))?, params, xs, key),
        3 => {
            let branch = PatchDrop::new(BlockMasking::new(float(rng), small(rng))?, size(rng))?;
            step(model, branch, params, xs, key)
        }
        _ => step(
            model,
            PatchDrop::new(RandomMasking::new(float(rng))?, small(rng))?,
            params,
            xs,
            key,
        ),
    }
}

/// The ViT.
pub fn vit(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let config = vit_config(rng);
    let (model, params) = build(rng, |vb| VisionTransformer::new(&config, vb))?;
    let (h, w) = config.image_size;
    let batch = small(rng);
    let xs = tensor(rng, &[batch, config.in_channels, h, w])?;
    match rng.random() {
        true => step(
            model,
            DropToken::new(RandomMasking::new(float(rng))?),
            params,
            &xs,
            key(rng),
        ),
        false => any_branch(rng, model, params, &xs),
    }
}

/// Swin.
pub fn swin(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let config = swin_config(rng);
    let (model, params) = build(rng, |vb| SwinTransformer::new(&config, vb))?;
    let (h, w) = config.image_size;
    let batch = small(rng);
    let xs = tensor(rng, &[batch, config.in_channels, h, w])?;
    match rng.random() {
        true => {
            let branch = MaskToken::new(RandomMasking::new(float(rng))?, size(rng))?;
            step(model, branch, params, &xs, key(rng))
        }
        false => any_branch(rng, model, params, &xs),
    }
}

/// ResNets and ConvNeXts.
pub fn convolutional(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    if rng.random() {
        return convnext(rng);
    }
    let config = resnet_config(rng);
    let (model, params) = build(rng, |vb| ResNet::new(&config, vb))?;
    let side = pick(rng, &[1, 16, 31, 32, 33]);
    let batch = small(rng);
    let xs = tensor(rng, &[batch, config.in_channels, side, 32])?;
    any_branch(rng, model, params, &xs)
}

fn convnext(rng: &mut KeyedRng) -> Result<()> {
    let config = convnext_config(rng);
    let (model, params) = build(rng, |vb| ConvNeXt::new(&config, vb))?;
    let side = pick(rng, &[1, 31, 32, 33, 64]);
    let batch = small(rng);
    let xs = tensor(rng, &[batch, config.in_channels, side, 32])?;
    any_branch(rng, model, params, &xs)
}
