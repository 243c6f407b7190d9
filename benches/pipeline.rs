//! Images per second of the recipes' transforms, on JPEGs of ImageNet's typical size that are made on the spot.
//!
//!     cargo bench --bench pipeline -- --threads 2 --json
//!
//! An image is read, decoded, cropped, varied as a recipe says and normalised into its batch; batches are taken as fast as
//! they come. `benches/peer/pipeline.py` does the same with torchvision.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::{value_parser, Parser, ValueEnum};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use masksub::augment::{
    ColorJitter, Filter, HorizontalFlip, Image, Normalize, RandAugment, RandomErasing, RandomResizedCrop,
    ResizeCenterCrop, ThreeAugment,
};
use masksub::{KeyedRng, Purpose, Seed};
use rand::Rng;
use rayon::prelude::*;
use serde_json::json;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::JpegDecoder;

#[derive(Parser)]
struct Flags {
    /// Threads that decode and vary images
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The recipe
    #[arg(long, value_enum)]
    recipe: Option<Recipe>,
    /// Measured epochs, after one that is not
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    iters: u32,
    /// Images in a batch
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Images in an epoch, where they are made
    #[arg(long, default_value_t = 512)]
    images: usize,
    /// Take the images of this tree (train/CLASS/*, val/CLASS/*), made here if it does not exist
    #[arg(long)]
    data: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Recipe {
    /// Decoding, random resized crop, flip, normalisation
    Crop,
    /// DeiT-III's
    ThreeAugment,
    /// The fine-tuning recipes'
    RandAugment,
    /// Evaluation's resize and centre crop
    Eval,
}

const SIDE: usize = 224;
const LEN: usize = 3 * SIDE * SIDE;

fn main() -> Result<()> {
    let flags = Flags::parse();
    let scratch = tempfile::tempdir()?;
    let data = flags.data.clone().unwrap_or(scratch.path().join("images"));
    if !data.exists() {
        make_images(&data, flags.images)?;
    }
    let files = files(&data.join("train"))?;
    let recipes = flags
        .recipe
        .map_or(Recipe::value_variants().to_vec(), |recipe| vec![recipe]);
    recipes
        .into_iter()
        .try_for_each(|recipe| measure(recipe, &files, &flags))
}

fn measure(recipe: Recipe, files: &[PathBuf], flags: &Flags) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(flags.threads).build()?;
    let mut rates = Vec::new();
    for epoch in 0..=flags.iters as usize {
        let start = Instant::now();
        for (i, batch) in files.chunks(flags.batch).enumerate() {
            let mut values = vec![0f32; batch.len() * LEN];
            // A thread takes one image at a time: their costs differ.
            pool.install(|| {
                let images = values.par_chunks_exact_mut(LEN).zip(batch).enumerate().with_max_len(1);
                images.try_for_each(|(j, (out, file))| {
                    let rng = |what| Seed::new(0).at(epoch).rng(i * flags.batch + j, Purpose::custom(what));
                    decoded(file, |image| prepare(recipe, image, rng, out))
                })
            })?;
            Tensor::from_vec(values, (batch.len(), 3, SIDE, SIDE), &Device::Cpu)?;
        }
        if epoch > 0 {
            rates.push(files.len() as f64 / start.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let name = recipe.to_possible_value().context("every recipe has a name")?;
    let (name, threads, images) = (name.get_name(), flags.threads, files.len());
    if flags.json {
        let line = json!({"recipe": name, "threads": threads, "images": images, "images_per_s": median});
        println!("{line}");
    } else {
        println!("{name:13} {threads} threads: {median:7.1} images/s");
    }
    Ok(())
}

/// The recipe's transforms, each with draws of its own, into `out` [3, H, W].
fn prepare(recipe: Recipe, image: &Image, rng: impl Fn(u32) -> KeyedRng, out: &mut [f32]) -> Result<()> {
    let normalize = Normalize::IMAGENET;
    if recipe == Recipe::Eval {
        let image = ResizeCenterCrop::new(SIDE)?.with_crop_pct(0.875)?.apply(image)?;
        return Ok(normalize.write(&image, out)?);
    }
    let mut image = RandomResizedCrop::new(SIDE)?.apply(image, &mut rng(0))?;
    HorizontalFlip::new(0.5)?.apply(&mut image, &mut rng(1));
    match recipe {
        Recipe::ThreeAugment => {
            ThreeAugment.apply(&mut image, &mut rng(2));
            ColorJitter::new(0.3)?.apply(&mut image, &mut rng(3));
        }
        Recipe::RandAugment => RandAugment::new(9.0)?.apply(&mut image, &mut rng(2)),
        Recipe::Crop | Recipe::Eval => {}
    }
    normalize.write(&image, out)?;
    if recipe == Recipe::RandAugment {
        RandomErasing::new(0.25)?.apply(out, (SIDE, SIDE), &mut rng(4))?;
    }
    Ok(())
}

thread_local! {
    // A file's bytes, and an image's pixels. Fresh memory costs the system as much as a tenth of the decoding.
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

fn decoded(file: &Path, then: impl FnOnce(&Image) -> Result<()>) -> Result<()> {
    use std::io::Read;
    let (mut bytes, mut pixels) = BUFFERS.take();
    bytes.clear();
    std::fs::File::open(file)?.read_to_end(&mut bytes)?;
    let mut decoder = JpegDecoder::new(ZCursor::new(&bytes[..]));
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().context("it has no size")?;
    pixels.resize(width * height * 3, 0);
    decoder.decode_into(&mut pixels)?;
    let image = Image::from_raw(width, height, pixels)?;
    then(&image)?;
    BUFFERS.set((bytes, image.into_raw()));
    Ok(())
}

/// The files of all classes.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for class in std::fs::read_dir(root)? {
        for file in std::fs::read_dir(class?.path())? {
            files.push(file?.path());
        }
    }
    files.sort();
    Ok(files)
}

/// 500 x 375 pixels, colour at half the resolution: what ImageNet's files are in the median. Pieces of the photograph
/// among the fixtures, enlarged, with film grain: without it, an enlarged picture would compress to a quarter of ImageNet's 110 kB.
fn make_images(root: &Path, count: usize) -> Result<()> {
    const WIDTH: usize = 500;
    const HEIGHT: usize = 375;
    let photograph = photograph()?;
    let make = |split: &str, i: usize| -> Result<()> {
        let dir = root.join(split).join(format!("class{}", i % 4));
        std::fs::create_dir_all(&dir)?;
        let mut rng = Seed::new(7).at(0).rng(i, Purpose::custom(3));
        let wide = RandomResizedCrop::new(SIDE)?
            .with_scale(0.3, 1.0)?
            .with_ratio(1.3, 1.36)?;
        let rect = wide.draw(&photograph, &mut rng);
        let mut image = photograph.resized_crop(rect, WIDTH, HEIGHT, Filter::Bicubic)?;
        grain(&mut image, &mut rng);
        let mut encoder = Encoder::new_file(dir.join(format!("{i:05}.jpg")), 90)?;
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(image.as_raw(), WIDTH as u16, HEIGHT as u16, ColorType::Rgb)?;
        Ok(())
    };
    (0..count).into_par_iter().try_for_each(|i| make("train", i))?;
    (0..4).try_for_each(|i| make("val", i))
}

fn grain(image: &mut Image, rng: &mut impl Rng) {
    const STRENGTH: i16 = 24;
    for pixel in image.as_raw_mut().chunks_exact_mut(3) {
        let by = rng.random_range(-STRENGTH..=STRENGTH);
        pixel.iter_mut().for_each(|v| *v = v.saturating_add_signed(by as i8));
    }
}

/// 120 x 88 pixels.
fn photograph() -> Result<Image> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/augment.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu)
        .with_context(|| format!("reading the photograph in {}", file.display()))?;
    let input = tensors.get("input").context("no input")?;
    let (height, width, _) = input.dims3()?;
    Ok(Image::from_raw(width, height, input.flatten_all()?.to_vec1()?)?)
}
