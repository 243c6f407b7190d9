//! Images per second of the examples' input pipeline, on JPEGs of ImageNet's typical size that are made on the spot.
//!
//!     cargo bench --bench pipeline -- --threads 2 --json
//!
//! An image is read, decoded, cropped, varied as a recipe says and normalised into its batch; batches are taken as fast as
//! they come. `benches/peer/pipeline.py` does the same with torchvision.

// A bench without a harness drops the tests in it, but not what they import.
#[allow(unused_imports)]
#[path = "../examples/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::{value_parser, Parser, ValueEnum};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use rayon::prelude::*;
use serde_json::json;
use support::augment::crop::RandomResizedCrop;
use support::augment::pixels::{Area, Filter, Interpolation, Pixels};
use support::augment::rand_augment::RandAugment;
use support::data::{rng, Dataset, Purpose};
use support::image_tree::{ImageTree, Unreadable};
use support::transform::{Augment, AutoAugment, Crop, Normalization, Transform};

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

impl Recipe {
    fn augment(self) -> Augment {
        let crop = Augment {
            crop: Crop::RandomResized(RandomResizedCrop::default()),
            flip: 0.5,
            ..Augment::NONE
        };
        match self {
            Self::Crop => crop,
            Self::ThreeAugment => Augment {
                auto: AutoAugment::Three,
                colour_jitter: 0.3,
                ..crop
            },
            Self::RandAugment => Augment {
                auto: AutoAugment::Rand(RandAugment::new(9.)),
                erasing: 0.25,
                ..crop
            },
            Self::Eval => Augment::NONE,
        }
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let scratch = tempfile::tempdir()?;
    let data = flags.data.clone().unwrap_or(scratch.path().join("images"));
    if !data.exists() {
        make_images(&data, flags.images)?;
    }
    let recipes = flags
        .recipe
        .map_or(Recipe::value_variants().to_vec(), |recipe| vec![recipe]);
    recipes
        .into_iter()
        .try_for_each(|recipe| measure(recipe, &data, &flags))
}

fn measure(recipe: Recipe, data: &Path, flags: &Flags) -> Result<()> {
    let transform = Transform {
        image_size: 224,
        channels: 3,
        normalization: Normalization::IMAGENET,
        interpolation: Interpolation::Bicubic,
        crop_share: 0.875,
        augment: recipe.augment(),
    };
    let tree = ImageTree::open(data, transform, Unreadable::Error, None, 0, flags.threads, &Device::Cpu)?;
    let mut rates = Vec::new();
    for epoch in 0..=flags.iters as usize {
        let start = Instant::now();
        let mut images = 0;
        for batch in tree.train_batches(0, epoch, flags.batch, 0) {
            images += batch?.labels.dim(0)?;
        }
        if epoch > 0 {
            rates.push(images as f64 / start.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let name = recipe.to_possible_value().context("every recipe has a name")?;
    let name = name.get_name();
    if flags.json {
        let line = json!({
            "recipe": name, "threads": flags.threads, "images": tree.train_len(), "images_per_s": median,
        });
        println!("{line}");
    } else {
        println!("{name:13} {} threads: {median:7.1} images/s", flags.threads);
    }
    Ok(())
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
        let mut rng = rng(7, 0, i, Purpose::Crop);
        let wide = RandomResizedCrop {
            scale: (0.3, 1.),
            aspect: (1.3, 1.36),
        };
        let area: Area = wide.draw(photograph.width, photograph.height, &mut rng);
        let mut image = photograph.resized(area, WIDTH, HEIGHT, Filter::Bicubic)?;
        grain(&mut image, &mut rng);
        let mut encoder = Encoder::new_file(dir.join(format!("{i:05}.jpg")), 90)?;
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(&image.values, WIDTH as u16, HEIGHT as u16, ColorType::Rgb)?;
        Ok(())
    };
    (0..count).into_par_iter().try_for_each(|i| make("train", i))?;
    (0..4).try_for_each(|i| make("val", i))
}

fn grain(image: &mut Pixels, rng: &mut impl rand::Rng) {
    const STRENGTH: i16 = 24;
    for pixel in image.values.chunks_exact_mut(3) {
        let by = rng.random_range(-STRENGTH..=STRENGTH);
        pixel.iter_mut().for_each(|v| *v = v.saturating_add_signed(by as i8));
    }
}

/// 120 x 88 pixels.
fn photograph() -> Result<Pixels> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/augment.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu)
        .with_context(|| format!("reading the photograph in {}", file.display()))?;
    let input = tensors.get("input").context("no input")?;
    let (height, width, _) = input.dims3()?;
    Ok(Pixels {
        width,
        height,
        values: input.flatten_all()?.to_vec1()?,
    })
}
