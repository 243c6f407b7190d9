//! The stand-in beside the crate's own models and plain training: gradients, and the time and memory of a step.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder};
use masksub::models::{resnet, vit};
use masksub::{Forward, MaskSub, Params, Pass, PatchDrop, Purpose, RandomMasking, Seed, Weights};
use rand::Rng;

use crate::{distance, gradients as gradients_of, ids, norm, numbers, Model, Random};

/// How far gradients may be apart.
const TOLERANCE: f64 = 1e-4;

/// Weights of any name, but for those that make a ConvNeXt one of the second version: its source asks which there are.
fn weights() -> Random {
    Random::new(|name| name.contains(".grn."), 1.0)
}

/// Prints how far the gradients of three models are from those of the crate's own on the same weights; true if it is
/// little.
pub fn gradients() -> Result<bool> {
    println!("\n| gradients beside the crate's own | differ by |");
    println!("|---|---:|");
    let mut well = true;
    for name in ["vit-s", "resnet50", "resnet18"] {
        let weights = weights();
        let (model, mut shape) = stand_in::sizes::build(name, weights.builder())?;
        shape[0] = 2;
        let xs = numbers(&shape)?;
        let model: Model = Box::new(move |xs, _| model(xs));
        let theirs = by_name(&weights.params(""), &gradients_of(&model, &xs)?);
        drop(model);

        let copies = Weights::from_tensors(weights.all());
        let own = own(name, &copies)?;
        let ys = own.forward_pass(&xs, &mut Pass::eval())?;
        let grads = (&ys * numbers(ys.dims())?)?.sum_all()?.backward()?;
        let params = Params::from_varmap(copies.varmap());
        let vars: BTreeMap<_, _> = params.iter().map(|(name, var)| (name.to_string(), var.clone())).collect();
        let ours = by_name(&vars, &grads);
        let largest = worst(&theirs, &ours)?;
        well &= largest <= TOLERANCE;
        println!("| {name}, {} parameters | {largest:.0e} |", ours.len());
    }
    Ok(well)
}

/// The crate's own model of that name, as it is in evaluation where its norms have statistics.
fn own(name: &str, weights: &Weights) -> Result<Box<dyn Forward>> {
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    Ok(match name {
        "vit-s" => {
            let small = vit::Config { embed_dim: 384, num_heads: 6, mlp_dim: 1536, ..vit::Config::hf_base(1000) };
            Box::new(vit::VisionTransformer::new(&small, vb)?)
        }
        "resnet18" => Box::new(resnet::ResNet::new(&resnet::Config::resnet18(1000), vb)?),
        "resnet50" => Box::new(resnet::ResNet::new(&resnet::Config::resnet50(1000), vb)?),
        other => candle_core::bail!("there is no {other} in this crate"),
    })
}

fn by_name(vars: &BTreeMap<String, Var>, grads: &GradStore) -> BTreeMap<String, Tensor> {
    let grad = |(name, var): (&String, &Var)| Some((name.clone(), grads.get(var)?.clone()));
    vars.iter().filter_map(grad).collect()
}

/// The largest distance of two gradients. One that is zero but for rounding, as that of a key's bias, does not count by
/// itself.
fn worst(theirs: &BTreeMap<String, Tensor>, ours: &BTreeMap<String, Tensor>) -> Result<f64> {
    if theirs.keys().ne(ours.keys()) {
        candle_core::bail!("gradients of other parameters: {} and {}", theirs.len(), ours.len());
    }
    let norms = ours.values().map(norm).collect::<Result<Vec<_>>>()?;
    let floor = norms.iter().fold(0.0, |a: f64, b| a.max(*b)) * 1e-3;
    let mut worst = 0.0f64;
    for ((theirs, ours), size) in theirs.values().zip(ours.values()).zip(norms) {
        worst = worst.max(distance(theirs, ours)? * size / size.max(floor));
    }
    Ok(worst)
}

