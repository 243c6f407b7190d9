//! What trains of candle-transformers' models as found, and with masksub::nn in the place of candle_nn.

mod own;

use std::collections::{BTreeMap, HashMap};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use masksub::{Pass, Seed};
use rand_distr::{Distribution, StandardNormal};

/// `backward` recurses along the graph, deeper than a thread's default stack allows.
const STACK: usize = 256 << 20;
/// How far outputs may be apart.
const TOLERANCE: f64 = 1e-5;
/// Models that one line does not make whole, what is found of them, and why.
const NOT_WHOLE: [(&str, &str, &str); 7] = [
    (
        "segment_anything, image encoder",
        "nothing reaches 4 parameters",
        "its own operation `Add3` has no backward",
    ),
    (
        "depth_anything_v2 on dinov2",
        "nothing reaches 6 parameters",
        "its first fusion block has one input, dinov2's head none: six parameters are used nowhere",
    ),
    ("segment_anything, tiny_vit", STALE, "attention biases are gathered by the constructor"),
    ("repvgg a0", STALE, FUSED),
    ("mobileone s0", STALE, FUSED),
    ("fastvit, 4 blocks", STALE, FUSED),
    ("mobileclip, image tower", STALE, FUSED),
];
const WHOLE: &str = "all is well";
const STALE: &str = "updates of its variables do not reach it";
const FUSED: &str = "the constructor fuses branches and batch norms into convolutions that no update reaches";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Before there are other threads: a model that is called `..+keep`.
    if arguments.iter().any(|argument| argument.ends_with("+keep")) && !masksub::ops::keep_freed_memory() {
        eprintln!("only glibc keeps memory so");
        return ExitCode::FAILURE;
    }
    let run = move || match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(""),
        ["--only", part] => table(part),
        ["--time"] => own::time(),
        ["--time", model, which] => own::time_one(model, which),
        ["--train", model, how] => own::train_one(model, how),
        _ => Err(Error::Msg("flags: --only PART_OF_A_NAME, or --time".into())),
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(run);
    match thread.map(|thread| thread.join()) {
        Ok(Ok(Ok(true))) => ExitCode::SUCCESS,
        Ok(Ok(Ok(false))) => ExitCode::FAILURE,
        other => {
            eprintln!("{other:?}");
            ExitCode::FAILURE
        }
    }
}

/// A model as a function of its input and the training flag.
pub type Model = Box<dyn Fn(&Tensor, bool) -> Result<Tensor>>;
type Build = Box<dyn Fn(VarBuilder<'static>) -> Result<Model>>;

/// One model, both ways.
struct Case {
    name: &'static str,
    found: Build,
    stand_in: Build,
    input: Box<dyn Fn(usize) -> Result<Tensor>>,
    batches: &'static [usize],
    absent: fn(&str) -> bool,
    part: &'static str,
    norm_weight: f64,
}

fn cases() -> Vec<Case> {
    let images = found::zoo::all().into_iter().zip(stand_in::zoo::all()).map(|(found, stand_in)| {
        let side = found.image;
        Case {
            name: found.name,
            input: Box::new(move |batch| numbers(&[batch, 3, side, side])),
            batches: found.batches,
            absent: found.absent,
            part: found.part,
            norm_weight: found.norm_weight,
            found: Box::new(move |vb| Ok(Box::new((found.build)(vb)?) as Model)),
            stand_in: Box::new(move |vb| Ok(Box::new((stand_in.build)(vb)?) as Model)),
        }
    });
    let others = found::text::entries().into_iter().zip(stand_in::text::entries());
    let others = others.map(|(found, stand_in)| Case {
        name: found.name,
        input: Box::new(move |batch| match found.hears {
            true => numbers(&[batch, 8, found::text::LENGTH]),
            false => ids(&[batch, found::text::LENGTH], found::text::VOCABULARY),
        }),
        batches: &[2],
        absent: |_| false,
        // Whisper's decoder is built, too, and does not run.
        part: if found.hears { "model.encoder." } else { "" },
        norm_weight: 1.0,
        found: Box::new(move |vb| {
            let model = (found.build)(vb)?;
            Ok(Box::new(move |xs: &Tensor, _| model(xs)))
        }),
        stand_in: Box::new(move |vb| {
            let model = (stand_in.build)(vb)?;
            Ok(Box::new(move |xs: &Tensor, _| model(xs)))
        }),
    });
    images.chain(others).collect()
}

/// Prints a row for each model whose name has `part` in it; true if all is well.
fn table(part: &str) -> Result<bool> {
    std::panic::set_hook(Box::new(|_| {}));
    println!("| model | parameters | trained as found | with the stand-in | outputs differ by |");
    println!("|---|---:|---:|---:|---:|");
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(part)).collect();
    if cases.is_empty() {
        return Err(Error::Msg(format!("no model has {part:?} in its name")));
    }
    let (mut well, mut whole) = (true, 0);
    for case in &cases {
        let row = attempt(|| row(case)).unwrap_or_else(|error| Row {
            cells: format!("– | – | {error} | –"),
            fault: Some(error),
        });
        println!("| {} | {} |", case.name, row.cells);
        whole += usize::from(row.fault.is_none());
        let expected = NOT_WHOLE.iter().find(|(name, ..)| *name == case.name).map(|(_, fault, _)| *fault);
        if row.fault.as_deref() != expected {
            let (expected, found) = (expected.unwrap_or(WHOLE), row.fault.as_deref().unwrap_or(WHOLE));
            eprintln!("{}: expected that {expected}, but found that {found}", case.name);
            well = false;
        }
    }
    println!("\n{whole} models train whole with the stand-in.");
    for (name, fault, why) in NOT_WHOLE {
        println!("{name}: {fault}; {why}.");
    }
    Ok(well && (!part.is_empty() || own::gradients()? && own::edited()? && own::trains()?))
}

