//! The three-line change, on four kinds of model: a convolutional `candle_nn::Sequential`, a token model of your own,
//! candle-transformers' ViT, and its ResNet. The last two do not train as compiled with candle_nn; the errors say what helps:
//! in a source of your own, `use masksub::nn as candle_nn;` (`own_model` shows it), or this crate's model of that name.
//!
//!     cargo run --release --example wrap_any_module

use anyhow::{bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{loss::cross_entropy, AdamW, Conv2dConfig, ModuleT, Optimizer, ParamsAdamW, VarBuilder};
use candle_transformers::models::{resnet, vit as candle_vit};
use masksub::models::vit;
use masksub::{
    DropToken, Error, Grid, Mask, MaskSub, Params, Pass, PatchDrop, RandomMasking, Seed, SubBranch, TokenModel, Weights,
};

const SEED: Seed = Seed::new(0);
const CLASSES: usize = 4;

fn main() -> Result<()> {
    println!("1. A convolutional Sequential, as it is, with image blocks hidden");
    sequential()?;
    println!("2. A token model of your own, with tokens dropped");
    own_token_model()?;
    println!("3. candle-transformers' ViT");
    let weights = vit_as_found()?;
    println!("   The same weights in masksub's ViT");
    vit_of_masksub(&weights)?;
    println!("4. candle-transformers' ResNet");
    resnet_as_found()
}

/// Any module: wrap it, call `backward` in the place of the forward and backward that the loop has.
fn sequential() -> Result<()> {
    let weights = Weights::seeded(SEED);
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    let cfg = Conv2dConfig {
        stride: 2,
        padding: 1,
        ..Default::default()
    };
    let net = candle_nn::seq()
        .add(candle_nn::conv2d(3, 8, 3, cfg, vb.pp("conv1"))?)
        .add(candle_nn::Activation::Relu)
        .add(candle_nn::conv2d(8, 16, 3, cfg, vb.pp("conv2"))?)
        .add(candle_nn::Activation::Relu)
        .add_fn(|xs| xs.flatten_from(1))
        .add(candle_nn::linear(16 * 8 * 8, CLASSES, vb.pp("head"))?);

    let branch = PatchDrop::new(RandomMasking::new(0.5)?, 8)?; // <- what the sub-branch hides
    let params = Params::from_varmap(weights.varmap());
    let model = MaskSub::wrap(net, branch, params); // <- the wrapper
    train(&model)
}

/// Patches, one mixing layer, a mean: what `TokenModel` asks for is where its tokens come from and where they go.
struct Patches {
    embed: candle_nn::Linear,
    positions: Tensor,
    mix: candle_nn::Linear,
    head: candle_nn::Linear,
}

impl Patches {
    const SIDE: usize = 8;

    fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        let normal = candle_nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        Ok(Self {
            embed: candle_nn::linear(3 * Self::SIDE * Self::SIDE, 32, vb.pp("embed"))?,
            positions: vb.get_with_hints((1, 16, 32), "positions", normal)?,
            mix: candle_nn::linear(32, 32, vb.pp("mix"))?,
            head: candle_nn::linear(32, CLASSES, vb.pp("head"))?,
        })
    }
}

impl TokenModel for Patches {
    fn grid(&self, xs: &Tensor) -> candle_core::Result<Grid> {
        let (_, _, height, width) = xs.dims4()?;
        Ok(Grid::new(height / Self::SIDE, width / Self::SIDE))
    }

    fn num_prefix_tokens(&self) -> usize {
        0
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        let (batch, channels, height, width) = xs.dims4()?;
        let (rows, columns) = (height / Self::SIDE, width / Self::SIDE);
        let tokens = xs
            .reshape((batch, channels, rows, Self::SIDE, columns, Self::SIDE))?
            .permute((0, 2, 4, 1, 3, 5))?
            .reshape((batch, rows * columns, ()))?
            .apply(&self.embed)?
            .broadcast_add(&self.positions)?;
        Ok(match keep {
            Some(mask) => mask.gather(&tokens, self.num_prefix_tokens())?,
            None => tokens,
        })
    }

    fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        tokens.apply(&self.mix)?.gelu_erf()?.mean(1)?.apply(&self.head)
    }
}

fn own_token_model() -> Result<()> {
    let weights = Weights::seeded(SEED);
    let model = Patches::new(weights.var_builder(DType::F32, &Device::Cpu))?;
    let params = Params::from_varmap(weights.varmap());
    let branch = DropToken::new(RandomMasking::new(0.5)?);
    train(&MaskSub::new(model, branch, params))
}