const MODELS: [&str; 5] = ["vit-s", "resnet50", "convnext-t", "efficientnet-b0", "bert-base"];
/// Those of them that this crate has, too.
const OWN: [&str; 2] = ["vit-s", "resnet50"];
/// Models that more edits make faster, and the edits in the order in which they are made.
const EDITED: [(&str, &[&str]); 3] = [
    ("convnext-t", &["gelu", "scale"]),
    ("efficientnet-b0", &["silu", "scale"]),
    ("bert-base", &["gelu", "attention"]),
];
const TIMES: usize = 5;
/// Threads of a process that is measured.
const THREADS: &str = "2";

/// Prints the time of a step on two threads and its peak memory, each in a process of its own.
pub fn time() -> Result<bool> {
    println!("| model | as found | with the stand-in | the crate's own | stand-in / own |");
    println!("|---|---:|---:|---:|---:|");
    for model in MODELS {
        let measured = |which| in_own_process::<2>(["--time", model, which]);
        let cell = |[seconds, mib]: [f64; 2]| format!("{seconds:.3} s, {mib:.0} MiB");
        let (found, stand_in) = (measured("found")?, measured("stand-in")?);
        let (own, ratio) = match OWN.contains(&model) {
            true => {
                let own = measured("own")?;
                (cell(own), format!("{:.2}", stand_in[0] / own[0]))
            }
            false => ("–".into(), "–".into()),
        };
        println!("| {model} | {} | {} | {own} | {ratio} |", cell(found), cell(stand_in));
        let edits = EDITED.iter().filter(|(edited, _)| *edited == model).flat_map(|(_, edits)| *edits);
        for edit in edits {
            let faster = measured(edit)?;
            let gain = faster[0] / stand_in[0];
            println!("| .. and {edit} | | {}, {gain:.2} of the time | | |", cell(faster));
        }
    }
    Ok(true)
}

/// The model of that name after an edit and those before it.
fn faster(edit: &str, name: &str, vb: VarBuilder<'static>) -> Result<Model> {
    let Some((_, build)) = stand_in::faster::ALL.iter().find(|(called, _)| *called == edit) else {
        candle_core::bail!("there is no edit {edit}");
    };
    let (model, _) = build(name, vb)?;
    Ok(Box::new(move |xs, _| model(xs)))
}

/// Images, or token ids.
fn input(shape: &[usize]) -> Result<Tensor> {
    match shape {
        [_, _] => ids(shape, 30522),
        _ => numbers(shape),
    }
}

/// Prints how far the gradients of models are from what they were before they were made faster; true if it is little.
pub fn edited() -> Result<bool> {
    println!("\n| gradients after all edits, beside those before | differ by |");
    println!("|---|---:|");
    let mut well = true;
    for (name, edits) in EDITED {
        let weights = weights();
        let (before, mut shape) = stand_in::sizes::build(name, weights.builder())?;
        shape[0] = 1;
        let xs = input(&shape)?;
        let before: Model = Box::new(move |xs, _| before(xs));
        let grads = |model: &Model| Ok::<_, Error>(by_name(&weights.params(""), &gradients_of(model, &xs)?));
        let before = grads(&before)?;
        let last = edits.last().copied().unwrap_or_default();
        let largest = worst(&grads(&faster(last, name, weights.builder())?)?, &before)?;
        well &= largest <= TOLERANCE;
        println!("| {name} with {} | {largest:.0e} |", edits.join(", "));
    }
    Ok(well)
}

/// The `N` numbers that this program prints with such arguments.
fn in_own_process<const N: usize>(arguments: [&str; 3]) -> Result<[f64; N]> {
    let mut program = Command::new(std::env::current_exe()?);
    let out = program.args(arguments).env("RAYON_NUM_THREADS", THREADS).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if !out.status.success() {
        candle_core::bail!("{arguments:?}: {}, {}", out.status, text(&out.stderr));
    }
    let printed = text(&out.stdout);
    let numbers: std::result::Result<Vec<f64>, _> = printed.split_whitespace().map(str::parse).collect();
    let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| candle_core::Error::Msg(format!("{arguments:?} printed {printed:?}")))
}

/// Peak memory of this process, in MiB.
fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = peak.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    Ok(kib.unwrap_or(f64::NAN) / 1024.0)
}

