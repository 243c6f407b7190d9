//! Targets of the sub-branch: whom `--target` has it learn from.

use crate::flags::{Flags, Target};
use crate::heads::BothHeads;
use crate::network::Network;
use anyhow::{ensure, Context, Result};
use candle_core::{DType, Tensor};
use masksub::models::vit::VisionTransformer;
use masksub::train::ema::Ema;
use masksub::{MainBranch, MaskSub, Mutual, Plain, Seed, SubModelLoss, SubTarget, Teacher, Weights};

/// A model whose target the flag decides: a box, in the place of a type.
pub type Targeted<M, S> = MaskSub<M, S, Tensor, SubModelLoss, Box<dyn SubTarget>>;

/// Share of each branch's loss that is its distance from the other, CoSub's (arXiv 2212.04884).
const MUTUAL_SHARE: f64 = 0.5;

pub fn target(flags: &Flags, network: &Network, ema: Option<&Ema>) -> Result<Box<dyn SubTarget>> {
    let predicting = |weights: &Weights| -> Result<Box<dyn SubTarget>> {
        if let Network::Vit(cfg) = network {
            if BothHeads::are_of(cfg) {
                // Each head has a target of its own.
                let vb = weights.no_grad_builder(DType::F32, &flags.device);
                return Ok(Box::new(Teacher(BothHeads::new(VisionTransformer::new(cfg, vb)?)?)));
            }
        }
        let network = crate::for_evaluation(network, weights, &flags.device)?;
        Ok(Box::new(Teacher(Plain(move |images: &Tensor| {
            network.forward_t(images, false)
        }))))
    };
    ensure!(
        flags.teacher.is_none() || flags.target == Target::Teacher,
        "--teacher is for --target teacher"
    );
    Ok(match flags.target {
        Target::Main => Box::new(MainBranch),
        Target::Mutual => Box::new(Mutual::new(MUTUAL_SHARE)?),
        Target::Ema => predicting(&ema.context("--target ema needs an average: --ema DECAY")?.weights())?,
        Target::Teacher => {
            let file = flags
                .teacher
                .as_ref()
                .context("--target teacher needs --teacher FILE")?;
            let weights = crate::open(file, None)?.weights(Seed::new(flags.seed));
            let teacher = predicting(&weights)?;
            weights.check_exact(|name| name == "mask_token")?;
            teacher
        }
    })
}
