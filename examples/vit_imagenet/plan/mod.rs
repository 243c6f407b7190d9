//! `--plan`: operations, memory and time that a training run needs, before it is begun.
//!
//! Operations are counted. Memory and time are measured, in processes of their own that make a few steps with a few
//! images, and extrapolated to the run's batches: memory by the line through the last two sizes, of which only a part grows
//! with the images; time as so much an image, as the last size has it, and the optimizer's a step.

mod operations;

use crate::data::Batch;
use crate::flags::{Branch, Flags, Target};
use crate::network::Network;
use anyhow::{ensure, Context, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::{Duration, Instant};

/// Seconds and images that a measured step has at least, unless it has all images that are run at a time. What a few images
/// need grows less than in proportion to them.
const LONG_ENOUGH: f64 = 1.0;
const MANY_ENOUGH: usize = 8;
/// A step that takes so many seconds is measured with no more images.
const TOO_LONG: f64 = 5.0;
/// Measured steps, of which the median counts.
const STEPS: usize = 5;
/// What an accelerator is assumed to sustain, in multiply-additions a second: 100 TFLOP/s, of two FLOPs each.
const ACCELERATOR: f64 = 50e12;
const MIB: f64 = (1u64 << 20) as f64;

/// A step with so many images.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Measured {
    images: usize,
    /// Until the gradients are there, and of the optimizer.
    gradients: f64,
    update: f64,
    /// Of the whole process, where the system tells it.
    peak_bytes: Option<u64>,
}

/// Makes steps on `batch`, and prints what they took as JSON: for the process that asked. `step` returns how long the
/// optimizer took.
pub fn measure(batch: &Batch, mut step: impl FnMut(&Tensor, &Tensor) -> Result<Duration>) -> Result<()> {
    let mut times = vec![];
    for i in 0..=STEPS {
        let start = Instant::now();
        let update = step(&batch.images, &batch.labels)?;
        // The first one finds caches empty.
        if i > 0 {
            times.push(((start.elapsed() - update).as_secs_f64(), update.as_secs_f64()));
        }
    }
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (gradients, updates) = times.into_iter().unzip();
    let measured = Measured {
        images: batch.images.dim(0)?,
        gradients: middle(gradients),
        update: middle(updates),
        peak_bytes: peak_bytes(),
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// The most memory that this process has had.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// A step with `images` at a time, in a process of its own.
fn measured(flags: &Flags, images: usize) -> Result<Measured> {
    let n = images.to_string();
    let output = Command::new(std::env::current_exe()?)
        .args(&flags.arguments)
        .args(["--plan-images", &n, "--batch-size", &n])
        .args(["--replicas", "1", "--accumulate", "1"])
        .output()
        .context("cannot start a process to measure a step")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "a step with {images} images cannot be measured: {}",
        said.trim()
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("a measured step printed {last:?}"))
}

/// Of a run over `images` an epoch.
pub fn print(flags: &Flags, network: &Network, images: usize, steps_per_epoch: usize) -> Result<String> {
    let training = &flags.training;
    let at_a_time = training.batch_size.div_ceil(training.parts()).min(images);
    // The last two, where there are two.
    let mut sizes = vec![measured(flags, at_a_time.min(2))?];
    while let [.., last] = sizes[..] {
        let is_enough = last.gradients >= LONG_ENOUGH && last.images >= MANY_ENOUGH || last.gradients >= TOO_LONG;
        if last.images >= at_a_time || sizes.len() > 1 && is_enough {
            break;
        }
        sizes.push(measured(flags, (2 * last.images).min(at_a_time))?);
    }
    let (last, before) = (sizes[sizes.len() - 1], sizes[sizes.len().saturating_sub(2)]);

    let counted = Counted::of(flags, network)?;
    let shown = training.epochs as f64 * images as f64;
    let steps = (training.epochs * steps_per_epoch) as f64;
    let seconds = shown * last.gradients / last.images as f64 + steps * last.update;
    let all = shown * counted.step as f64;
    let mut text = format!(
        "multiply-additions  {:.4e} an image forward, {:.4e} in the sub-branch, {:.4e} in a step, {all:.3e} in {} epochs of {images} \
         images\n",
        counted.main as f64,
        counted.sub as f64,
        counted.step as f64,
        training.epochs,
    );
    let peak = before.peak_bytes.zip(last.peak_bytes);
    text += &match peak.filter(|_| flags.device.is_cpu()) {
        None => "memory              not measured on this system or device\n".to_string(),
        Some(peaks) => {
            let how = if last.images == at_a_time {
                "measured".to_string()
            } else {
                format!("from steps with {} and {}", before.images, last.images)
            };
            let bytes = line_through([before.images, last.images], peaks, at_a_time);
            format!(
                "memory              {:.0} MiB with {at_a_time} images at a time, {how}\n",
                bytes / MIB
            )
        }
    };
    text += &format!(
        "time                {:.1} images a second, {} in all, on this machine, without reading images and evaluation\n",
        shown / seconds,
        hours(seconds)
    );
    text += &format!(
        "accelerator         {} where 100 TFLOP/s are sustained\n",
        hours(all / ACCELERATOR)
    );
    Ok(text)
}

/// The bytes at `images`, of the straight line through two peaks.
fn line_through(sizes: [usize; 2], (less, more): (u64, u64), images: usize) -> f64 {
    let each = (more as f64 - less as f64) / (sizes[1] - sizes[0]).max(1) as f64;
    more as f64 + each * (images as f64 - sizes[1] as f64)
}

fn hours(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.1} seconds"),
        ..7200.0 => format!("{:.1} minutes", seconds / 60.0),
        _ => format!("{:.1} hours", seconds / 3600.0),
    }
}