struct Row {
    cells: String,
    /// None where every parameter has a gradient and takes effect when it changes, and outputs are what they were.
    fault: Option<String>,
}

fn row(case: &Case) -> Result<Row> {
    let weights = Random::new(case.absent, case.norm_weight);
    let (found, stand_in) = ((case.found)(weights.builder())?, (case.stand_in)(weights.builder())?);
    let params = weights.params(case.part);
    // Some sources take one image only.
    let forward = |model: &Model, batch| attempt(|| model(&(case.input)(batch)?, false));
    let tried = case.batches.iter().find_map(|&batch| Some((batch, forward(&found, batch).ok()?)));
    let Some((batch, before)) = tried else {
        let error = forward(&found, case.batches[0]).err().unwrap_or_default();
        return Ok(Row { cells: format!("{} | – | {error} | –", params.len()), fault: Some(error) });
    };
    let xs = (case.input)(batch)?;
    let as_found = attempt(|| trained(&found, &xs, &params)).map_or_else(|error| error, |names| names.len().to_string());
    let ours = match attempt(|| trained(&stand_in, &xs, &params)) {
        Ok(names) => names,
        Err(error) => {
            let cells = format!("{} | {as_found} | {error} | –", params.len());
            return Ok(Row { cells, fault: Some(error) });
        }
    };
    let missing: Vec<_> = params.keys().filter(|name| !ours.contains(name)).collect();
    if !missing.is_empty() {
        eprintln!("{}: nothing reaches {missing:?}", case.name);
    }
    // One by one: candle's product of a transposed batch and a broadcast factor is wrong.
    let single = |i| attempt(|| found(&xs.narrow(0, i, 1)?, false));
    let singles = (0..batch).map(single).collect::<std::result::Result<Vec<_>, _>>();
    let right = singles.ok().and_then(|singles| Tensor::cat(&singles, 0).ok()).unwrap_or_else(|| before.clone());
    let difference = distance(&stand_in(&xs, false)?, &right)?;
    let wrong = distance(&before, &right)?;
    let one = match batch == 1 && case.batches.len() > 1 {
        true => " (a batch of 1 only)".to_string(),
        false if wrong > TOLERANCE => format!(" (outputs of a batch are wrong by {wrong:.0e})"),
        false => String::new(),
    };
    let fault = match missing.len() {
        0 if difference > TOLERANCE => Some(format!("outputs differ by {difference:.0e}")),
        0 => stale(&stand_in, &xs, &weights, || (case.stand_in)(weights.builder()))?.then(|| STALE.to_string()),
        some => Some(format!("nothing reaches {some} parameters")),
    };
    let note = if fault.as_deref() == Some(STALE) { ", updates lost" } else { "" };
    Ok(Row {
        cells: format!("{} | {as_found}{one} | {}{note} | {difference:.0e}", params.len(), ours.len()),
        fault,
    })
}

/// Does the model compute with weights that it made of its variables when it was built? Changes the variables.
fn stale(model: &Model, xs: &Tensor, weights: &Random, build: impl Fn() -> Result<Model>) -> Result<bool> {
    for var in weights.params("").values() {
        var.set(&(var.as_tensor() * 1.01)?)?;
    }
    let (updated, rebuilt) = (model(xs, false)?, build()?(xs, false)?);
    Ok(distance(&updated, &rebuilt)? > 0.0)
}

