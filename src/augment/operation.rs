//! One operation with its arguments: what is drawn for an image.

use super::blur::{self, MOST_RADIUS};
use super::geometry::Resample;
use super::image::Image;
use super::resize::Filter;
use super::{color, geometry, tone};
use crate::check;
use crate::error::Result;

/// An operation on an image with its arguments, as Pillow computes it: what [`ThreeAugment`](super::ThreeAugment),
/// [`RandAugment`](super::RandAugment) and [`ColorJitter`](super::ColorJitter) draw. The image keeps its size.
///
/// ```
/// use masksub::augment::{Filter, Image, Operation};
/// # fn main() -> masksub::Result<()> {
/// let mut image = Image::from_raw(2, 1, vec![250, 100, 0, 10, 20, 30])?;
/// Operation::solarize(128)?.apply(&mut image);
/// assert_eq!(image.as_raw(), [5, 100, 0, 10, 20, 30]);
/// Operation::rotate(90.0, Filter::Bicubic, [124, 116, 104])?.apply(&mut image);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operation(pub(super) Kind);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Grayscale,
    Solarize { threshold: u32 },
    SolarizeAdd { add: u8, threshold: u32 },
    Posterize { bits: u32 },
    Invert,
    AutoContrast,
    Equalize,
    GaussianBlur { radius: f64 },
    Brightness { factor: f64 },
    Contrast { factor: f64 },
    Saturation { factor: f64 },
    Sharpness { factor: f64 },
    Rotate { degrees: f64, resample: Resample },
    ShearX { factor: f64, resample: Resample },
    ShearY { factor: f64, resample: Resample },
    TranslateX { share: f64, resample: Resample },
    TranslateY { share: f64, resample: Resample },
}

impl Operation {
    /// Greyscale, in all three channels: Pillow's `convert("L").convert("RGB")`, ITU-R 601.
    pub fn grayscale() -> Self {
        Self(Kind::Grayscale)
    }

    /// Inverts values of at least `threshold`; 256 changes nothing. Pillow's `ImageOps.solarize`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `threshold` is above 256.
    pub fn solarize(threshold: u32) -> Result<Self> {
        let threshold = check::at_most("threshold", threshold, 256)?;
        Ok(Self(Kind::Solarize { threshold }))
    }

    /// Adds `add` to values below `threshold`, up to 255. timm's `solarize_add`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `threshold` is above 256.
    pub fn solarize_add(add: u8, threshold: u32) -> Result<Self> {
        let threshold = check::at_most("threshold", threshold, 256)?;
        Ok(Self(Kind::SolarizeAdd { add, threshold }))
    }

    /// Keeps the `bits` highest bits of each value. Pillow's `ImageOps.posterize`, with 0 (black) besides.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `bits` is above 8.
    pub fn posterize(bits: u32) -> Result<Self> {
        let bits = check::at_most("bits", bits, 8)?;
        Ok(Self(Kind::Posterize { bits }))
    }

    /// Inverts all values. Pillow's `ImageOps.invert`.
    pub fn invert() -> Self {
        Self(Kind::Invert)
    }

    /// Stretches each channel to 0 to 255. Pillow's `ImageOps.autocontrast`.
    pub fn auto_contrast() -> Self {
        Self(Kind::AutoContrast)
    }

    /// Spreads each channel's values evenly. Pillow's `ImageOps.equalize`.
    pub fn equalize() -> Self {
        Self(Kind::Equalize)
    }

    /// Gaussian blur of standard deviation `radius` in pixels, by box blurs. Pillow's `ImageFilter.GaussianBlur`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `radius` is not 0 to 1000.
    pub fn gaussian_blur(radius: f64) -> Result<Self> {
        let radius = check::in_range("radius", radius, 0.0..=MOST_RADIUS, "pixels")?;
        Ok(Self(Kind::GaussianBlur { radius }))
    }

    /// Blends with black: 0 is black, 1 the image, more is brighter. Pillow's `ImageEnhance.Brightness`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is negative, infinite or NaN.
    pub fn brightness(factor: f64) -> Result<Self> {
        let factor = check::non_negative("factor", factor)?;
        Ok(Self(Kind::Brightness { factor }))
    }

    /// Blends with the mean grey level: 0 is that, 1 the image. Pillow's `ImageEnhance.Contrast`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is negative, infinite or NaN.
    pub fn contrast(factor: f64) -> Result<Self> {
        let factor = check::non_negative("factor", factor)?;
        Ok(Self(Kind::Contrast { factor }))
    }

    /// Blends with greyscale: 0 is that, 1 the image. Pillow's `ImageEnhance.Color`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is negative, infinite or NaN.
    pub fn saturation(factor: f64) -> Result<Self> {
        let factor = check::non_negative("factor", factor)?;
        Ok(Self(Kind::Saturation { factor }))
    }

    /// Blends with a smoothed image: 0 is that, 1 the image. Pillow's `ImageEnhance.Sharpness`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is negative, infinite or NaN.
    pub fn sharpness(factor: f64) -> Result<Self> {
        let factor = check::non_negative("factor", factor)?;
        Ok(Self(Kind::Sharpness { factor }))
    }

    /// Turns counter-clockwise about the centre; what comes in from outside is `fill`. Pillow's `Image.rotate`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `degrees` is infinite or NaN.
    pub fn rotate(degrees: f64, filter: Filter, fill: [u8; 3]) -> Result<Self> {
        let (degrees, resample) = (check::finite("degrees", degrees)?, Resample { filter, fill });
        Ok(Self(Kind::Rotate { degrees, resample }))
    }