/// Multiply-additions of an image.
struct Counted {
    main: u64,
    /// 0 where there is no sub-branch.
    sub: u64,
    step: u64,
}

impl Counted {
    /// A backward pass counts as two forward ones.
    fn of(flags: &Flags, network: &Network) -> Result<Self> {
        let whole = operations::forward(network, None);
        let masked = match (flags.branch, network) {
            (Branch::Masksub | Branch::MaskOnly, Network::Vit(cfg)) => {
                // Of a ratio that changes or is drawn, the middle.
                let end = flags
                    .mask_ratio_end
                    .or(flags.mask_ratio_max)
                    .unwrap_or(flags.mask_ratio);
                let kept = masksub::num_keep(operations::positions(cfg), (flags.mask_ratio + end) / 2.0)?;
                operations::forward(network, Some(kept))
            }
            _ => whole,
        };
        let main = if flags.branch == Branch::MaskOnly {
            masked
        } else {
            whole
        };
        let sub = if flags.sub_weight() > 0.0 { masked } else { 0 };
        let target = match flags.target {
            _ if sub == 0 => 0,
            Target::Main => 0,
            Target::Mutual => sub,
            Target::Ema | Target::Teacher => whole,
        };
        Ok(Self {
            main,
            sub,
            step: 3 * (main + sub) + target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(arguments: &str) -> Counted {
        let arguments = arguments.split_whitespace().map(Into::into).collect();
        let flags = Flags::from_arguments(arguments).unwrap();
        Counted::of(&flags, &flags.network(10).unwrap()).unwrap()
    }

    #[test]
    fn a_step_is_what_its_branches_compute() {
        let (plain, half) = (counted("--branch none"), counted(""));
        assert_eq!((plain.sub, plain.step), (0, 3 * plain.main));
        assert_eq!((half.main, half.step), (plain.main, 3 * (half.main + half.sub)));
        let share = half.step as f64 / plain.step as f64;
        assert!((1.5..1.55).contains(&share), "{share}");
        assert_eq!(counted("--branch mask-only").step, 3 * half.sub);
        // Each branch first looks at what the other one predicts.
        assert_eq!(counted("--target mutual").step, half.step + half.sub);
        assert_eq!(counted("--target teacher --teacher t").step, half.step + half.main);
        // Nothing is left out of a ResNet's image, and of a ViT's more at a higher ratio.
        let resnet = counted("--model digits-resnet");
        assert_eq!(resnet.sub, resnet.main);
        assert_eq!(counted("--mask-ratio 0.25 --mask-ratio-max 0.75").step, half.step);
        assert!(counted("--mask-ratio 0.75").step < half.step);
    }

    #[test]
    fn memory_is_on_the_line_through_what_was_measured() {
        assert_eq!(line_through([2, 4], (100, 160), 16), 520.0);
        assert_eq!(line_through([4, 4], (160, 160), 4), 160.0);
    }
}
