//! Files of kind `model`: both branches of a model, their losses and gradients, and what its batch norms have seen.

use std::collections::BTreeMap;

use anyhow::{anyhow, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::resnet::{self, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{self, VisionTransformer};
use masksub::{
    num_keep, Criterion, DropToken, Grid, Mask, MaskGenerator, MaskSub, MaskToken, Params, PatchDrop, Seed, StepKey,
    SubBranch, SubModelLoss, Weights,
};

use crate::recorded::Recorded;
use crate::report::{scalar, Group, Report};

/// A generator that always gives the recorded mask.
#[derive(Clone)]
pub struct Fixed(Mask);

impl MaskGenerator for Fixed {
    fn generate(&self, _: usize, _: Grid, _: StepKey) -> candle_core::Result<Mask> {
        Ok(self.0.clone())
    }
}

/// What the authors' code drew from `noise`.
fn drawn(grid: Grid, noise: &Tensor, ratio: f64) -> Result<Fixed> {
    Ok(Fixed(Mask::from_noise(grid, noise, num_keep(grid.len(), ratio)?)?))
}

/// The sub-branch that hides what was hidden when `noise` was recorded.
pub fn vit_branch(cfg: &vit::Config, noise: &Tensor, ratio: f64) -> Result<DropToken<Fixed>> {
    let side = |pixels: usize| pixels / cfg.patch_size;
    let grid = Grid::new(side(cfg.image_size.0), side(cfg.image_size.1));
    Ok(DropToken::new(drawn(grid, noise, ratio)?))
}

/// Compares logits, losses, gradients and running statistics.
pub fn compare(file: &Recorded, report: &mut Report) -> Result<()> {
    let (weights, device) = (file.weights(), file.get("input")?.device());
    let vb = weights.var_builder(DType::F32, device);
    match file.text("model")? {
        "resnet" => {
            let cfg = resnet::Config {
                norm_momentum: file.number("bn_momentum")?,
                ..file.resnet_config()?
            };
            let model = ResNet::new(&cfg, vb)?;
            let block = file.count("mask_patch_size")?;
            let side = file.count("image_size")? / block;
            let visible = file.get("visible_indices")?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
            let mask = Mask::from_keep_indices(Grid::new(side, side), &visible)?;
            compare_model(file, &weights, model, PatchDrop::new(Fixed(mask), block)?, report)
        }
        "swin" => {
            let model = SwinTransformer::new(&file.swin_config()?, vb)?;
            let block = file.count("mask_patch_size")?;
            let side = file.count("image_size")? / block;
            let mask = drawn(Grid::new(side, side), file.get("noise")?, file.number("ratio")?)?;
            compare_model(file, &weights, model, MaskToken::new(mask, block)?, report)
        }
        _ => {
            let cfg = file.vit_config()?;
            let branch = vit_branch(&cfg, file.get("noise")?, file.number("ratio")?)?;
            compare_model(file, &weights, VisionTransformer::new(&cfg, vb)?, branch, report)
        }
    }
}

fn compare_model<M: Clone, S: SubBranch<M> + Clone>(
    file: &Recorded,
    weights: &Weights,
    model: M,
    branch: S,
    report: &mut Report,
) -> Result<()> {
    let left_over = weights.left_over();
    // Swin's attention masks are buffers that follow from the sizes.
    let unknown: Vec<_> = left_over.iter().filter(|name| !name.ends_with(".attn_mask")).collect();
    if !unknown.is_empty() {
        let failure = format!("the model does not know the weights {unknown:?}");
        report.failures.push(failure);
    }
    let params = Params::from_varmap(weights.varmap());
    let (input, key) = (file.get("input")?, Seed::new(0).at(0));
    let model = MaskSub::new(model, branch, &params);

    let evaluated = model.forward_t(input, false)?;
    report.compare(Group::Main, "logits_eval", &evaluated, file.get("logits_eval")?)?;
    let pair = model.forward_pair(input, key)?;
    report.compare(Group::Main, "logits_main", &pair.main, file.get("logits_main")?)?;
    report.compare(Group::Sub, "logits_sub", &pair.sub, file.get("logits_sub")?)?;
    pair.accept()?;
    let statistics = statistics(weights)?;
    for (name, ours) in &statistics {
        let name = format!("after/{name}");
        report.compare(Group::Main, &name, ours, file.get(&name)?)?;
    }
    for (name, _) in file.below("after/").filter(|(name, _)| !statistics.contains_key(*name)) {
        report.failures.push(format!("there is no running statistic {name}"));
    }

    for (kind, criterion, sub_loss) in [
        ("ce", Criterion::cross_entropy(), SubModelLoss::soft_cross_entropy()),
        (
            "bce",
            Criterion::bce_with_logits().with_target_threshold(0.0)?,
            SubModelLoss::bce(),
        ),
    ] {
        let targets = file.get("target_soft")?;
        let model = model.clone().with_sub_loss(sub_loss);
        let step = model.backward(input, key, |logits| criterion.forward(logits, targets))?;
        let sub_loss = step.sub_loss.ok_or_else(|| anyhow!("no sub loss"))?;
        for (name, value) in [("loss_main", step.main_loss), ("loss_sub", sub_loss)] {
            let name = format!("{kind}/{name}");
            report.compare(Group::Loss, &name, &scalar(value)?, &file.number_at(&name)?)?;
        }
        compare_grads(file, &format!("{kind}/grad/"), &step.grads, &params, report)?;
    }
    Ok(())
}

fn compare_grads(file: &Recorded, prefix: &str, grads: &GradStore, params: &Params, report: &mut Report) -> Result<()> {
    for (name, theirs) in file.below(prefix) {
        match params.get(name).map(|var| grads.get(var)) {
            Some(Some(ours)) => report.compare(Group::Grad, format!("{prefix}{name}"), ours, theirs)?,
            Some(None) => report.failures.push(format!("{name} has no gradient")),
            None => report.failures.push(format!("there is no parameter {name}")),
        }
    }
    let recorded = |name: &str| file.tensors.contains_key(&format!("{prefix}{name}"));
    for (name, _) in params.iter().filter(|(name, _)| !recorded(name)) {
        report
            .failures
            .push(format!("no gradient of {name} is recorded below {prefix}"));
    }
    Ok(())
}

/// The running statistics of a model, by name.
fn statistics(weights: &Weights) -> Result<BTreeMap<String, Tensor>> {
    let data = weights
        .varmap()
        .data()
        .lock()
        .map_err(|_| anyhow!("a thread panicked"))?;
    let running = data.iter().filter(|(name, _)| name.contains("running_"));
    Ok(running
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect())
}
