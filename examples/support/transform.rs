//! From an image file to the numbers a model sees: decode, crop, resize, flip, normalise.

use super::data::{rng, Purpose};
use anyhow::{ensure, Context, Result};
use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{ImageFormat, ImageReader};
use rand::Rng;
use std::io::Cursor;
use std::path::Path;

/// Mean and standard deviation of red, green and blue, of values in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl Normalization {
    /// Of ImageNet's training images, as all ViT, Swin and ResNet recipes use them.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };

    /// Of the images that OpenAI trained CLIP on.
    pub const CLIP: Self = Self {
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
    };

    /// A grey image takes the average over the three colours.
    fn channel(&self, channel: usize, channels: usize) -> (f32, f32) {
        let of = |values: [f64; 3]| match channels {
            1 => (values.iter().sum::<f64>() / 3.) as f32,
            _ => values[channel] as f32,
        };
        (of(self.mean), of(self.std))
    }
}

/// How training images are varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Augment {
    /// A box of 8 to 100 % of the image and of aspect 3/4 to 4/3, resized (Inception's crop); mirrored half the time
    ResizedCrop,
    /// Shifted by up to an eighth of the side in both directions, edges repeated; never mirrored
    Shift,
    /// As in evaluation
    None,
}

/// Everything that turns a file into `[C, H, W]`.
#[derive(Clone, Debug)]
pub struct Transform {
    /// Height and width of the result.
    pub image_size: usize,
    /// 1 or 3; images with another number of channels are converted (an alpha channel is dropped).
    pub channels: usize,
    pub normalization: Normalization,
    /// Evaluation crops this share of the shorter side.
    pub crop_share: f64,
    pub augment: Augment,
}

/// Which draws an image gets: none in evaluation.
#[derive(Clone, Copy)]
pub enum Draw {
    Train { seed: u64, epoch: usize, index: usize },
    Test,
}

impl Transform {
    /// The image of `path` as `C * image_size * image_size` normalised values, channel by channel.
    pub fn load(&self, path: &Path, draw: Draw) -> Result<Vec<f32>> {
        let image = Pixels::decode(path, self.channels)?;
        self.apply(&image, draw)
    }

    fn apply(&self, image: &Pixels, draw: Draw) -> Result<Vec<f32>> {
        let size = self.image_size;
        let square = match (draw, self.augment) {
            (Draw::Test, _) | (_, Augment::None) => self.centre_crop(image)?,
            (Draw::Train { seed, epoch, index }, augment) => {
                let mut rng = rng(seed, epoch, index, Purpose::Augment);
                if augment == Augment::ResizedCrop {
                    let area = inception_box(image.width, image.height, &mut rng);
                    let crop = image.resized(area, size, size)?;
                    match rng.random::<bool>() {
                        true => crop.mirrored(),
                        false => crop,
                    }
                } else {
                    let reach = (size / 8) as i32;
                    let mut by = || rng.random_range(-reach..=reach) as isize;
                    self.centre_crop(image)?.shifted(by(), by())
                }
            }
        };
        Ok(square.normalized(&self.normalization))
    }

    /// Shorter side resized to `image_size / crop_share`, then the centre (as torchvision's `Resize` and `CenterCrop`).
    fn centre_crop(&self, image: &Pixels) -> Result<Pixels> {
        let size = self.image_size;
        let shorter = ((size as f64 / self.crop_share) as usize).max(size);
        let longer = |long: usize, short: usize| (shorter * long / short).max(shorter);
        let (width, height) = match image.width <= image.height {
            true => (shorter, longer(image.height, image.width)),
            false => (longer(image.width, image.height), shorter),
        };
        let whole = Area {
            left: 0,
            top: 0,
            width: image.width,
            height: image.height,
        };
        let centre = |side: usize| ((side - size) as f64 / 2.).round_ties_even() as usize;
        Ok(image
            .resized(whole, width, height)?
            .cropped(centre(width), centre(height), size))
    }
}

