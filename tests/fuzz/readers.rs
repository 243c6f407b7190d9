//! Everything that reads a file, on files that lie.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use masksub::models::resnet::ResNet;
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{Config, Pool, VisionTransformer};
use masksub::pretrained::{Pretrained, Resize};
use masksub::train::checkpoint::Checkpoint;
use masksub::train::ema::Ema;
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::{KeyedRng, Params, Result, Seed, Weights};
use rand::Rng as _;
use safetensors::View as _;

use crate::common::{small_resnet, small_swin};
use crate::draw::{self, count, pick, text};
use crate::mutate;
use crate::Scratch;

/// The files of the fixtures that are read as checkpoints.
pub fn valid_files() -> Vec<Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> = ["pth", "checkpoints"]
        .iter()
        .flat_map(|folder| fs::read_dir(fixtures.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.to_string_lossy().ends_with(".expect.safetensors"))
        .filter(|path| path.extension().is_some_and(|extension| extension != "py"))
        .collect();
    // In the same order wherever it runs.
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The recorded checkpoints of every format, in the same order wherever it runs.
pub fn recorded() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> = ["models", "sizes"]
        .iter()
        .flat_map(|folder| fs::read_dir(fixtures.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && !path.to_string_lossy().ends_with(".expect.safetensors"))
        .filter(|path| path.extension().is_some_and(|extension| extension != "py"))
        .collect();
    paths.sort();
    paths
}

/// A file for a reader of weights.
pub fn file(rng: &mut KeyedRng, scratch: &Scratch) -> Vec<u8> {
    match rng.random_range(0..10) {
        0 => scratch.files[rng.random_range(0..scratch.files.len())].clone(),
        1..6 => {
            let [file, other] = [0; 2].map(|_| &scratch.files[rng.random_range(0..scratch.files.len())]);
            mutate::bytes(rng, file, other)
        }
        6 | 7 => mutate::safetensors(rng),
        8 => mutate::pickle(rng),
        _ => archive(rng),
    }
}

/// What `torch.save` would write, of a pickle that lies.
fn archive(rng: &mut KeyedRng) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let entries = [
        ("w/data.pkl", mutate::pickle(rng)),
        ("w/byteorder", b"little".to_vec()),
        ("w/data/0", vec![0x3f; 16]),
        ("w/version", b"3\n".to_vec()),
    ];
    for (name, content) in entries {
        archive.start_file(name, options).unwrap();
        archive.write_all(&content).unwrap();
    }
    let archive = archive.finish().unwrap().into_inner();
    if rng.random_bool(0.3) {
        mutate::bytes(rng, &archive, &[])
    } else {
        archive
    }
}

/// [`Weights::from_safetensors`], and whatever a model asks of them.
pub fn weights(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let bytes = file(rng, scratch);
    let path = scratch.write("weights", &bytes);
    let weights = match rng.random() {
        true => Weights::from_safetensors(path)?,
        false => Weights::from_safetensors_or_seed(path, Seed::new(1))?,
    };
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    for name in weights.left_over() {
        vb.get_unchecked(&name)?;
    }
    let _ = vb.get(draw::small(rng), "head.weight1");
    weights.check_exact(|_| false)
}

/// [`Pretrained`], and one of the models.
pub fn pretrained(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let bytes = file(rng, scratch);
    load(rng, &scratch.write("pretrained", &bytes), tiny)
}

/// The ViT of `fixtures/pth`, of a published form.
pub fn tiny(form: Config, side: usize) -> Config {
    let cfg = Config {
        embed_dim: 4,
        depth: 1,
        num_heads: 2,
        mlp_dim: 8,
        ..form
    };
    cfg.with_input(side, 2, 1)
}

/// Whatever a model asks of a checkpoint, most often a ViT that `vit` makes of a published form and the images' side.
pub fn load(rng: &mut KeyedRng, path: &Path, vit: fn(Config, usize) -> Config) -> Result<()> {
    let mut pretrained = match rng.random_range(0..6) {
        0 => Pretrained::open_key(path, pick(rng, &["model", "state_dict", "", ".", "a.b"]))?,
        _ => Pretrained::open(path)?,
    };
    if rng.random_bool(0.2) {
        pretrained = pretrained.with_grid(masksub::Grid::new(count(rng), count(rng)));
    }
    if rng.random_bool(0.3) {
        let ways = [
            Resize::Bicubic,
            Resize::AntialiasedBicubic,
            Resize::AlignedBicubic,
            Resize::AlignedLinear,
            Resize::Geometric,
        ];
        pretrained = pretrained.with_resize(pick(rng, &ways));
    }
    let weights = pretrained.weights(Seed::new(1));
    let vb = weights.var_builder(draw::dtype(rng), &Device::Cpu);
    let model = match rng.random_range(0..4) {
        0 => ResNet::new(&small_resnet(masksub::models::resnet::BlockKind::Basic), vb).map(drop),
        1 => SwinTransformer::new(&small_swin(), vb).map(drop),
        _ => {
            // Of the size that the file is for or another one, be it beyond all measure.
            let side = match rng.random_range(0..10) {
                0..5 => 4,
                5..9 => 2 * rng.random_range(1..9),
                _ => pick(rng, &[1 << 12, 1 << 17, 1 << 20, 1 << 33, usize::MAX - 1]),
            };
            let form = pick(rng, &[Config::mae_base(3), Config::mae_base(3), Config::deit3_tiny(3)]);
            let cfg = Config {
                pool: Pool::ClassToken,
                ..vit(form, side)
            };
            let in_channels = pick(rng, &[cfg.in_channels, cfg.in_channels, 1, 3, 2]);
            let cfg = Config { in_channels, ..cfg };
            VisionTransformer::new(&cfg, vb).map(drop)
        }
    };
    weights.notes();
    model?;
    weights.check_exact(|_| false)
}