/// The names of the parameters whose gradient is not zero.
fn trained(model: &Model, xs: &Tensor, params: &BTreeMap<String, Var>) -> Result<Vec<String>> {
    let grads = gradients(model, xs)?;
    let mut names = Vec::new();
    for (name, var) in params {
        if grads.get(var).map(norm).transpose()?.is_some_and(|norm| norm > 0.0) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

/// The gradients of a sum of all outputs, each with a weight of its own.
pub fn gradients(model: &Model, xs: &Tensor) -> Result<GradStore> {
    // Dropout draws from the pass.
    let ys = Pass::train(Seed::new(0).at(0)).scope(|train| model(xs, train))?;
    (&ys * numbers(ys.dims())?)?.sum_all()?.backward()
}

/// Runs `f`; the error as one line, a panic as an error.
fn attempt<T>(f: impl FnOnce() -> Result<T>) -> std::result::Result<T, String> {
    let line = |error: &str| format!("`{}`", error.split(['\n', '{']).next().unwrap_or_default().trim());
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(line(&error.to_string())),
        Err(panic) => Err(line(panic.downcast_ref::<String>().map_or("a panic", String::as_str))),
    }
}

pub fn norm(xs: &Tensor) -> Result<f64> {
    xs.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
}

/// ||a - b|| / ||b||.
pub fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(norm(&(a - b)?)? / norm(b)?.max(f64::MIN_POSITIVE))
}

/// Standard normal numbers, the same for the same shape.
pub fn numbers(shape: &[usize]) -> Result<Tensor> {
    let rng = Seed::new(1).rng_for(&format!("{shape:?}"));
    let numbers: Vec<f32> = StandardNormal.sample_iter(rng).take(shape.iter().product()).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

pub fn ids(shape: &[usize], vocabulary: usize) -> Result<Tensor> {
    // Every one, in no simple order.
    let ids: Vec<u32> = (0..shape.iter().product()).map(|i: usize| (i * 7 % vocabulary) as u32).collect();
    Tensor::from_vec(ids, shape, &Device::Cpu)
}

/// Weights drawn by their names, which lack what a published checkpoint lacks.
#[derive(Clone)]
pub struct Random(std::sync::Arc<Drawn>);

struct Drawn {
    vars: Mutex<HashMap<String, Var>>,
    absent: fn(&str) -> bool,
    norm_weight: f64,
}

impl Random {
    pub fn new(absent: fn(&str) -> bool, norm_weight: f64) -> Self {
        Self(std::sync::Arc::new(Drawn { vars: Mutex::default(), absent, norm_weight }))
    }

    pub fn builder(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// What is trained, of those whose names start with `part`.
    pub fn params(&self, part: &str) -> BTreeMap<String, Var> {
        let vars = self.0.vars.lock().expect("no panic while it is held");
        let trained = vars.iter().filter(|(name, _)| name.starts_with(part) && !is_statistic(name));
        trained.map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, Tensor)> {
        let vars = self.0.vars.lock().expect("no panic while it is held");
        vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    }
}

fn is_statistic(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        if (self.0.absent)(name) {
            return Err(Error::CannotFindTensor { path: name.to_string() });
        }
        let mut vars = self.0.vars.lock().expect("no panic while it is held");
        if let Some(var) = vars.get(name) {
            return Ok(var.as_tensor().clone());
        }
        // Nothing trained starts at a constant: a head or a layer scale of zero would hide the gradients behind it.
        let (mean, stdev) = match init {
            Init::Const(value) if is_statistic(name) => (value, 0.0),
            Init::Const(value) => (self.0.norm_weight * value, 0.02),
            Init::Randn { mean, stdev } => (mean, stdev.min(0.1)),
            // As wide as PyTorch's for the inputs that it has.
            _ => (0.0, (shape.elem_count() as f64 / shape.dims()[0].max(1) as f64).recip().sqrt() / 1.7),
        };
        let normal = StandardNormal.sample_iter(Seed::new(0).rng_for(name));
        let drawn: Vec<f32> = normal.take(shape.elem_count()).map(|x: f64| (mean + stdev * x) as f32).collect();
        let var = Var::from_tensor(&Tensor::from_vec(drawn, shape, &Device::Cpu)?.to_dtype(dtype)?)?;
        vars.insert(name.to_string(), var.clone());
        Ok(var.as_tensor().clone())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        // CLIP draws it anew in its constructor where there is none.
        name.ends_with("class_embedding")
    }
}