/// Prints the median time of a step in seconds, and the process's peak memory in MiB.
pub fn time_one(name: &str, which: &str) -> Result<bool> {
    let weights = weights();
    // The weights are drawn by building it.
    let (stand_in, shape) = stand_in::sizes::build(name, weights.builder())?;
    let model: Model = match which.strip_suffix("+keep").unwrap_or(which) {
        "found" => {
            let (found, _) = found::sizes::build(name, weights.builder())?;
            Box::new(move |xs, _| found(xs))
        }
        "own" => {
            let copies = Weights::from_tensors(weights.all());
            let own = own(name, &copies)?;
            Box::new(move |xs, _| own.forward_pass(xs, &mut Pass::eval()))
        }
        "stand-in" => Box::new(move |xs, _| stand_in(xs)),
        edit => faster(edit, name, weights.builder())?,
    };
    let xs = input(&shape)?;
    let mut times = Vec::new();
    for _ in 0..=TIMES {
        let start = Instant::now();
        gradients_of(&model, &xs)?;
        times.push(start.elapsed().as_secs_f64());
    }
    // The first is not counted.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    println!("{} {}", times[TIMES / 2], peak_mib()?);
    Ok(true)
}

const TRAINED: [&str; 3] = ["small vit", "small resnet18", "small convnext"];
const STEPS: usize = 30;
/// How much more memory than plain training is put down to the allocator.
const SLACK: f64 = 1.1;

/// Trains three models plainly and in a MaskSub, each in a process of its own; true if the losses fall and a MaskSub takes
/// no more memory.
pub fn trains() -> Result<bool> {
    println!("\n| {STEPS} steps | plain: loss | MaskSub: loss | plain: memory | MaskSub: memory |");
    println!("|---|---:|---:|---:|---:|");
    let mut well = true;
    for model in TRAINED {
        let [plain, masksub] = ["plain", "masksub"].map(|how| in_own_process(["--train", model, how]));
        let ([p0, p1, p], [m0, m1, m]) = (plain?, masksub?);
        well &= p1 < p0 && m1 < m0 && m <= SLACK * p;
        println!("| {model} | {p0:.2} → {p1:.2} | {m0:.2} → {m1:.2} | {p:.0} MiB | {m:.0} MiB |");
    }
    Ok(well)
}

/// Prints the main loss of the first step and of the last, and the process's peak memory in MiB.
pub fn train_one(name: &str, how: &str) -> Result<bool> {
    let weights = weights();
    let (model, shape) = stand_in::sizes::build(name, weights.builder())?;
    let params = Params::new(weights.params(""));
    let branch = PatchDrop::new(RandomMasking::new(0.5)?, 16)?;
    let share = if how == "plain" { 0.0 } else { 0.5 };
    let model = MaskSub::wrap(move |xs: &Tensor| model(xs), branch, &params).with_weight(share)?;
    let mut optimizer = AdamW::new(params.vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    let (mut first, mut last) = (None, 0.0);
    for t in 0..STEPS {
        let (images, labels) = bright_quarters(&shape, t)?;
        let step = model.backward(&images, Seed::new(0).at(t), |logits| cross_entropy(logits, &labels))?;
        optimizer.step(&step.grads)?;
        first.get_or_insert(step.main_loss);
        last = step.main_loss;
    }
    println!("{} {last} {}", first.unwrap_or(last), peak_mib()?);
    Ok(true)
}

/// Images of noise with a bright quarter; which one is the class.
fn bright_quarters(shape: &[usize], step: usize) -> Result<(Tensor, Tensor)> {
    let (batch, side) = (shape[0], shape[2]);
    let mut rng = Seed::new(2).at(step).step_rng(Purpose::custom(0));
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..batch {
        let class = rng.random_range(0..4usize);
        for at in 0..3 * side * side {
            let (row, column) = (at / side % side, at % side);
            let bright = 2 * (2 * row / side) + 2 * column / side == class;
            pixels.push(rng.random::<f32>() - 0.5 + if bright { 1.0 } else { 0.0 });
        }
        labels.push(class as u32);
    }
    let images = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
    Ok((images, Tensor::from_vec(labels, batch, &Device::Cpu)?))
}
