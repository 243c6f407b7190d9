//! Which vision models of candle-transformers train as found: a training step of each, the findings as a table.
//!
//!     cargo run --release --example candle_models
//!
//! Found for every model: which parameters get a gradient, at a batch of several images and of one; whether the gradient
//! is the slope of the loss; whether batch norm's statistics move; whether new weights reach a model that is built.
//! What cannot be found by running, the cause in candle and the remedy, stands beside the model in `zoo`,
//! and what is expected to be found, too: the exit code is 1 when something else is.

mod zoo;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use zoo::{Entry, Model};

/// The convolutional models keep one core busy at most, so two are examined at a time.
const WORKERS: usize = 2;
/// `backward` recurses along the graph, deeper than a thread's default stack allows.
const STACK: usize = 64 << 20;

fn main() -> std::io::Result<ExitCode> {
    // A panic is a finding like any other; its message goes into the row.
    std::panic::set_hook(Box::new(|_| {}));
    let zoo = zoo::all();
    let rows: Vec<OnceLock<Row>> = zoo.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        // From the end, where the slow ones are.
        while let Some(i) = zoo.len().checked_sub(next.fetch_add(1, Ordering::Relaxed) + 1) {
            let row = attempt(|| examine(&zoo[i])).unwrap_or_else(|error| Row {
                finding: error,
                ..Row::default()
            });
            rows[i].get_or_init(|| row);
        }
    };
    std::thread::scope(|scope| {
        (0..WORKERS).try_for_each(|_| {
            let worker = std::thread::Builder::new().stack_size(STACK);
            worker.spawn_scoped(scope, work).map(drop)
        })
    })?;

    println!("| model | parameters | with a gradient | as found | cause in candle | what to do |");
    println!("|---|---:|---|---|---|---|");
    let mut changed = Vec::new();
    for (entry, row) in zoo.iter().zip(rows) {
        let row = row.into_inner().unwrap_or_default();
        changed.extend(difference(entry, &row));
        let cells = [
            entry.name,
            &row.parameters,
            &row.with_gradient,
            &row.finding,
            entry.cause,
            entry.remedy,
        ];
        println!("| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    for difference in &changed {
        eprintln!("{difference}");
    }
    Ok(if changed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What of a row is not as its entry says.
fn difference(entry: &Entry, row: &Row) -> Option<String> {
    // Between pairs of asterisks.
    let bold: Vec<&str> = row.finding.split("**").skip(1).step_by(2).collect();
    let (gradients, found) = (&row.with_gradient, bold.join(", "));
    (gradients != entry.with_gradient || found != entry.found).then(|| {
        format!(
            "{}: expected gradients for {:?} and {:?}, but found {gradients:?} and {found:?}",
            entry.name, entry.with_gradient, entry.found
        )
    })
}

/// The cells that are found by running the model.
#[derive(Default)]
struct Row {
    parameters: String,
    with_gradient: String,
    finding: String,
}

fn examine(entry: &Entry) -> Result<Row> {
    let map = VarMap::new();
    let build = || (entry.build)(builder(&map, entry));
    let model = build()?;
    let before = statistics(&map)?;
    let mut notes = Vec::new();
    let mut counts: Vec<String> = Vec::new();
    let mut failures = Vec::new();
    let mut accepted = None;

    // A training step at each batch size: the gradients.
    for &batch in entry.batches {
        let xs = images(batch, entry.image)?;
        let found = match attempt(|| loss(&model, &xs, true)) {
            Ok(found) => found,
            Err(error) => {
                failures.push((batch, format!("forward: {error}")));
                continue;
            }
        };
        accepted.get_or_insert_with(|| xs.clone());
        let grads = match attempt(|| found.backward()) {
            Ok(grads) => grads,
            Err(error) => {
                failures.push((batch, format!("backward: {error}")));
                continue;
            }
        };
        let arrival = Arrival::new(&parameters(&map, entry.part), &grads)?;
        let count = format!("{} of {}", arrival.total - arrival.none.len(), arrival.total);
        if counts.first() == Some(&count) {
            continue;
        }
        let place = if counts.is_empty() {
            String::new()
        } else {
            format!("at a batch of {batch} ")
        };
        notes.extend(arrival.describe().map(|note| place + &note));
        if counts.is_empty() && arrival.none.is_empty() {
            notes.extend(slope(&model, &xs, grads, &found)?);
        }
        counts.push(count + if batch == 1 { " at 1" } else { "" });
    }
    failures.dedup_by(|(_, later), (_, earlier)| later == earlier);
    for (batch, error) in failures.iter().rev() {
        let note = match (counts.is_empty(), failures.len()) {
            (false, _) => format!("**batch of 1 only**, at {batch} {error}"),
            (true, 1) => format!("**fails**, {error}"),
            (true, _) => format!("**fails** at a batch of {batch}, {error}"),
        };
        notes.insert(0, note);
    }

    // What no audit of gradients can see.
    if let Some(xs) = &accepted {
        notes.extend(frozen(&map, &before)?);
        notes.extend(stale(&model, xs, &map, build)?);
    }
    Ok(Row {
        parameters: parameters(&map, entry.part).len().to_string(),
        with_gradient: if counts.is_empty() {
            "–".into()
        } else {
            counts.join(", ")
        },
        finding: if notes.is_empty() {
            "trains".into()
        } else {
            notes.join("; ")
        },
    })
}

/// The names of the parameters that a backward left without a gradient, or with zeros only.
struct Arrival {
    total: usize,
    some: Vec<String>,
    none: Vec<String>,
    zero: Vec<String>,
}

impl Arrival {
    fn new(parameters: &BTreeMap<String, Var>, grads: &GradStore) -> Result<Self> {
        let mut arrival = Self {
            total: parameters.len(),
            some: vec![],
            none: vec![],
            zero: vec![],
        };
        for (name, var) in parameters {
            let group = match grads.get(var) {
                None => &mut arrival.none,
                Some(grad) if norm(grad)? == 0.0 => &mut arrival.zero,
                Some(_) => &mut arrival.some,
            };
            group.push(name.clone());
        }
        Ok(arrival)
    }

    fn describe(&self) -> Option<String> {
        let mut notes = Vec::new();
        if !self.none.is_empty() {
            let which = match self.some.len() {
                0 => "all".to_string(),
                few if 2 * few < self.total => format!("all but {}", layers(&self.some)),
                _ => layers(&self.none),
            };
            notes.push(format!("**severed**: {} get none ({which})", self.none.len()));
        }
        if !self.zero.is_empty() {
            notes.push(format!("{} get zeros ({})", self.zero.len(), layers(&self.zero)));
        }
        (!notes.is_empty()).then(|| notes.join(", "))
    }
}

/// The layers of some parameters without the numbers of their blocks: `encoder.layer.1.mlp.fc1.bias` is `mlp.fc1`.
fn layers(parameters: &[String]) -> String {
    const SHOWN: usize = 6;
    let layer = |name: &String| {
        let name = name.trim_end_matches(".weight").trim_end_matches(".bias");
        let parts: Vec<&str> = name.split('.').collect();
        match parts.iter().rposition(|part| part.parse::<usize>().is_ok()) {
            Some(i) if i + 1 < parts.len() => parts[i + 1..].join("."),
            Some(_) => name.to_string(),
            None => parts[parts.len() - 1].to_string(),
        }
    };
    let layers: BTreeSet<String> = parameters.iter().map(layer).collect();
    let shown = layers
        .iter()
        .take(SHOWN)
        .map(|layer| format!("`{layer}`"))
        .collect::<Vec<_>>()
        .join(", ");
    match layers.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Is the gradient of the images, which passes through every layer, the slope of the loss along it?
fn slope(model: &Model, xs: &Var, mut grads: GradStore, found: &Tensor) -> Result<Option<String>> {
    const STEPS: [f64; 4] = [1e-3, 1e-4, 1e-5, 1e-6];
    let mut grad = grads.remove(xs);
    drop(grads);
    // Dropout draws anew in every pass: then compare without it.
    let still = loss(model, xs, false)?;
    if still.to_scalar::<f64>()? != found.to_scalar::<f64>()? {
        grad = still.backward()?.remove(xs);
    }
    let Some(grad) = grad else {
        return Ok(Some("none reaches the images".into()));
    };
    let size = norm(&grad)?;
    let direction = (grad / size)?;
    let mut slopes: Vec<f64> = Vec::new();
    for step in STEPS {
        let step = step * norm(xs)?;
        let at = |t: f64| {
            let moved = (xs.as_tensor() + (&direction * t)?)?;
            loss(model, &Var::from_tensor(&moved)?, false)?.to_scalar::<f64>()
        };
        let slope = (at(step)? - at(-step)?) / (2.0 * step);
        if (size / slope - 1.0).abs() < 0.1 {
            return Ok(None);
        }
        slopes.push(slope);
    }
    // Curvature blurs the long steps and rounding the short ones: believe a slope that two steps agree on.
    let agreed = slopes.windows(2).find(|pair| (pair[0] / pair[1] - 1.0).abs() < 0.05);
    Ok(Some(match agreed {
        Some(pair) => format!(
            "**wrong gradient**: that of the images is {:.1e} of the slope",
            size / pair[1]
        ),
        None => "slope too uneven to compare the gradient with".into(),
    }))
}

/// Is there batch norm that a training pass leaves in evaluation mode? `before` holds the statistics from before it.
fn frozen(map: &VarMap, before: &[Tensor]) -> Result<Option<String>> {
    let mut moved = 0;
    for (before, after) in before.iter().zip(&statistics(map)?) {
        moved += usize::from(distance(after, before)? > 0.0);
    }
    let still = format!("**batch norm frozen**: {moved} of {} statistics move", before.len());
    Ok((moved < before.len()).then_some(still))
}

/// Does the model compute with the weights it had when it was built? Changes the weights.
fn stale(model: &Model, xs: &Var, map: &VarMap, build: impl Fn() -> Result<Model>) -> Result<Option<String>> {
    let before = model(xs, false)?;
    for var in parameters(map, "").values() {
        var.set(&(var.as_tensor() * 1.01)?)?;
    }
    let (updated, rebuilt) = (model(xs, false)?, build()?(xs, false)?);
    Ok(if distance(&updated, &rebuilt)? == 0.0 {
        None
    } else if distance(&rebuilt, &build()?(xs, false)?)? > 0.0 {
        Some("**part is no variable**: drawn anew whenever the model is built".into())
    } else if distance(&before, &updated)? == 0.0 {
        Some("**updates are lost**: the output is that of the weights it was built with".into())
    } else {
        Some("**updates are lost in part**: the output is not that of the new weights".into())
    })
}

/// Cross-entropy with the whole output of an image as its logits, in f64 for the sake of `slope`.
fn loss(model: &Model, xs: &Var, train: bool) -> Result<Tensor> {
    let logits = model(xs, train)?.flatten_from(1)?.to_dtype(DType::F64)?;
    let labels = Tensor::arange(0, logits.dim(0)? as u32, logits.device())?;
    candle_nn::loss::cross_entropy(&logits, &labels)
}

/// Runs `f`; the error as one line, a panic as an error.
fn attempt<T>(f: impl FnOnce() -> Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        // Up to the backtrace or the dump of a layout.
        Ok(Err(error)) => Err(format!(
            "`{}`",
            error.to_string().split(['\n', '{']).next().unwrap_or_default().trim()
        )),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(format!("panics: `{}`", text.unwrap_or_default()))
        }
    }
}

fn norm(xs: &Tensor) -> Result<f64> {
    xs.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar()
}

/// ||a - b|| / ||b||.
fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(norm(&(a - b)?)? / norm(b)?.max(f64::MIN_POSITIVE))
}

