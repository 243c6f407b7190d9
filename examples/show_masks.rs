//! Shows what each branch and generator hides at several ratios, on real images.
//!
//!     cargo run --release --example show_masks
//!     cargo run --release --example show_masks -- cat.jpg dog.png --out masks.svg
//!
//! The branches run as they do in training, on models that return what they are given: the picture is of what a network's
//! sub-branch sees. It is an SVG with the images in it.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use base64::prelude::{Engine, BASE64_STANDARD};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};
use masksub::{
    BlockMasking, DropToken, Grid, Mask, MaskToken, MaskTokenModel, Pass, PatchDrop, Plain, RandomMasking, Seed,
    SubBranch, TokenModel,
};

/// Shows what each branch and generator hides at several ratios, on real images
#[derive(Parser)]
struct Flags {
    /// Images, JPEG, PNG or WebP. Without any: handwritten digits, each pixel as 8 x 8
    files: Vec<PathBuf>,
    /// Shares that are hidden
    #[arg(long, value_delimiter = ',', default_value = "0.25,0.5,0.75")]
    ratios: Vec<f64>,
    /// Decides what is hidden
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the picture goes
    #[arg(long, default_value = "masks.svg")]
    out: PathBuf,
}

/// Side of the images, of a token and of a block, in pixels: eight by eight tokens, four by four blocks.
const SIDE: usize = 64;
const PATCH: usize = 8;
const BLOCK: usize = 16;
/// A square of tokens that are dropped together.
const SQUARE: usize = 2;
const CHANNELS: usize = 3;

/// Colours where a token is missing, and where a mask token stands.
const NOTHING: [f32; CHANNELS] = [1.0, 0.88, 0.68];
const MASK_TOKEN: [f32; CHANNELS] = [0.0, 0.447, 0.698];

/// A token `[D]` of one colour.
fn token(colour: [f32; CHANNELS]) -> candle_core::Result<Tensor> {
    let colour = Tensor::new(&colour, &Device::Cpu)?.unsqueeze(1)?;
    colour.broadcast_as((CHANNELS, PATCH * PATCH))?.flatten_all()
}

/// A ViT of no block: its tokens are patches, and what comes out is the image of those that it was given.
struct Patches;

/// A Swin of no block.
struct Positions {
    mask_token: Tensor,
}

/// Patches `[B, L, 3 * PATCH * PATCH]` of images `[B, 3, SIDE, SIDE]`, and back.
fn patches(xs: &Tensor) -> candle_core::Result<Tensor> {
    let (batch, side) = (xs.dim(0)?, SIDE / PATCH);
    let cut = xs.reshape(&[batch, CHANNELS, side, PATCH, side, PATCH][..])?;
    let cut = cut.permute(vec![0, 2, 4, 1, 3, 5])?;
    cut.reshape((batch, side * side, CHANNELS * PATCH * PATCH))
}

fn images(tokens: &Tensor) -> candle_core::Result<Tensor> {
    let (batch, side) = (tokens.dim(0)?, SIDE / PATCH);
    let tokens = tokens.reshape(&[batch, side, side, CHANNELS, PATCH, PATCH][..])?;
    let rows = tokens.permute(vec![0, 3, 1, 4, 2, 5])?;
    rows.reshape((batch, CHANNELS, SIDE, SIDE))
}

fn grid() -> Grid {
    Grid::new(SIDE / PATCH, SIDE / PATCH)
}

impl TokenModel for Patches {
    fn grid(&self, _: &Tensor) -> candle_core::Result<Grid> {
        Ok(grid())
    }

    fn num_prefix_tokens(&self) -> usize {
        0
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        match keep {
            Some(mask) => Ok(mask.gather(&patches(xs)?, 0)?),
            None => patches(xs),
        }
    }

    /// Puts the tokens where they come from.
    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        let Some(mask) = keep else { return images(tokens) };
        let (batch, _, width) = tokens.dims3()?;
        let places = mask.keep_indices(tokens.device())?.unsqueeze(2)?;
        let places = places.broadcast_as(tokens.dims())?.contiguous()?;
        let nothing = token(NOTHING)?
            .broadcast_as((batch, grid().len(), width))?
            .contiguous()?;
        images(&nothing.scatter(&places, tokens, 1)?)
    }
}

impl MaskTokenModel for Positions {
    fn mask_token(&self) -> &Tensor {
        &self.mask_token
    }

    fn embed(&self, xs: &Tensor, _: &mut Pass) -> candle_core::Result<(Tensor, Grid)> {
        Ok((patches(xs)?, grid()))
    }

    fn classify(&self, tokens: &Tensor, _: Grid, _: &mut Pass) -> candle_core::Result<Tensor> {
        images(tokens)
    }
}

/// What is shown beside each other: a name, and what the sub-branch sees of images at a ratio.
type Shown = (&'static str, &'static str, fn(&Tensor, f64, Seed) -> Result<Tensor>);

const SHOWN: [Shown; 4] = [
    ("DropToken", "RandomMasking", |xs, ratio, seed| {
        seen(&DropToken::new(RandomMasking::new(ratio)?), &Patches, xs, seed)
    }),
    ("DropToken", "BlockMasking", |xs, ratio, seed| {
        seen(&DropToken::new(BlockMasking::new(ratio, SQUARE)?), &Patches, xs, seed)
    }),
    ("PatchDrop", "RandomMasking", |xs, ratio, seed| {
        let branch = PatchDrop::new(RandomMasking::new(ratio)?, BLOCK)?;
        // It fills with zero, which is the mean of images that are normalised.
        let mean = xs.mean_all()?;
        let seen = seen(
            &branch,
            &Plain(|xs: &Tensor| Ok(xs.clone())),
            &xs.broadcast_sub(&mean)?,
            seed,
        )?;
        Ok(seen.broadcast_add(&mean)?)
    }),
    ("MaskToken", "RandomMasking", |xs, ratio, seed| {
        let mask_token = token(MASK_TOKEN)?;
        let branch = MaskToken::new(RandomMasking::new(ratio)?, BLOCK)?;
        seen(&branch, &Positions { mask_token }, xs, seed)
    }),
];

