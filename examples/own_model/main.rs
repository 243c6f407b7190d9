//! Your own model, written for candle_nn: what MaskSub says of it as found, the one line that makes it train, and what
//! it takes to drop its tokens.
//!
//!     cargo run --release --example own_model
//!
//! `vit.rs` is such a model. It is compiled twice here, to show both; in a project, the line goes to the top of the file.
//! It then trains on the digits that ship with the examples, beside this crate's own ViT of the same size.

mod digits;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{loss::cross_entropy, ModuleT, VarBuilder};
use digits::Digits;
use masksub::models::vit;
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::train::schedule::{Cosine, Schedule};
use masksub::{
    DropToken, Error, Grid, Mask, MaskSub, Params, Pass, PatchDrop, RandomMasking, Seed, SubBranch, TokenModel, Weights,
};

mod as_found {
    include!("vit.rs");
}

mod with_one_line {
    use masksub::nn as candle_nn; // <- the line
    include!("vit.rs");
}

/// Tokens of the model that are dropped: where they come from, and where they go.
impl TokenModel for with_one_line::VisionTransformer {
    fn grid(&self, xs: &Tensor) -> candle_core::Result<Grid> {
        let (_, _, height, width) = xs.dims4()?;
        Ok(Grid::new(height / PATCH, width / PATCH))
    }

    fn num_prefix_tokens(&self) -> usize {
        0 // the class token joins later
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        let patches = self.patches(xs)?;
        Ok(match keep {
            Some(mask) => mask.gather(&patches, 0)?,
            None => patches,
        })
    }

    fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        self.logits(tokens)
    }
}

const SEED: Seed = Seed::new(0);
const PATCH: usize = 2;
const EPOCHS: usize = 12;
const BATCH: usize = 64;
/// How much worse than the crate's own ViT may be put down to chance, in per cent: 15 of 597 images.
const CHANCE: f64 = 2.5;

macro_rules! config {
    ($module:ident) => {
        $module::Config {
            image_size: digits::SIDE,
            patch_size: PATCH,
            channels: 1,
            width: 64,
            depth: 6,
            num_heads: 4,
            mlp_dim: 256,
            num_classes: 10,
        }
    };
}

fn main() -> Result<()> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        std::env::set_var("CANDLE_NUM_THREADS", "1"); // as README recommends
    }
    let digits = Digits::load()?;

    println!("1. As found, with candle_nn");
    let weights = Weights::seeded(SEED);
    let net = as_found::VisionTransformer::new(&config!(as_found), builder(&weights))?;
    refused(
        MaskSub::wrap(net, patch_drop()?, Params::from_varmap(weights.varmap())),
        &digits,
    )?;

    println!("2. With `use masksub::nn as candle_nn;`, and blocks of the images hidden");
    let weights = Weights::seeded(SEED);
    let net = with_one_line::VisionTransformer::new(&config!(with_one_line), builder(&weights))?;
    let blocks_hidden = train(
        &MaskSub::wrap(net, patch_drop()?, Params::from_varmap(weights.varmap())),
        &digits,
    )?;

    println!("3. With the line, and tokens dropped");
    let weights = Weights::seeded(SEED);
    let net = with_one_line::VisionTransformer::new(&config!(with_one_line), builder(&weights))?;
    let drop_token = || RandomMasking::new(0.5).map(DropToken::new);
    let tokens_dropped = train(
        &MaskSub::new(net, drop_token()?, Params::from_varmap(weights.varmap())),
        &digits,
    )?;

    println!("4. This crate's own ViT of that size, tokens dropped");
    let weights = Weights::seeded(SEED);
    let cfg = vit::Config {
        embed_dim: 64,
        depth: 6,
        num_heads: 4,
        mlp_dim: 256,
        layer_scale: None, // as the other has none
        ..vit::Config::deit3_tiny(10)
    };
    let net = vit::VisionTransformer::new(&cfg.with_input(digits::SIDE, PATCH, 1), builder(&weights))?;
    let ours = train(
        &MaskSub::new(net, drop_token()?, Params::from_varmap(weights.varmap())),
        &digits,
    )?;
    for yours in [blocks_hidden, tokens_dropped] {
        ensure!(
            yours > ours - CHANCE,
            "{yours:.1} % is more than {CHANCE} below {ours:.1} %"
        );
    }
    Ok(())
}

fn builder(weights: &Weights) -> VarBuilder<'static> {
    weights.var_builder(DType::F32, &Device::Cpu)
}

fn patch_drop() -> masksub::Result<PatchDrop<RandomMasking>> {
    PatchDrop::new(RandomMasking::new(0.5)?, PATCH)
}

/// One step of a model that does not train as it is.
fn refused<M, S: SubBranch<M>>(model: MaskSub<M, S>, digits: &Digits) -> Result<()> {
    let (images, labels) = digits.batch(&digits.order(0)[..4])?;
    match model.backward(&images, SEED.at(0), |logits| cross_entropy(logits, &labels)) {
        Err(error @ Error::MissingGradients { .. }) => {
            println!("   {error}");
            Ok(())
        }
        Err(error) => bail!(error),
        Ok(_) => bail!("it trained, which it did not when this example was written"),
    }
}

/// A trainer's loop; the accuracy at its end, in per cent.
fn train<M, S: SubBranch<M>>(model: &MaskSub<M, S>, digits: &Digits) -> Result<f64> {
    let params = model
        .params()
        .context("each of the models here has told its parameters")?;
    let config = AdamWConfig {
        weight_decay: 0.05,
        ..Default::default()
    };
    let mut optimizer = AdamW::new(params, config)?;
    let batches = digits::TRAIN / BATCH;
    let schedule = Cosine::new(2e-3, EPOCHS * batches)?.with_warmup(100, 0.0)?;
    for epoch in 0..EPOCHS {
        let order = digits.order(epoch);
        for (i, batch) in order.chunks_exact(BATCH).enumerate() {
            let (images, labels) = digits.batch(batch)?;
            let t = epoch * batches + i;
            let step = model.backward(&images, SEED.at(t), |logits| cross_entropy(logits, &labels))?;
            optimizer.set_learning_rate(schedule.at(t));
            optimizer.step(&step.grads)?;
        }
    }
    let (images, labels) = digits.test()?;
    let predicted = model.forward_t(&images, false)?.argmax(1)?;
    let right = predicted
        .eq(&labels)?
        .to_dtype(DType::F32)?
        .mean_all()?
        .to_scalar::<f32>()?;
    let accuracy = 100.0 * f64::from(right);
    println!(
        "   {} parameters, {accuracy:.1} % of the test images after {EPOCHS} epochs",
        params.len()
    );
    Ok(accuracy)
}