/// A box in an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// Inception's crop as torchvision's `RandomResizedCrop` draws it: ten tries at a box of the drawn area and aspect,
/// then the largest centred box whose aspect is allowed.
fn inception_box(width: usize, height: usize, rng: &mut impl Rng) -> Area {
    let (lowest, highest) = (3. / 4., 4. / 3.);
    for _ in 0..10 {
        let area = (width * height) as f64 * rng.random_range(0.08..1.0);
        let aspect = rng.random_range(f64::ln(lowest)..f64::ln(highest)).exp();
        let w = (area * aspect).sqrt().round_ties_even() as usize;
        let h = (area / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let mut place = |room: usize| rng.random_range(0..=room as u32) as usize;
            let top = place(height - h);
            return Area {
                left: place(width - w),
                top,
                width: w,
                height: h,
            };
        }
    }
    let aspect = (width as f64 / height as f64).clamp(lowest, highest);
    let w = width.min((height as f64 * aspect).round_ties_even() as usize).max(1);
    let h = height.min((width as f64 / aspect).round_ties_even() as usize).max(1);
    Area {
        left: (width - w) / 2,
        top: (height - h) / 2,
        width: w,
        height: h,
    }
}

/// Whether an end marker (FF D9) follows the start of the image data (FF DA). Segments before that, with a thumbnail in
/// one of them maybe, are passed over.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2; // behind the start marker
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xda => return bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]),
            0xff => at += 1, // a fill byte
            _ => at += 2 + u16::from_be_bytes([high, low]) as usize,
        }
    }
    false
}

/// Eight-bit pixels, row by row, the channels of a pixel side by side.
#[derive(Clone, Debug, PartialEq)]
struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    values: Vec<u8>,
}