fn vit_as_found() -> Result<Weights> {
    let cfg = candle_vit::Config {
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 96,
        hidden_act: candle_nn::Activation::Gelu,
        layer_norm_eps: 1e-12,
        image_size: 32,
        patch_size: 8,
        num_channels: 3,
        qkv_bias: true,
    };
    let weights = Weights::seeded(SEED);
    let vit = candle_vit::Model::new(&cfg, CLASSES, weights.var_builder(DType::F32, &Device::Cpu))?;
    // The model has an inherent `forward` and is no `Module`: a closure makes it one.
    let module = move |xs: &Tensor| vit.forward(xs);
    refused(module, &weights)?;
    Ok(weights)
}

/// Layout and names are the same, so the variables of candle's model are a source of weights for ours.
fn vit_of_masksub(found: &Weights) -> Result<()> {
    let cfg = vit::Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 96,
        ..vit::Config::hf_base(CLASSES).with_input(32, 8, 3)
    };
    let found = Params::from_varmap(found.varmap());
    let weights = Weights::from_tensors(
        found
            .iter()
            .map(|(name, var)| (name.to_string(), var.as_tensor().clone())),
    );
    let vit = vit::VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
    let params = Params::from_varmap(weights.varmap());
    let branch = DropToken::new(RandomMasking::new(0.5)?);
    train(&MaskSub::new(vit, branch, params))
}

fn resnet_as_found() -> Result<()> {
    let weights = Weights::seeded(SEED);
    let net = resnet::resnet18(CLASSES, weights.var_builder(DType::F32, &Device::Cpu))?;
    refused(net, &weights)
}

/// One step of a model that cannot be trained as it is.
fn refused(module: impl ModuleT, weights: &Weights) -> Result<()> {
    let (images, labels) = batch(0)?;
    let model = MaskSub::wrap(
        module,
        PatchDrop::new(RandomMasking::new(0.5)?, 8)?,
        Params::from_varmap(weights.varmap()),
    );
    match model.backward(&images, SEED.at(0), |logits| cross_entropy(logits, &labels)) {
        Err(error @ (Error::MissingGradients { .. } | Error::BackwardUnsupported { .. })) => {
            println!("   as found: {error}");
            Ok(())
        }
        Err(error) => bail!(error),
        Ok(_) => bail!("it trained, which it did not when this example was written"),
    }
}

/// A trainer's loop. `backward` and `step` are all that it takes.
fn train<M, S: SubBranch<M>>(model: &MaskSub<M, S>) -> Result<()> {
    let params = model
        .params()
        .context("each of the models here has told its parameters")?;
    let config = ParamsAdamW {
        lr: 5e-3,
        ..Default::default()
    };
    let mut optimizer = AdamW::new(params.vars(), config)?;
    let mut first = None;
    let mut last = 0.0;
    for t in 0..40 {
        let (images, labels) = batch(t)?;
        let step = model.backward(&images, SEED.at(t), |logits| cross_entropy(logits, &labels))?;
        optimizer.step(&step.grads)?;
        first.get_or_insert(step.main_loss);
        last = step.main_loss;
    }
    let first = first.unwrap_or(last);
    println!(
        "   {} parameters, loss {first:.3} -> {last:.3} in 40 steps",
        params.len()
    );
    if last >= first {
        bail!("the loss did not fall");
    }
    Ok(())
}

/// Images [16, 3, 32, 32] of noise with a bright quarter; which one is the class.
fn batch(step: usize) -> Result<(Tensor, Tensor)> {
    use rand::Rng;
    let mut rng = SEED.at(step).step_rng(masksub::Purpose::custom(0));
    let (mut pixels, mut labels) = (Vec::with_capacity(16 * 3 * 32 * 32), Vec::with_capacity(16));
    for _ in 0..16 {
        let class = rng.random_range(0..CLASSES as u32);
        for at in 0..3 * 32 * 32u32 {
            let (row, column) = (at / 32 % 32, at % 32);
            let bright = (row / 16) * 2 + column / 16 == class;
            pixels.push(rng.random::<f32>() - 0.5 + if bright { 1.0 } else { 0.0 });
        }
        labels.push(class);
    }
    let images = Tensor::from_vec(pixels, (16, 3, 32, 32), &Device::Cpu)?;
    Ok((images, Tensor::from_vec(labels, 16, &Device::Cpu)?))
}
