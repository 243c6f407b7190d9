//! Files of kind `losses`: each loss and its gradient, on ordinary and on extreme logits.

use anyhow::{bail, ensure, Context, Result};
use candle_core::Var;
use masksub::{Criterion, SubModelLoss};

use crate::recorded::Recorded;
use crate::report::{Group, Report};

/// Computes every loss that is recorded.
pub fn compare(file: &Recorded, report: &mut Report) -> Result<()> {
    let mut seen = 0;
    for name in file.tensors.keys().filter_map(|name| name.strip_suffix("/value")) {
        // Which logits, which loss, against what: all in the name.
        let (inputs, loss) = name.split_once('/').context("a loss without a section")?;
        let (inputs, group, prefix) = match inputs {
            "main" => ("main", Group::Main, ""),
            "sub" => ("sub", Group::Sub, ""),
            "extreme" if loss.starts_with("sub_") => ("extreme/sub", Group::Loss, "extreme/"),
            "extreme" => ("extreme/main", Group::Loss, "extreme/"),
            other => bail!("a loss on {other}"),
        };
        let logits = Var::from_tensor(file.get(inputs)?)?;
        let target = |name: &str| file.get(&format!("{prefix}{name}"));
        let value = if inputs.ends_with("main") {
            let (criterion, targets) = match loss {
                "ce_classes" => (Criterion::cross_entropy(), target("target_classes")?),
                "ce_soft" => (Criterion::cross_entropy(), target("target_soft")?),
                "ce_smooth0.1" => (
                    Criterion::cross_entropy().with_label_smoothing(0.1)?,
                    target("target_classes")?,
                ),
                "bce" => (Criterion::bce_with_logits(), target("target_classes")?),
                "bce_soft" => (Criterion::bce_with_logits(), target("target_soft")?),
                "bce_threshold0" => (
                    Criterion::bce_with_logits().with_target_threshold(0.0)?,
                    target("target_soft")?,
                ),
                other => bail!("the loss {other} is not known here"),
            };
            criterion.forward(&logits, targets)?
        } else {
            let (kind, temperature) = match loss.trim_start_matches("sub_").split_once("_T") {
                Some((kind, temperature)) => (kind, temperature.parse::<f64>()?),
                None => (loss.trim_start_matches("sub_"), 1.0),
            };
            let sub_loss = match kind {
                "soft_ce" => SubModelLoss::soft_cross_entropy(),
                "kl" => SubModelLoss::kl(),
                "bce" => SubModelLoss::bce(),
                other => bail!("the loss {other} is not known here"),
            };
            sub_loss
                .with_temperature(temperature)?
                .forward(&logits, target("main")?)?
        };
        report.compare(
            group,
            format!("{name}/value"),
            &value,
            &file.number_at(&format!("{name}/value"))?,
        )?;
        let grads = value.backward()?;
        let ours = grads.get(&logits).with_context(|| format!("{name} has no gradient"))?;
        report.compare(
            Group::Grad,
            format!("{name}/grad"),
            ours,
            file.get(&format!("{name}/grad"))?,
        )?;
        seen += 1;
    }
    ensure!(seen > 0, "it has no losses");
    Ok(())
}
