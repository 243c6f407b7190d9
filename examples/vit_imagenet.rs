//! Trains a ViT, ResNet or Swin with MaskSub: on the handwritten digits that ship with the example, or on a tree of images.
//!
//!     cargo run --release --example vit_imagenet
//!     cargo run --release --example vit_imagenet -- --data imagenet --model deit3-small --batch-size 128
//!
//! `--help` explains the flags. This page is the part that a trainer writes; flags, data and output are in `support`.

mod support;

use anyhow::Result;
use candle_core::DType;
use candle_nn::{AdamW, ModuleT, Optimizer, ParamsAdamW};
use clap::Parser;
use masksub::models::{resnet::ResNet, swin::SwinTransformer, vit::VisionTransformer};
use masksub::{
    Criterion, DropSub, DropToken, Forward, MaskSub, MaskToken, Params, PatchDrop, PathSub, RandomMasking, Seed,
    SubBranch, SubModelLoss, Weights,
};
use std::process::ExitCode;
use support::data::{Batch, Dataset};
use support::evaluate::evaluate;
use support::flags::{Branch, Flags, SubLoss};
use support::mask_only::MaskOnly;
use support::network::Network;
use support::record::Recorder;
use support::run_dir::RunDir;
use support::schedule::CosineSchedule;

fn main() -> ExitCode {
    support::threads::leave_cores_to_rayon();
    support::exit::code(train(&Flags::parse()))
}

fn train(flags: &Flags) -> Result<()> {
    let data = flags.dataset()?;

    // `Weights` makes variables that can be trained, from (seed, name) or from a file.
    let seed = Seed::new(flags.seed);
    let weights = match &flags.init_from {
        None => Weights::seeded(seed),
        Some(file) => Weights::from_safetensors_or_seed(file, seed)?,
    };
    let vb = weights.var_builder(DType::F32, &flags.device);

    // Each family of models has its own way of hiding things.
    let masking = RandomMasking::new(flags.mask_ratio)?;
    let network = flags.network(data.num_classes())?;
    let block = flags.mask_block.unwrap_or(network.mask_block());
    match network {
        Network::Vit(cfg) => fit(
            flags,
            &*data,
            &weights,
            VisionTransformer::new(&cfg, vb)?,
            DropToken::new(masking),
        ),
        Network::ResNet(cfg, _) => fit(
            flags,
            &*data,
            &weights,
            ResNet::new(&cfg, vb)?,
            PatchDrop::new(masking, block)?,
        ),
        Network::Swin(cfg) => fit(
            flags,
            &*data,
            &weights,
            SwinTransformer::new(&cfg, vb)?,
            MaskToken::new(masking, block)?,
        ),
    }
}

/// The training loop, whatever the model.
fn fit<M, S>(flags: &Flags, data: &dyn Dataset, weights: &Weights, model: M, masked: S) -> Result<()>
where
    M: Forward + 'static,
    S: SubBranch<M> + 'static,
{
    weights.check_exact(|name| name == "mask_token")?;
    let seed = Seed::new(flags.seed);

    // MaskSub around it. With `params` each step checks that every parameter has a gradient.
    let params = match flags.branch {
        Branch::Masksub | Branch::MaskOnly => Params::from_varmap(weights.varmap()),
        // Swin's mask token stands in for what a mask hides, so these do not use it.
        _ => Params::from_varmap(weights.varmap()).allow_missing("mask_token"),
    };
    let model = MaskSub::new(model, branch(flags, masked)?)
        .with_sub_loss(sub_loss(flags)?)
        .with_weight(flags.sub_weight())?
        .with_params(params.clone());

    // Everything else is what it would be without MaskSub.
    let criterion = Criterion::cross_entropy();
    let total_steps = flags.epochs * data.epoch_len().div_ceil(flags.batch_size);
    let schedule = CosineSchedule {
        peak: flags.lr,
        warmup_steps: flags.warmup_steps,
        total_steps,
    };
    let adamw = ParamsAdamW {
        weight_decay: flags.weight_decay,
        ..Default::default()
    };
    let mut opt = AdamW::new(params.vars(), adamw)?;

    let size = format!("{} parameters, {} images", params.num_elements(), data.train_len());
    let title = format!("{} with {}: {size}", flags.model(), flags.branch);
    let out = RunDir::create(flags.out.as_deref())?;
    let mut record = Recorder::start(out, title, total_steps, &params)?;
    let mut t = 0;
    for epoch in 0..flags.epochs {
        for batch in record.timed(data.train_batches(flags.seed, epoch, flags.batch_size)) {
            let Batch { images, labels } = batch?;
            let step = model.backward(&images, seed.at(t), |logits| criterion.forward(logits, &labels))?;

            let lr = schedule.at(t);
            opt.set_learning_rate(lr);
            opt.step(&step.grads)?;
            record.step(lr, &step, &labels)?;
            t += 1;
        }
        // Outside training `model` is the bare network.
        let scores = evaluate(data.test_batches(flags.batch_size), |images| {
            Ok(model.forward_t(images, false)?)
        })?;
        record.epoch(scores)?;
    }
    if data.skipped() > 0 {
        eprintln!("images skipped because they cannot be read: {}", data.skipped());
    }
    println!("{}", record.finish(flags.branch, weights.varmap())?);
    Ok(())
}

/// How the sub-branch runs. A box, since the flag decides; with one branch in mind its type can stand in `MaskSub`.
fn branch<M, S>(flags: &Flags, masked: S) -> Result<Box<dyn SubBranch<M>>>
where
    M: Forward + 'static,
    S: SubBranch<M> + 'static,
{
    Ok(match flags.branch {
        Branch::Masksub => Box::new(masked),
        Branch::None => Box::new(masked), // its weight is 0: it never runs
        Branch::MaskOnly => Box::new(MaskOnly(masked)),
        Branch::Dropsub => Box::new(DropSub::new(flags.sub_drop_rate)?),
        Branch::Pathsub => Box::new(PathSub::new(flags.sub_drop_rate)?),
    })
}

/// What the sub-branch is asked to agree on with the main branch.
fn sub_loss(flags: &Flags) -> Result<SubModelLoss> {
    let loss = match flags.sub_loss {
        SubLoss::SoftCe => SubModelLoss::soft_cross_entropy(),
        SubLoss::Kl => SubModelLoss::kl(),
        SubLoss::Bce => SubModelLoss::bce(),
    };
    Ok(loss.with_temperature(flags.temperature)?)
}
