//! `--features-of`: what a ViT's head would read of each image in a directory, as a file for probes and retrieval.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Tensor};
use masksub::models::vit::VisionTransformer;
use masksub::Weights;

use crate::data::image_tree;
use crate::data::loader::Loader;
use crate::data::transform::{Draw, Settings, Transform};
use crate::flags::Flags;
use crate::network::Network;
use crate::run::dir::RunDir;

/// Name of the file, in the output directory.
const FILE: &str = "features.safetensors";

/// Writes `features` [N, D] of the images below `directory`, as evaluation sees them, in the order of their paths, which
/// are in the file's metadata as `paths`, a line each. Gives a line that says so.
pub fn write(flags: &Flags, directory: &Path, network: &Network, weights: &Weights) -> Result<String> {
    let Network::Vit(cfg) = network else {
        bail!("--features-of is for ViTs, and {} is none", flags.model());
    };
    let vit = VisionTransformer::new(cfg, weights.no_grad_builder(DType::F32, &flags.device))?;
    // No feature depends on a head, whether it is there or for other classes.
    let heads = ["head.", "head_dist.", "classifier.", "distillation_classifier."];
    let is_head = |name: &str| heads.iter().any(|head| name.starts_with(head));
    weights.notes().iter().for_each(|note| println!("{note}"));
    weights.check_exact(|name| is_head(name) || flags.allow_differences)?;

    let split = image_tree::all_below(directory)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(flags.input.workers.unwrap_or(0))
        .build()?;
    let loader = Loader::new(pool, Transform::new(flags.input.settings(network))?, flags.unreadable);
    let &Settings {
        image_size, channels, ..
    } = loader.transform().settings();
    // Before the work: a directory that cannot be written would cost all of it.
    let out = RunDir::create(flags.out.as_deref())?;
    let (mut features, mut paths) = (vec![], vec![]);
    let images: Vec<_> = (0..split.len()).map(|index| (index, Draw::Test)).collect();
    for batch in images.chunks(flags.training.batch_size) {
        let (decoded, places) = loader.load_placed(&split, batch)?;
        if places.is_empty() {
            continue;
        }
        let shape = (places.len(), channels, image_size, image_size);
        let pooled = vit
            .features(&Tensor::from_vec(decoded.images, shape, &flags.device)?)?
            .pooled;
        features.push(pooled.flatten_from(1)?.to_device(&candle_core::Device::Cpu)?);
        for (index, _) in places.iter().filter_map(|place| batch.get(*place)) {
            let (path, _) = split.file(*index);
            let path = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
            ensure!(
                !path.contains('\n'),
                "{path:?} has a line break in its name, and paths are listed line by line"
            );
            paths.push(path);
        }
    }
    ensure!(!paths.is_empty(), "no image below {} can be read", directory.display());
    let features = Tensor::cat(&features, 0)?;
    let (count, dim) = features.dims2()?;
    let metadata = HashMap::from([
        ("paths".to_string(), paths.join("\n")),
        ("model".into(), flags.model().into()),
    ]);
    let file =
        safetensors::serialize([("features", &features)], Some(metadata)).context("cannot serialize features")?;
    out.write(FILE, &file)?;
    let skipped = match loader.skipped() {
        0 => String::new(),
        skipped => format!(" skipped={skipped}"),
    };
    let path = out.path().join(FILE);
    Ok(format!(
        "result model={} images={count} dim={dim}{skipped} file={}",
        flags.model(),
        path.display()
    ))
}
