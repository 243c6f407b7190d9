//! An image in memory, and how its pixels are moved and resized.

use anyhow::{Context, Result};
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
use rand::Rng;
use std::cell::RefCell;

/// Red, green and blue.
pub const CHANNELS: usize = 3;

/// Eight-bit RGB `[height, width, 3]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    pub width: usize,
    pub height: usize,
    pub values: Vec<u8>,
}

/// A box in an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// How values between pixels are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Bicubic,
}

/// Which filter an image gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Interpolation {
    Bilinear,
    Bicubic,
    /// One of the two for each image and each operation, as timm's default is
    Random,
}

impl Interpolation {
    pub fn draw(self, rng: &mut impl Rng) -> Filter {
        match self {
            Self::Bilinear => Filter::Bilinear,
            Self::Bicubic => Filter::Bicubic,
            Self::Random => [Filter::Bilinear, Filter::Bicubic][rng.random_range(0..2)],
        }
    }

    /// Where nothing may be drawn, in evaluation: bicubic, as in all recipes, unless it is bilinear throughout.
    pub fn fixed(self) -> Filter {
        match self {
            Self::Bicubic | Self::Random => Filter::Bicubic,
            Self::Bilinear => Filter::Bilinear,
        }
    }
}

thread_local! {
    // Keeps its buffers between images.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

impl Pixels {
    pub fn whole(&self) -> Area {
        Area {
            left: 0,
            top: 0,
            width: self.width,
            height: self.height,
        }
    }

    pub fn row(&self, y: usize) -> &[u8] {
        let stride = self.width * CHANNELS;
        &self.values[y * stride..(y + 1) * stride]
    }

    /// `area` at another size, antialiased when it shrinks. Pixels outside `area` play no part: cut, then resized.
    pub fn resized(&self, area: Area, width: usize, height: usize, filter: Filter) -> Result<Self> {
        if area == self.whole() {
            let window = Area {
                left: 0,
                top: 0,
                width,
                height,
            };
            return self.resized_window(width, height, window, filter);
        }
        let (left, top) = (area.left as u32, area.top as u32);
        let source = TypedCroppedImage::new(self.view()?, left, top, area.width as u32, area.height as u32)?;
        resize(&source, width, height, &options(filter)).with_context(|| format!("resizing {area:?}"))
    }

    /// The part `window` of what the whole image would be at `width` x `height`. Only that part is computed, which is what
    /// makes a strip of one pixel by a thousand affordable.
    pub fn resized_window(&self, width: usize, height: usize, window: Area, filter: Filter) -> Result<Self> {
        let (x, y) = (self.width as f64 / width as f64, self.height as f64 / height as f64);
        // Rounding must not carry the right or lower edge over the image's.
        let (left, top) = (window.left as f64 * x, window.top as f64 * y);
        let options = options(filter).crop(
            left,
            top,
            (window.width as f64 * x).min(self.width as f64 - left),
            (window.height as f64 * y).min(self.height as f64 - top),
        );
        resize(&self.view()?, window.width, window.height, &options)
            .with_context(|| format!("resizing {}x{} to {width}x{height}", self.width, self.height))
    }

    fn view(&self) -> Result<TypedImageRef<'_, U8x3>> {
        let view = TypedImageRef::from_buffer(self.width as u32, self.height as u32, &self.values);
        Ok(view?)
    }

    pub fn cropped(&self, area: Area) -> Self {
        let columns = area.left * CHANNELS..(area.left + area.width) * CHANNELS;
        let rows = area.top..area.top + area.height;
        Self {
            width: area.width,
            height: area.height,
            values: rows.flat_map(|y| &self.row(y)[columns.clone()]).copied().collect(),
        }
    }

    /// Left and right exchanged.
    pub fn mirror(&mut self) {
        let (pixels, _) = self.values.as_chunks_mut::<CHANNELS>();
        pixels.chunks_exact_mut(self.width.max(1)).for_each(<[_]>::reverse);
    }

    /// An image whose pixel (x, y) is this one's at (columns\[x\], rows\[y\]).
    pub fn gathered(&self, columns: &[usize], rows: &[usize]) -> Self {
        let mut values = Vec::with_capacity(columns.len() * rows.len() * CHANNELS);
        for &y in rows {
            let (row, _) = self.row(y).as_chunks::<CHANNELS>();
            values.extend(columns.iter().flat_map(|&x| row[x]));
        }
        Self {
            width: columns.len(),
            height: rows.len(),
            values,
        }
    }
}

fn options(filter: Filter) -> ResizeOptions {
    let filter = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        // Catmull and Rom's cubic (a = -1/2) is Pillow's BICUBIC for resizing.
        Filter::Bicubic => FilterType::CatmullRom,
    };
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter))
}

fn resize(
    source: &impl ImageView<Pixel = U8x3>,
    width: usize,
    height: usize,
    options: &ResizeOptions,
) -> Result<Pixels> {
    let mut values = vec![0; width * height * CHANNELS];
    let mut target = TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut values)?;
    RESIZER.with_borrow_mut(|resizer| resizer.resize_typed(source, &mut target, options))?;
    Ok(Pixels { width, height, values })
}
