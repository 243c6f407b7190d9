//! The image transforms, of settings and sizes that nobody would give.

use candle_core::Device;
use masksub::augment::{
    ColorJitter, Filter, HorizontalFlip, Image, Interpolation, Normalize, Operation, RandAugment, RandomErasing,
    RandomResizedCrop, RandomShift, Rect, ResizeCenterCrop, SimpleRandomCrop, ThreeAugment,
};
use masksub::{KeyedRng, Result};
use rand::Rng as _;

use crate::draw::{count, float, pick};
use crate::Scratch;

const FILTERS: [Filter; 2] = [Filter::Bilinear, Filter::Bicubic];

/// A picture of one to 40 pixels on each side, most often.
fn picture(rng: &mut KeyedRng) -> Result<Image> {
    let [width, height] = [0; 2].map(|_| pick(rng, &[1, 1, 2, 3, 5, 8, 16, 33, 40]));
    if rng.random_bool(0.1) {
        return Image::from_raw(count(rng), count(rng), vec![7; rng.random_range(0..40)]);
    }
    let mut pixels = vec![0; width * height * 3];
    if rng.random_bool(0.8) {
        rng.fill(&mut pixels[..]);
    }
    Image::from_raw(width, height, pixels)
}

/// A side: one that fits in memory as a square, or none.
fn side(rng: &mut KeyedRng) -> usize {
    match count(rng) {
        side @ 4097..1_000_000 => side % 4096,
        side => side,
    }
}

fn interpolation(rng: &mut KeyedRng) -> Interpolation {
    const ALL: [Interpolation; 3] = [Interpolation::Random, Interpolation::Bilinear, Interpolation::Bicubic];
    pick(rng, &ALL)
}

fn assert_size(image: &Image, width: usize, height: usize) {
    assert_eq!((image.width(), image.height()), (width, height));
    assert_eq!(image.as_raw().len(), width * height * 3);
}

/// Crops and resizing.
pub fn crops(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let image = picture(rng)?;
    let (size, other) = (side(rng), side(rng));
    let filter = pick(rng, &FILTERS);
    match rng.random_range(0..6) {
        0 => assert_size(&image.resized(size, other, filter)?, size, other),
        1 => {
            let rect = Rect {
                left: count(rng),
                top: count(rng),
                width: count(rng),
                height: count(rng),
            };
            assert_size(&image.resized_crop(rect, size, other, filter)?, size, other);
        }
        2 => {
            let crop = RandomResizedCrop::new(size)?.with_interpolation(interpolation(rng));
            let crop = crop.with_scale(float(rng), float(rng))?;
            let crop = if rng.random() {
                crop.with_ratio(float(rng), float(rng))?
            } else {
                crop
            };
            assert_size(&crop.apply(&image, rng)?, size, size);
        }
        3 => {
            let crop = SimpleRandomCrop::new(size)?
                .with_padding(count(rng))?
                .with_interpolation(interpolation(rng));
            assert_size(&crop.apply(&image, rng)?, size, size);
            assert_size(&crop.crop_at(&image, count(rng), count(rng), filter)?, size, size);
        }
        4 => {
            let crop = ResizeCenterCrop::new(size)?.with_filter(filter);
            let crop = match rng.random() {
                true => crop.with_crop_pct(float(rng))?,
                false => crop.with_shorter_side(side(rng))?,
            };
            assert_size(&crop.apply(&image)?, size, size);
        }
        _ => {
            let shifted = RandomShift::new(count(rng))?.apply(&image, rng);
            assert_size(&shifted, image.width(), image.height());
        }
    }
    Ok(())
}

/// Colours, geometry, and what chooses among them.
pub fn operations(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let mut image = picture(rng)?;
    let (width, height) = (image.width(), image.height());
    let (filter, fill) = (pick(rng, &FILTERS), [rng.random(), rng.random(), rng.random()]);
    let threshold = count(rng) as u32;
    match rng.random_range(0..20) {
        0 => Operation::grayscale().apply(&mut image),
        1 => Operation::solarize(threshold)?.apply(&mut image),
        2 => Operation::solarize_add(rng.random(), threshold)?.apply(&mut image),
        3 => Operation::posterize(count(rng) as u32)?.apply(&mut image),
        4 => Operation::invert().apply(&mut image),
        5 => Operation::auto_contrast().apply(&mut image),
        6 => Operation::equalize().apply(&mut image),
        7 => Operation::gaussian_blur(float(rng) * 4.0)?.apply(&mut image),
        8 => Operation::brightness(float(rng))?.apply(&mut image),
        9 => Operation::contrast(float(rng))?.apply(&mut image),
        10 => Operation::saturation(float(rng))?.apply(&mut image),
        11 => Operation::sharpness(float(rng))?.apply(&mut image),
        12 => Operation::rotate(float(rng) * 360.0, filter, fill)?.apply(&mut image),
        13 => Operation::shear_x(float(rng), filter, fill)?.apply(&mut image),
        14 => Operation::shear_y(float(rng), filter, fill)?.apply(&mut image),
        15 => Operation::translate_x(float(rng), filter, fill)?.apply(&mut image),
        16 => Operation::translate_y(float(rng), filter, fill)?.apply(&mut image),
        17 => ColorJitter::new(float(rng))?.apply(&mut image, rng),
        18 => {
            HorizontalFlip::new(float(rng))?.apply(&mut image, rng);
            ThreeAugment.apply(&mut image, rng);
        }
        _ => {
            let operations = RandAugment::new(float(rng) * 10.0)?
                .with_num_ops(count(rng))?
                .with_magnitude_std(float(rng))?
                .with_prob(float(rng))?
                .with_interpolation(interpolation(rng));
            operations.apply(&mut image, rng);
        }
    }
    assert_size(&image, width, height);
    Ok(())
}

/// What makes numbers of pixels, and erases some.
pub fn numbers(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let image = picture(rng)?;
    let mut three = || [float(rng), float(rng), float(rng)];
    let normalize = Normalize::new(three(), three())?;
    let values = normalize.to_tensor(&image, &Device::Cpu)?.flatten_all()?;
    let values = values.to_vec1::<f32>()?;
    assert!(values.iter().all(|value| !value.is_nan()), "NaN of {normalize:?}");
    let mut out = vec![
        0.0;
        if rng.random_bool(0.8) {
            values.len()
        } else {
            count(rng).min(1 << 16)
        }
    ];
    normalize.write(&image, &mut out)?;
    let size = match rng.random_bool(0.8) {
        true => (image.height(), image.width()),
        false => (count(rng), count(rng)),
    };
    RandomErasing::new(float(rng))?.apply(&mut out, size, rng)
}

/// Resizing asks for the tables of its weights, too, which for a strip are most of what it takes.
#[test]
fn a_strip_is_refused_before_memory_ends() {
    let image = Image::from_raw(3, 8, vec![7; 72]).unwrap();
    let made = [8, 19, 20, 24].map(|height| image.resized(4, height << 20, Filter::Bicubic).is_ok());
    assert!(made[0] && !made[3], "{made:?}");
}