fn images(batch: usize, side: usize) -> Result<Var> {
    let rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<f32> = StandardNormal.sample_iter(rng).take(batch * 3 * side * side).collect();
    Var::from_tensor(&Tensor::from_vec(pixels, (batch, 3, side, side), &Device::Cpu)?)
}

fn is_statistic(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// The variables that are trained, whose names start with `part`.
fn parameters(map: &VarMap, part: &str) -> BTreeMap<String, Var> {
    let vars = map.data().lock().expect("no panic while it is held");
    let trained = vars
        .iter()
        .filter(|(name, _)| name.starts_with(part) && !is_statistic(name));
    trained.map(|(name, var)| (name.clone(), var.clone())).collect()
}

/// Copies of the running statistics, by name.
fn statistics(map: &VarMap) -> Result<Vec<Tensor>> {
    let vars = map.data().lock().expect("no panic while it is held");
    let sorted: BTreeMap<_, _> = vars.iter().filter(|(name, _)| is_statistic(name)).collect();
    sorted.values().map(|var| var.copy()).collect()
}

fn builder(map: &VarMap, entry: &Entry) -> VarBuilder<'static> {
    let incomplete = IncompleteVarMap {
        map: map.clone(),
        absent: entry.absent,
        norm_weight: entry.norm_weight,
    };
    VarBuilder::from_backend(Box::new(incomplete), DType::F32, Device::Cpu)
}

/// A `VarMap` of random weights that lacks what the published checkpoint lacks.
struct IncompleteVarMap {
    map: VarMap,
    absent: fn(&str) -> bool,
    norm_weight: f64,
}

impl SimpleBackend for IncompleteVarMap {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if (self.absent)(name) {
            return Err(Error::CannotFindTensor { path: name.to_string() });
        }
        // Nothing trained starts at a constant: a layer scale of zero would hide the gradients behind it.
        let init = match init {
            Init::Const(value) if !is_statistic(name) => Init::Randn {
                mean: self.norm_weight * value,
                stdev: 0.02,
            },
            init => init,
        };
        self.map.get(shape, name, init, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.map
            .data()
            .lock()
            .expect("no panic while it is held")
            .contains_key(name)
    }
}
