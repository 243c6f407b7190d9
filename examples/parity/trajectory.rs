//! Files of kind `trajectory`: a few steps of training, and how far they moved each weight.

use anyhow::{anyhow, Result};
use candle_core::DType;
use candle_nn::{Optimizer, SGD};
use masksub::models::vit::VisionTransformer;
use masksub::{Criterion, MaskSub, Params, Seed};

use crate::model::vit_branch;
use crate::recorded::Recorded;
use crate::report::{scalar, to_host, Group, Report};

/// Trains from the recorded weights on the recorded batches.
pub fn compare(file: &Recorded, report: &mut Report) -> Result<()> {
    let (cfg, device) = (file.vit_config()?, file.get("loss_main")?.device().clone());
    let weights = file.weights();
    let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &device))?;
    let params = Params::from_varmap(weights.varmap());
    let mut optimizer = SGD::new(params.vars(), file.number("lr")?)?;
    let (recorded_main, recorded_sub) = (to_host(file.get("loss_main")?)?, to_host(file.get("loss_sub")?)?);
    for step in 0..file.count("steps")? {
        let at = |name: &str| file.get(&format!("step{step}/{name}"));
        let branch = vit_branch(&cfg, at("noise")?, file.number("ratio")?)?;
        let model = MaskSub::new(&vit, branch, &params);
        let targets = at("target_soft")?;
        let result = model.backward(at("input")?, Seed::new(0).at(step), |logits| {
            Criterion::cross_entropy().forward(logits, targets)
        })?;
        optimizer.step(&result.grads)?;
        let sub_loss = result.sub_loss.ok_or_else(|| anyhow!("no sub loss"))?;
        let (main, sub) = (scalar(recorded_main[step])?, scalar(recorded_sub[step])?);
        report.compare(
            Group::Main,
            format!("step{step}/loss_main"),
            &scalar(result.main_loss)?,
            &main,
        )?;
        report.compare(Group::Sub, format!("step{step}/loss_sub"), &scalar(sub_loss)?, &sub)?;
        let (ours, theirs) = (result.main_loss + sub_loss, ((main + sub)? * 0.5)?);
        report.compare(Group::Loss, format!("step{step}/loss"), &scalar(ours / 2.0)?, &theirs)?;
    }
    // How far each weight went: what all gradients together did.
    for (name, var) in params.iter() {
        let (start, last) = (file.get(&format!("w/{name}"))?, file.get(&format!("final/{name}"))?);
        report.compare(
            Group::Grad,
            format!("final/{name}"),
            &(var.as_tensor() - start)?,
            &(last - start)?,
        )?;
    }
    Ok(())
}