fn seen<M, S: SubBranch<M>>(branch: &S, model: &M, xs: &Tensor, seed: Seed) -> Result<Tensor> {
    Ok(branch.sub(model, xs, &mut Pass::train_sub(seed.at(0)))?.0)
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let xs = if flags.files.is_empty() {
        digits()?
    } else {
        let files = flags.files.iter().map(|path| open(path));
        Tensor::stack(&files.collect::<Result<Vec<_>>>()?, 0)?
    };
    let mut columns = vec![xs.clone()];
    for (.., sees) in SHOWN {
        for &ratio in &flags.ratios {
            columns.push(sees(&xs, ratio, Seed::new(flags.seed))?);
        }
    }
    let svg = svg(&tiles(&columns)?, &flags.ratios)?;
    std::fs::write(&flags.out, svg).with_context(|| format!("cannot write {}", flags.out.display()))?;
    println!("{}", flags.out.display());
    Ok(())
}

/// Some of the digits that ship with the examples, in grey: `[B, 3, SIDE, SIDE]`, 0 to 1.
fn digits() -> Result<Tensor> {
    const FIRST: usize = 4;
    let file = candle_core::safetensors::load_buffer(include_bytes!("data/digits.safetensors"), &Device::Cpu)?;
    let images = file.get("images").context("there are images")?.narrow(0, 0, FIRST)?;
    let grey = (images.to_dtype(DType::F32)?.unsqueeze(1)? / 16.0)?;
    Ok(grey.upsample_nearest2d(SIDE, SIDE)?.repeat((1, CHANNELS, 1, 1))?)
}

/// An image's middle as `[3, SIDE, SIDE]`, 0 to 1.
fn open(path: &Path) -> Result<Tensor> {
    let image = image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = image
        .resize_to_fill(SIDE as u32, SIDE as u32, FilterType::CatmullRom)
        .to_rgb8();
    let pixels = Tensor::from_vec(image.into_raw(), (SIDE, SIDE, CHANNELS), &Device::Cpu)?;
    Ok((pixels.permute((2, 0, 1))?.to_dtype(DType::F32)? / 255.0)?)
}

/// Pixels between tiles, and between what different branches see.
const GAP: usize = 4;
const WIDE_GAP: usize = 16;

/// Where a column of the picture begins.
fn left(column: usize, ratios: usize) -> usize {
    let groups = column.div_ceil(ratios);
    column * (SIDE + GAP) + groups * (WIDE_GAP - GAP)
}

/// Columns of images `[B, 3, SIDE, SIDE]` beside each other.
fn tiles(columns: &[Tensor]) -> Result<RgbImage> {
    let (rows, ratios) = (columns[0].dim(0)?, (columns.len() - 1) / SHOWN.len());
    ensure!(ratios > 0, "--ratios is empty");
    let width = left(columns.len() - 1, ratios) + SIDE;
    let mut picture = RgbImage::from_pixel(width as u32, (rows * (SIDE + GAP) - GAP) as u32, image::Rgb([255; 3]));
    for (column, images) in columns.iter().enumerate() {
        for row in 0..rows {
            let pixels = (images.get(row)?.permute((1, 2, 0))? * 255.0)?;
            let pixels: Vec<u8> = pixels
                .flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .map(|v| v.round() as u8)
                .collect();
            let tile = RgbImage::from_raw(SIDE as u32, SIDE as u32, pixels).context("a tile has all of its pixels")?;
            let (x, y) = (left(column, ratios), row * (SIDE + GAP));
            image::imageops::replace(&mut picture, &tile, x as i64, y as i64);
        }
    }
    Ok(picture)
}

/// The picture with the columns' names above it.
fn svg(picture: &RgbImage, ratios: &[f64]) -> Result<String> {
    const ABOVE: u32 = 56;
    const LINE: u32 = 17;
    let mut png = Cursor::new(vec![]);
    picture.write_to(&mut png, ImageFormat::Png)?;
    let (width, height) = picture.dimensions();
    let mut texts = String::new();
    let mut write = |x: usize, line: u32, text: &str| {
        let y = line * LINE;
        texts += &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>\n");
    };
    let middle = |first: usize, last: usize| (left(first, ratios.len()) + left(last, ratios.len()) + SIDE) / 2;
    write(middle(0, 0), 3, "image");
    for (group, (branch, masking, _)) in SHOWN.iter().enumerate() {
        let first = 1 + group * ratios.len();
        let of_all = middle(first, first + ratios.len() - 1);
        write(of_all, 1, branch);
        write(of_all, 2, masking);
        for (i, ratio) in ratios.iter().enumerate() {
            write(middle(first + i, first + i), 3, &ratio.to_string());
        }
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" width=\"{width}\" height=\"{total}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{texts}\
         <image y=\"{ABOVE}\" width=\"{width}\" height=\"{height}\" href=\"data:image/png;base64,{data}\"/>\n</svg>\n",
        total = height + ABOVE,
        data = BASE64_STANDARD.encode(png.into_inner()),
    ))
}