impl Pixels {
    /// The format is told by the content, not by the name.
    fn decode(path: &Path, channels: usize) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
        // The decoder takes a JPEG that was cut off for a whole one and leaves the rest of it grey.
        ensure!(
            reader.format() != Some(ImageFormat::Jpeg) || jpeg_ends(&bytes),
            "the JPEG is cut off"
        );
        let image = reader.decode()?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let values = match channels {
            1 => image.into_luma8().into_raw(),
            _ => image.into_rgb8().into_raw(),
        };
        Ok(Self {
            width,
            height,
            channels,
            values,
        })
    }

    /// `area` at another size, bicubic and antialiased as Pillow does it. Pixels outside `area` play no part.
    fn resized(&self, area: Area, width: usize, height: usize) -> Result<Self> {
        let kind = match self.channels {
            1 => PixelType::U8,
            _ => PixelType::U8x3,
        };
        let whole = ImageRef::new(self.width as u32, self.height as u32, &self.values, kind)?;
        let (left, top) = (area.left as u32, area.top as u32);
        let source = CroppedImage::new(&whole, left, top, area.width as u32, area.height as u32)?;
        let mut target = Image::new(width as u32, height as u32, kind);
        // Catmull and Rom's cubic (a = -1/2) is Pillow's BICUBIC.
        let bicubic = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        Resizer::new()
            .resize(&source, &mut target, &bicubic)
            .with_context(|| format!("resizing {area:?} to {width}x{height}"))?;
        Ok(Self {
            width,
            height,
            channels: self.channels,
            values: target.into_vec(),
        })
    }

    /// The square of side `size` whose upper left corner is (left, top).
    fn cropped(&self, left: usize, top: usize, size: usize) -> Self {
        self.rearranged(size, size, |x, y| (left + x, top + y))
    }

    fn mirrored(&self) -> Self {
        self.rearranged(self.width, self.height, |x, y| (self.width - 1 - x, y))
    }

    fn shifted(&self, right: isize, down: isize) -> Self {
        let from = |at: usize, by: isize, side: usize| (at as isize - by).clamp(0, side as isize - 1) as usize;
        self.rearranged(self.width, self.height, |x, y| {
            (from(x, right, self.width), from(y, down, self.height))
        })
    }

    /// An image whose pixel (x, y) is this one's at `from(x, y)`.
    fn rearranged(&self, width: usize, height: usize, from: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        let mut values = Vec::with_capacity(width * height * self.channels);
        for y in 0..height {
            for x in 0..width {
                let (x, y) = from(x, y);
                let start = (y * self.width + x) * self.channels;
                values.extend_from_slice(&self.values[start..start + self.channels]);
            }
        }
        Self {
            width,
            height,
            channels: self.channels,
            values,
        }
    }

    fn normalized(&self, by: &Normalization) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.values.len());
        for channel in 0..self.channels {
            let (mean, std) = by.channel(channel, self.channels);
            let plane = self.values[channel..].iter().step_by(self.channels);
            values.extend(plane.map(|&value| (value as f32 / 255. - mean) / std));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transform(image_size: usize, channels: usize, augment: Augment) -> Transform {
        Transform {
            image_size,
            channels,
            normalization: Normalization {
                mean: [0.; 3],
                std: [1. / 255.; 3],
            },
            crop_share: 1.,
            augment,
        }
    }

    /// Every pixel tells where it is: red is x, green is y, blue is 7.
    fn ramp(width: usize, height: usize) -> Pixels {
        let values = (0..width * height)
            .flat_map(|i| [(i % width) as u8, (i / width) as u8, 7])
            .collect();
        Pixels {
            width,
            height,
            channels: 3,
            values,
        }
    }

    fn draw(index: usize) -> Draw {
        Draw::Train {
            seed: 1,
            epoch: 2,
            index,
        }
    }

    #[test]
    fn evaluation_takes_the_centre_channel_by_channel() {
        // 12x8 at size 8: columns 2 to 9.
        let values = transform(8, 3, Augment::ResizedCrop)
            .apply(&ramp(12, 8), Draw::Test)
            .unwrap();
        let (red, green, blue) = (&values[..64], &values[64..128], &values[128..]);
        for i in 0..64 {
            assert!((red[i] - (2 + i % 8) as f32).abs() < 1e-4);
            assert!((green[i] - (i / 8) as f32).abs() < 1e-4);
            assert!((blue[i] - 7.).abs() < 1e-4);
        }
    }

    #[test]
    fn crop_share_leaves_a_margin() {
        let mut transform = transform(8, 3, Augment::None);
        transform.crop_share = 0.5; // 16 pixels, of which the middle eight
        let values = transform.apply(&ramp(16, 16), Draw::Test).unwrap();
        assert!((values[0] - 4.).abs() < 1e-4 && (values[63] - 11.).abs() < 1e-4);
    }

    #[test]
    fn normalises_by_mean_and_std_per_channel_and_by_their_average_for_grey() {
        let white = |channels| Pixels {
            width: 1,
            height: 1,
            channels,
            values: vec![255; channels],
        };
        let colour = white(3).normalized(&Normalization::IMAGENET);
        let expected = [(1. - 0.485) / 0.229, (1. - 0.456) / 0.224, (1. - 0.406) / 0.225];
        assert!(colour
            .iter()
            .zip(expected)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5));
        let grey = white(1).normalized(&Normalization::IMAGENET);
        assert!((grey[0] - (1. - 0.449) / 0.226).abs() < 1e-5);
    }

    #[test]
    fn inception_boxes_have_the_allowed_area_and_aspect() {
        let (mut smallest, mut largest) = (f64::MAX, 0f64);
        for index in 0..2000 {
            let area = inception_box(400, 300, &mut rng(0, 0, index, Purpose::Augment));
            assert!(area.left + area.width <= 400 && area.top + area.height <= 300);
            let share = (area.width * area.height) as f64 / (400. * 300.);
            let aspect = area.width as f64 / area.height as f64;
            assert!(
                (0.0785..=1.).contains(&share) && (0.73..1.36).contains(&aspect),
                "{area:?}"
            );
            (smallest, largest) = (smallest.min(share), largest.max(share));
        }
        assert!(smallest < 0.1 && largest > 0.9, "{smallest} {largest}");
    }

    #[test]
    fn images_too_narrow_for_any_aspect_give_a_centred_box() {
        let area = inception_box(10, 1000, &mut rng(0, 0, 0, Purpose::Augment));
        assert_eq!((area.width, area.left), (10, 0));
        assert!(
            (12..=14).contains(&area.height) && (490..=496).contains(&area.top),
            "{area:?}"
        );
        inception_box(1, 1, &mut rng(0, 0, 0, Purpose::Augment));
    }

    #[test]
    fn draws_depend_on_the_key_alone_and_mirror_half_the_images() {
        let transform = transform(16, 3, Augment::ResizedCrop);
        let image = ramp(64, 48);
        let first = transform.apply(&image, draw(0)).unwrap();
        assert_eq!(first, transform.apply(&image, draw(0)).unwrap());
        assert_ne!(first, transform.apply(&image, draw(1)).unwrap());
        let mirrored = |i| {
            let red = transform.apply(&image, draw(i)).unwrap();
            red[0] > red[15] // x falls from left to right
        };
        let n = (0..400).filter(|&i| mirrored(i)).count();
        assert!((150..250).contains(&n), "{n} of 400 mirrored"); // standard deviation 10
    }

    #[test]
    fn shifts_stay_in_reach_and_repeat_the_edge() {
        let transform = transform(16, 3, Augment::Shift);
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..500 {
            let values = transform.apply(&ramp(16, 16), draw(index)).unwrap();
            let middle = 8 * 16 + 8;
            let (right, down) = (8. - values[middle], 8. - values[256 + middle]);
            seen.insert((right.round() as i32, down.round() as i32));
            let corner = (0f32.max(-right), 0f32.max(-down));
            assert!((values[0] - corner.0).abs() < 1e-4 && (values[256] - corner.1).abs() < 1e-4);
        }
        assert_eq!(seen.len(), 25); // -2..=2 in both directions
    }

    #[test]
    fn resizing_is_antialiased_and_blind_to_what_lies_outside() {
        // Every eighth column is bright: an eighth of the light, wherever a pixel of the small image is sampled. Right of
        // the box all is bright, and must not leak in.
        let (width, height) = (64, 32);
        let bright = |x: usize| if x >= 32 || x.is_multiple_of(8) { 200 } else { 0 };
        let stripes = Pixels {
            width,
            height,
            channels: 1,
            values: (0..width * height).map(|i| bright(i % width)).collect(),
        };
        let left = Area {
            left: 0,
            top: 0,
            width: 32,
            height: 32,
        };
        let small = stripes.resized(left, 4, 4).unwrap();
        let row: Vec<u8> = (0..4)
            .map(|at| widened_cubic(&|x| bright(x) as f64, 32, 4, at))
            .collect();
        assert!(row.iter().all(|v| (10..=40).contains(v)), "{row:?}");
        let off = |(at, v): (usize, &u8)| v.abs_diff(row[at % 4]);
        assert!(
            small.values.iter().enumerate().all(|pixel| off(pixel) <= 1),
            "{:?}",
            small.values
        );
    }

    /// Pixel `at` of `to`, from `from` pixels, by Pillow's rule: the cubic of Keys (a = -1/2), as wide as the reduction,
    /// cut at the border and normalised.
    fn widened_cubic(pixel: &dyn Fn(usize) -> f64, from: usize, to: usize, at: usize) -> u8 {
        let scale = from as f64 / to as f64;
        let cubic = |x: f64| match x.abs() {
            x if x < 1. => (1.5 * x - 2.5) * x * x + 1.,
            x if x < 2. => ((-0.5 * x + 2.5) * x - 4.) * x + 2.,
            _ => 0.,
        };
        let centre = (at as f64 + 0.5) * scale;
        let weights: Vec<f64> = (0..from).map(|x| cubic((x as f64 + 0.5 - centre) / scale)).collect();
        let sum: f64 = weights.iter().enumerate().map(|(x, w)| w * pixel(x)).sum();
        (sum / weights.iter().sum::<f64>()).round() as u8
    }
}
