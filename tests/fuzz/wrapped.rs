//! Readers of checkpoints in other things: shards and their index, directories, archives of arrays, gzip; and of every
//! format that is recorded.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use masksub::models::vit::Config;
use masksub::{KeyedRng, Result};
use rand::Rng as _;

use crate::draw::{pick, text};
use crate::{mutate, readers, Scratch};

/// The recorded ViTs, whose images have as many patches a side as `side` says: 4 where they are as recorded.
fn as_recorded(form: Config, side: usize) -> Config {
    let cfg = Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 96,
        num_classes: 9,
        ..form
    };
    cfg.with_input(side.saturating_mul(8), 8, 3)
}

/// A directory of shards, some of them torn, and an index that says anything.
pub fn shards(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let directory = scratch.path("shards");
    fs::create_dir_all(&directory).unwrap();
    for entry in fs::read_dir(&directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/hf_vit_sharded");
    let shard = |number: usize| format!("model-{number:05}-of-00003.safetensors");
    for number in 1..4 {
        let bytes = fs::read(recorded.join(shard(number))).unwrap();
        let bytes = match rng.random_range(0..8) {
            0 => readers::file(rng, scratch),
            1 => mutate::bytes(rng, &bytes, &[]),
            2 => continue,
            _ => bytes,
        };
        fs::write(directory.join(shard(number)), bytes).unwrap();
    }
    let index = fs::read(recorded.join("model.safetensors.index.json")).unwrap();
    let index = match rng.random_range(0..6) {
        0 => None,
        1 => Some(mutate::bytes(rng, &index, b"\"../../x\"")),
        2 => Some(index_of_anything(rng).into_bytes()),
        _ => Some(index),
    };
    if let Some(index) = index {
        fs::write(directory.join("model.safetensors.index.json"), index).unwrap();
    }
    let first = shard(rng.random_range(1..4));
    let path = match rng.random_range(0..3) {
        0 => directory,
        1 => directory.join("model.safetensors.index.json"),
        _ => directory.join(first),
    };
    readers::load(rng, &path, as_recorded)
}

/// A directory as `save_pretrained` and OpenCLIP leave it, with any file under any of the names that are looked for.
pub fn directory(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    const NAMES: [&str; 8] = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
        "model-00001-of-00002.safetensors",
    ];
    let directory = scratch.path("directory");
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    for _ in 0..rng.random_range(0..4) {
        let path = directory.join(pick(rng, &NAMES));
        // A name may be that of a directory.
        if path.exists() || rng.random_bool(0.05) {
            let _ = fs::create_dir(path);
            continue;
        }
        let content = match rng.random_range(0..4) {
            0 => index_of_anything(rng).into_bytes(),
            1 => recorded(rng, scratch),
            _ => readers::file(rng, scratch),
        };
        fs::write(path, content).unwrap();
    }
    match rng.random() {
        true => readers::load(rng, &directory, as_recorded),
        false => readers::load(rng, &directory, readers::tiny),
    }
}

/// A recorded checkpoint of any format, as it is or with something changed.
pub fn every_format(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let (bytes, other) = (recorded(rng, scratch), readers::file(rng, scratch));
    let bytes = match rng.random_bool(0.9) {
        true => mutate::bytes(rng, &bytes, &other),
        false => bytes,
    };
    readers::load(rng, &scratch.write("recorded", &bytes), as_recorded)
}

/// One of the recorded checkpoints.
fn recorded(rng: &mut KeyedRng, scratch: &Scratch) -> Vec<u8> {
    fs::read(&scratch.recorded[rng.random_range(0..scratch.recorded.len())]).unwrap()
}

fn index_of_anything(rng: &mut KeyedRng) -> String {
    let entries: Vec<_> = (0..rng.random_range(0..6))
        .map(|_| {
            let name = text(rng);
            let names = ["model-00001-of-00003.safetensors", "..", "/dev/zero", ".", "", &name];
            format!("{:?}: {:?}", text(rng), pick(rng, &names))
        })
        .collect();
    format!("{{\"weight_map\": {{{}}}}}", entries.join(", "))
}

/// Google's archives with something changed, and archives of arrays that say anything.
pub fn arrays(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let bytes = match rng.random_range(0..4) {
        0 => {
            let name = pick(rng, &["google_vit.npz", "big_vision.npz"]);
            mutate::bytes(rng, &fs::read(models.join(name)).unwrap(), &[])
        }
        1 => archive(rng, &BIG_VISION),
        _ => archive(rng, &GOOGLE),
    };
    match rng.random() {
        true => readers::load(rng, &scratch.write("w.npz", &bytes), as_recorded),
        false => readers::load(rng, &scratch.write("w.npz", &bytes), readers::tiny),
    }
}

/// Names and shapes of Google's small ViT.
const GOOGLE: [(&str, &str); 7] = [
    ("cls", "(1, 1, 4)"),
    ("embedding/kernel", "(2, 2, 1, 4)"),
    ("Transformer/posembed_input/pos_embedding", "(1, 5, 4)"),
    (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        "(4, 2, 2)",
    ),
    (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel",
        "(2, 2, 4)",
    ),
    (
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias",
        "(2, 2)",
    ),
    ("head/kernel", "(4, 3)"),
];

/// The same of `big_vision`, whose blocks are in one array each.
const BIG_VISION: [(&str, &str); 8] = [
    ("params/cls", "(1, 1, 4)"),
    ("params/embedding/kernel", "(2, 2, 1, 4)"),
    ("params/pos_embedding", "(1, 5, 4)"),
    ("params/Transformer/encoderblock/LayerNorm_0/scale", "(1, 4)"),
    (
        "params/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel",
        "(1, 4, 2, 2)",
    ),
    (
        "params/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias",
        "(1, 2, 2)",
    ),
    ("params/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", "(1, 4, 8)"),
    ("params/head/kernel", "(4, 3)"),
];

/// An archive of arrays of these names, whose headers lie.
fn archive(rng: &mut KeyedRng, names: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, shape) in names {
        let number = |rng: &mut KeyedRng| pick(rng, &["0", "2", "4", "-1", "18446744073709551615", "4294967296", "x"]);
        let shape = match rng.random_bool(0.15) {
            true => format!("({}, {})", number(rng), number(rng)),
            false => shape.to_string(),
        };
        let descr = if rng.random_bool(0.9) {
            "<f4"
        } else {
            pick(rng, &["<f8", "|V2", "|O", ">f4", ""])
        };
        let order = if rng.random_bool(0.95) { "False" } else { "True" };
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let len = match rng.random_bool(0.95) {
            true => header.len() as u16,
            false => rng.random(),
        };
        let version = if rng.random_bool(0.95) { 1 } else { rng.random() };
        let numbers = vec![0x3e; rng.random_range(60..300)];
        let array = [
            b"\x93NUMPY",
            &[version, 0][..],
            &len.to_le_bytes(),
            header.as_bytes(),
            &numbers,
        ]
        .concat();
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(&array).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// Files that gzip made of others, torn at times, or of very many zeros.
pub fn gzip(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let file = match rng.random_range(0..20) {
        0 => vec![0; rng.random_range(1 << 20..40 << 20)],
        _ => readers::file(rng, scratch),
    };
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(&file).unwrap();
    let compressed = encoder.finish().unwrap();
    let bytes = match rng.random_bool(0.4) {
        true => mutate::bytes(rng, &compressed, &file),
        false => compressed,
    };
    readers::load(rng, &scratch.write("w.gz", &bytes), readers::tiny)
}