/// [`Checkpoint::load_last`] of files that are damaged and of some that lie with a checksum, and what restores a run.
pub fn checkpoint(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let forged = forged_checkpoint(rng);
    let bytes = match rng.random_range(0..3) {
        0 => mutate::bytes(rng, &forged, &scratch.files[0]),
        _ => forged,
    };
    let path = scratch.write("run.safetensors", &bytes);
    let Some(found) = Checkpoint::load_last(path)? else {
        return Ok(());
    };
    let checkpoint = found.checkpoint;
    let var = Var::zeros((2, 3), DType::F32, &Device::Cpu)?;
    let params = Params::new([("w".to_string(), var.clone())]);
    let mut opt = AdamW::new(&params, AdamWConfig::default())?;
    let mut ema = Ema::new([("w".to_string(), var.clone())], 0.9)?.with_warmup();
    Weights::from_tensors(checkpoint.section("model")?.clone())
        .var_builder(DType::F32, &Device::Cpu)
        .get((2, 3), "w")?;
    opt.load_state(checkpoint.section("optim")?)?;
    ema.load_state(checkpoint.section("ema")?)?;
    ema.update()?;
    let mut grads = candle_core::backprop::GradStore::default();
    grads.insert(&var, Tensor::ones((2, 3), DType::F32, &Device::Cpu)?);
    opt.step(&grads)
}

/// A checkpoint of a run that says anything, with the checksum of that.
fn forged_checkpoint(rng: &mut KeyedRng) -> Vec<u8> {
    let mut tensors = BTreeMap::new();
    let shapes: [&[usize]; 4] = [&[2, 3], &[2, 3], &[], &[0, 3]];
    let parts = [
        "model/w",
        "optim/w.exp_avg",
        "optim/w.exp_avg_sq",
        "ema/average/w",
        "optim/w.step",
        "ema/updates",
    ];
    for part in parts {
        let is_count = part.ends_with("step") || part.ends_with("updates");
        let tensor = if is_count {
            let updates = pick(rng, &[0, 1, 7, -1, i64::MAX, i64::MIN, 1 << 53]);
            Tensor::new(updates, &Device::Cpu)
        } else {
            let shape = if rng.random_bool(0.9) {
                shapes[0]
            } else {
                pick(rng, &shapes)
            };
            let dtype = draw::dtype(rng);
            match shape.contains(&0) {
                // candle cannot save every empty one.
                true => Tensor::zeros(shape, dtype, &Device::Cpu),
                false => draw::tensor_of(rng, shape, dtype).and_then(|tensor| tensor.contiguous()),
            }
        };
        if rng.random_bool(0.97) {
            tensors.insert(part.to_string(), tensor.unwrap());
        }
    }
    if rng.random_bool(0.2) {
        let name = text(rng);
        tensors.insert(name, Tensor::new(1f32, &Device::Cpu).unwrap());
    }
    let numbers = [
        "0",
        "3",
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "1e3",
        "",
    ];
    let mut metadata = BTreeMap::from([("format".to_string(), "masksub-checkpoint".to_string())]);
    metadata.insert("version".into(), pick(rng, &["1", "1", "1", "1", "2"]).into());
    for key in ["step", "seed"] {
        let at = if rng.random_bool(0.8) { 0..2 } else { 0..7 };
        metadata.insert(key.into(), numbers[rng.random_range(at)].into());
    }
    metadata.insert(
        "sections".into(),
        pick(rng, &["model/optim/ema/", "///", "", "optim"]).into(),
    );
    if rng.random_bool(0.3) {
        metadata.insert(format!("setting/{}", text(rng)), text(rng));
    }
    metadata.insert("checksum".into(), checksum(&metadata, &tensors));
    let metadata: HashMap<_, _> = metadata.into_iter().collect();
    safetensors::serialize(&tensors, Some(metadata)).unwrap()
}

/// As `train::checkpoint` computes it: it finds what is torn, not what is forged.
fn checksum(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, Tensor>) -> String {
    let mut hasher = crc32fast::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (key, value) in metadata {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    for (name, tensor) in tensors {
        add(name.as_bytes());
        add(format!(
            "{:?} {:?}",
            safetensors::View::dtype(tensor),
            safetensors::View::shape(tensor)
        )
        .as_bytes());
        add(&tensor.data());
    }
    format!("{:08x}", hasher.finalize())
}
