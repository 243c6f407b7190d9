//! All settings of a run that decide its result, as they are printed, kept in its checkpoints and compared.

use crate::data::transform::Transform;
use crate::flags::training::OptimizerKind;
use crate::flags::{Branch, Flags, Target};
use crate::network::Network;
use anyhow::{ensure, Result};
use clap::ValueEnum;
use masksub::models::vit::DropPathSchedule;

/// Names and values, in the order in which they are printed. Those of the flags that a setting comes from, where there is
/// one.
pub type Config = Vec<(&'static str, String)>;

pub fn config(flags: &Flags) -> Result<Config> {
    let network = flags.network(1)?; // only its shape matters here
    let training = &flags.training;
    ensure!(
        training.layer_decay == 1.0 || !matches!(network, Network::ResNet(..) | Network::ConvNeXt(..)),
        "--layer-decay is {}, but must be 1 for a ResNet or ConvNeXt: it is for networks of like blocks",
        training.layer_decay
    );
    // What does not go together is told now, not after the images were listed.
    training.schedule(1)?;
    training.replicas()?;
    training.criterion()?;
    flags.masking(training.batch_size)?;
    let input = flags.input_settings(&network);
    Transform::new(input.clone())?;
    let (warmup_lr, min_lr) = training.end_lrs();
    let mut config: Config = vec![
        ("recipe", typed(&flags.recipe)),
        ("model", flags.model().into()),
        ("image-size", network.input().image_size.to_string()),
    ];
    let mut put = |name, value: String| config.push((name, value));
    match &network {
        Network::Vit(cfg) => put("patch-size", cfg.patch_size.to_string()),
        Network::Swin(cfg) => put("patch-size", cfg.patch_size.to_string()),
        Network::ResNet(..) | Network::ConvNeXt(..) => {}
    }
    put("dtype", typed(&training.dtype));
    put("tf32", training.tf32.to_string());
    put("batch-size", training.batch_size.to_string());
    put("drop-last", training.drop_last.to_string());
    put("replicas", training.replicas.to_string());
    if training.replicas > 1 {
        put("dist-bn", typed(&training.dist_bn));
    }
    put("accumulate", training.accumulate.to_string());
    put("epochs", training.epochs.to_string());
    put(
        "freeze",
        if training.freeze.is_empty() {
            "none".into()
        } else {
            training.freeze.join(" ")
        },
    );
    put("optimizer", typed(&training.optimizer));
    put("lr", rate(training.peak_lr()));
    match training.warmup_epochs {
        Some(epochs) => put("warmup-epochs", epochs.to_string()),
        None => put("warmup-steps", training.warmup_steps.to_string()),
    }
    put("warmup-lr", rate(warmup_lr));
    put("min-lr", rate(min_lr));
    put("cosine", typed(&training.cosine));
    put("lr-delay", training.lr_delay.to_string());
    put("weight-decay", training.weight_decay.to_string());
    put("decay-on", typed(&training.decay_on));
    put("layer-decay", training.layer_decay.to_string());
    if training.optimizer != OptimizerKind::Sgd {
        put("eps", rate(training.eps));
    }
    put(
        "clip-grad",
        match training.optimizer {
            OptimizerKind::Lamb if training.clip_grad == 0.0 => "1, in lamb".into(),
            _ => or_none(training.clip_grad),
        },
    );
    put("loss", typed(&training.loss));
    put("label-smoothing", training.label_smoothing.to_string());
    put("drop-path", drop_path(&network));
    put("mixup", or_none(training.mixup));
    put("cutmix", or_none(training.cutmix));
    put("ema", or_none(training.ema));
    if flags.takes_images() {
        put("augment", input.augment.to_string());
        put("interpolation", typed(&input.interpolation));
        put("crop-pct", input.crop_pct.to_string());
        put("mean", format!("{:?}", input.normalize.mean()));
        put("std", format!("{:?}", input.normalize.std()));
    }
    put("branch", flags.branch.to_string());
    match flags.branch {
        Branch::None => {}
        Branch::Dropsub | Branch::Pathsub => put("sub-drop-rate", flags.sub_drop_rate.to_string()),
        Branch::Masksub | Branch::MaskOnly => {
            put("mask-ratio", flags.mask_ratio.to_string());
            if let Some(end) = flags.mask_ratio_end {
                put("mask-ratio-end", end.to_string());
            }
            if let Some(max) = flags.mask_ratio_max {
                put("mask-ratio-max", max.to_string());
            }
            if !matches!(network, Network::Vit(_)) {
                let block = flags.mask_block.unwrap_or(network.mask_block());
                put("mask-block", block.to_string());
            }
        }
    }
    if flags.sub_weight() > 0.0 {
        if flags.target != Target::Main {
            put("target", typed(&flags.target));
        }
        if let Some(teacher) = &flags.teacher {
            put("teacher", teacher.display().to_string());
        }
        put("sub-loss", typed(&flags.sub_loss));
        put("temperature", flags.temperature.to_string());
        put("sub-weight", flags.sub_weight.to_string());
    }
    put("train-size", flags.train_size.map_or("all".into(), |n| n.to_string()));
    if flags.val_split != "val" {
        put("val-split", flags.val_split.clone());
    }
    if flags.validation > 0 {
        put("validation", flags.validation.to_string());
    }
    put("seed", flags.seed.to_string());
    Ok(config)
}

/// A line for each.
pub fn print(config: &Config) -> String {
    let width = config.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:width$}  {value}\n");
    config.iter().map(line).collect()
}

/// A sentence for each setting in which a run that goes on would differ from what it was.
pub fn contradictions(was: &Config, now: &Config) -> Vec<String> {
    let value = |config: &Config, name: &str| {
        let found = config.iter().find(|setting| setting.0 == name);
        found.map_or("not set".to_string(), |setting| setting.1.clone())
    };
    let mut names: Vec<&str> = was.iter().chain(now).map(|setting| setting.0).collect();
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(*name));
    let differ = names.into_iter().filter(|name| value(was, name) != value(now, name));
    let sentence = |name: &str| format!("{name} is now {}, in the run {}", value(now, name), value(was, name));
    differ.map(sentence).collect()
}

fn typed(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map(|value| value.get_name().to_string()).unwrap_or_default()
}

/// Without what the product of two decimals has in its last place.
fn rate(value: f64) -> String {
    match format!("{value:.14e}").parse::<f64>() {
        Ok(value) if value != 0.0 && value < 1e-2 => format!("{value:e}"),
        Ok(value) => value.to_string(),
        Err(_) => value.to_string(),
    }
}

fn or_none(value: f64) -> String {
    match value {
        0.0 => "none".into(),
        _ => value.to_string(),
    }
}

fn drop_path(network: &Network) -> String {
    let (rate, how) = match network {
        Network::Vit(cfg) => {
            let constant = cfg.drop_path_schedule == DropPathSchedule::Constant;
            (cfg.drop_path, if constant { "constant" } else { "linear" })
        }
        Network::ResNet(cfg, _) => (cfg.drop_path, "linear"),
        Network::ConvNeXt(cfg, _) => (cfg.drop_path, "linear"),
        Network::Swin(cfg) => (cfg.drop_path, "linear"),
    };
    match rate {
        0.0 => "0".into(),
        _ => format!("{rate}, {how}"),
    }
}

#[cfg(test)]
mod tests;