    /// Moves each row left by `factor` times its distance from the top. timm's `shear_x`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is infinite or NaN.
    pub fn shear_x(factor: f64, filter: Filter, fill: [u8; 3]) -> Result<Self> {
        let (factor, resample) = (check::finite("factor", factor)?, Resample { filter, fill });
        Ok(Self(Kind::ShearX { factor, resample }))
    }

    /// Moves each column up by `factor` times its distance from the left. timm's `shear_y`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `factor` is infinite or NaN.
    pub fn shear_y(factor: f64, filter: Filter, fill: [u8; 3]) -> Result<Self> {
        let (factor, resample) = (check::finite("factor", factor)?, Resample { filter, fill });
        Ok(Self(Kind::ShearY { factor, resample }))
    }

    /// Moves left by `share` of the width, right where it is negative. timm's `translate_x_rel`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `share` is infinite or NaN.
    pub fn translate_x(share: f64, filter: Filter, fill: [u8; 3]) -> Result<Self> {
        let (share, resample) = (check::finite("share", share)?, Resample { filter, fill });
        Ok(Self(Kind::TranslateX { share, resample }))
    }

    /// Moves up by `share` of the height, down where it is negative. timm's `translate_y_rel`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `share` is infinite or NaN.
    pub fn translate_y(share: f64, filter: Filter, fill: [u8; 3]) -> Result<Self> {
        let (share, resample) = (check::finite("share", share)?, Resample { filter, fill });
        Ok(Self(Kind::TranslateY { share, resample }))
    }

    /// Changes the image.
    pub fn apply(self, image: &mut Image) {
        match self.0 {
            Kind::Grayscale => color::grayscale(image),
            Kind::Solarize { threshold } => tone::solarize(image, threshold),
            Kind::SolarizeAdd { add, threshold } => tone::solarize_add(image, add, threshold),
            Kind::Posterize { bits } => tone::posterize(image, bits),
            Kind::Invert => tone::invert(image),
            Kind::AutoContrast => tone::auto_contrast(image),
            Kind::Equalize => tone::equalize(image),
            Kind::GaussianBlur { radius } => blur::gaussian_blur(image, radius),
            Kind::Brightness { factor } => color::brightness(image, factor),
            Kind::Contrast { factor } => color::contrast(image, factor),
            Kind::Saturation { factor } => color::saturation(image, factor),
            Kind::Sharpness { factor } => color::sharpness(image, factor),
            Kind::Rotate { degrees, resample } => *image = geometry::rotate(image, degrees, resample),
            Kind::ShearX { factor, resample } => *image = geometry::shear_x(image, factor, resample),
            Kind::ShearY { factor, resample } => *image = geometry::shear_y(image, factor, resample),
            Kind::TranslateX { share, resample } => *image = geometry::translate_x(image, share, resample),
            Kind::TranslateY { share, resample } => *image = geometry::translate_y(image, share, resample),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use crate::error::Error;

    type Make = fn(f64) -> Result<Operation>;

    const FILL: [u8; 3] = [9, 8, 7];

    /// Operations with a number for an argument.
    const WITH_A_NUMBER: [Make; 10] = [
        Operation::gaussian_blur,
        Operation::brightness,
        Operation::contrast,
        Operation::saturation,
        Operation::sharpness,
        |degrees| Operation::rotate(degrees, Filter::Bicubic, FILL),
        |factor| Operation::shear_x(factor, Filter::Bilinear, FILL),
        |factor| Operation::shear_y(factor, Filter::Bicubic, FILL),
        |share| Operation::translate_x(share, Filter::Bilinear, FILL),
        |share| Operation::translate_y(share, Filter::Bicubic, FILL),
    ];

    #[test]
    fn arguments_outside_their_range_are_refused_by_name() {
        for make in WITH_A_NUMBER {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let message = make(value).unwrap_err().to_string();
                assert!(message.contains(&format!(" is {value}, but must be ")), "{message}");
            }
        }
        for make in &WITH_A_NUMBER[..5] {
            assert!(make(-0.1).is_err());
        }
        assert!(Operation::gaussian_blur(1000.1).is_err());
        for refused in [
            Operation::solarize(257),
            Operation::solarize_add(1, 257),
            Operation::posterize(9),
        ] {
            assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
        }
    }

    // Whatever the arguments and however small the image: no panic, no other size.
    #[test]
    fn every_operation_takes_every_image() {
        let mut ops = vec![
            Operation::grayscale(),
            Operation::solarize(0).unwrap(),
            Operation::solarize_add(255, 256).unwrap(),
            Operation::posterize(0).unwrap(),
            Operation::invert(),
            Operation::auto_contrast(),
            Operation::equalize(),
        ];
        for value in [0.0, f64::MIN_POSITIVE, 1e-9, 0.3, 1.0, 17.0, 1000.0, 1e18, f64::MAX] {
            ops.extend(WITH_A_NUMBER.iter().filter_map(|make| make(value).ok()));
            ops.extend(WITH_A_NUMBER.iter().filter_map(|make| make(-value).ok()));
        }
        for (width, height) in [(1, 1), (2, 1), (1, 3), (3, 3), (17, 5)] {
            for &op in &ops {
                let mut image = noise(width, height);
                op.apply(&mut image);
                assert_eq!(
                    (image.width, image.height, image.pixels.len()),
                    (width, height, width * height * 3)
                );
            }
        }
    }
}
