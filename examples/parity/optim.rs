//! Files of kind `optim`: steps of the optimizers, and clipping, on recorded gradients.

use anyhow::{ensure, Context, Result};
use candle_core::backprop::GradStore;
use candle_core::Var;
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule, SgdConfig};
use masksub::{grad, Params};

use crate::recorded::Recorded;
use crate::report::{Group, Report};

/// The settings stand in the file as prose: they are repeated here.
pub fn compare(file: &Recorded, report: &mut Report) -> Result<()> {
    let adamw = || {
        Box::new(AdamWConfig {
            lr: 1e-2,
            weight_decay: 0.1,
            ..AdamWConfig::default()
        })
    };
    let lamb = Box::new(LambConfig {
        lr: 5e-3,
        weight_decay: 0.05,
        ..LambConfig::default()
    });
    let sgd = Box::new(SgdConfig {
        lr: 1e-2,
        weight_decay: 1e-2,
        ..SgdConfig::default()
    });
    let whole = |_: &str| 1.0;
    let by_layer = |name: &str| match name.split('.').next() {
        Some("block") => 0.5,
        Some("pos_embed") => 0.25,
        _ => 1.0,
    };
    steps(file, report, "adamw", adamw(), whole)?;
    steps(file, report, "adamw_layer_scale", adamw(), by_layer)?;
    steps(file, report, "lamb", lamb, whole)?;
    steps(file, report, "sgd_momentum", sgd, whole)?;
    clip(file, report)
}

fn start(file: &Recorded) -> Result<Params> {
    let vars = file
        .below("p0/")
        .map(|(name, value)| Ok((name.to_string(), Var::from_tensor(&value.copy()?)?)));
    Ok(Params::new(vars.collect::<Result<Vec<_>>>()?))
}

fn gradients(file: &Recorded, step: usize, params: &Params) -> Result<GradStore> {
    let mut grads = GradStore::default();
    for (name, var) in params.iter() {
        grads.insert(var, file.get(&format!("grad{step}/{name}"))?.clone());
    }
    Ok(grads)
}

fn steps(
    file: &Recorded,
    report: &mut Report,
    name: &str,
    rule: Box<dyn Rule>,
    lr_scale: impl Fn(&str) -> f64,
) -> Result<()> {
    let recorded = |step: usize| format!("{name}/step{step}/");
    let num_steps = (0..).take_while(|&step| file.below(&recorded(step)).next().is_some());
    let num_steps = num_steps.count();
    ensure!(num_steps > 0, "no step of {name} is recorded");
    let params = start(file)?;
    let groups = ParamGroups::new(&params)
        .without_decay(|name, _| !name.ends_with(".weight"))
        .with_lr_scale(lr_scale)?;
    let mut opt = GroupOptimizer::new(groups, rule)?;
    for step in 0..num_steps {
        opt.step(&gradients(file, step, &params)?)?;
        for (param, theirs) in file.below(&recorded(step)) {
            let ours = params
                .get(param)
                .with_context(|| format!("there is no parameter {param}"))?;
            report.compare(Group::Main, format!("{name}/step{step}/{param}"), ours, theirs)?;
        }
    }
    Ok(())
}

fn clip(file: &Recorded, report: &mut Report) -> Result<()> {
    let params = start(file)?;
    let mut grads = gradients(file, 2, &params)?;
    let norm = grad::clip_grad_norm(&mut grads, &params, 1.0)?;
    let theirs = file.number_at("clip/norm")?;
    let ours = candle_core::Tensor::new(norm as f32, theirs.device())?;
    report.compare(Group::Main, "clip/norm", &ours, &theirs)?;
    for (name, theirs) in file.below("clip/grad/") {
        let clipped = params.get(name).and_then(|var| grads.get(var));
        let ours = clipped.with_context(|| format!("there is no gradient of {name}"))?;
        report.compare(Group::Grad, format!("clip/grad/{name}"), ours, theirs)?;
    }
    Ok(())
}
