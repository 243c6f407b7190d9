//! One operation with its arguments: what a recipe has drawn for an image.

use super::pixels::{Filter, Pixels, CHANNELS};
use super::{blur, colour, geometry, tone};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Greyscale,
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
    Rotate { degrees: f64, filter: Filter },
    ShearX { factor: f64, filter: Filter },
    ShearY { factor: f64, filter: Filter },
    TranslateX { share: f64, filter: Filter },
    TranslateY { share: f64, filter: Filter },
}

impl Op {
    /// Changes the image; what comes in from outside has the colour `fill`.
    pub fn apply(self, image: &mut Pixels, fill: [u8; CHANNELS]) {
        match self {
            Self::Greyscale => colour::greyscale(image),
            Self::Solarize { threshold } => tone::solarize(image, threshold),
            Self::SolarizeAdd { add, threshold } => tone::solarize_add(image, add, threshold),
            Self::Posterize { bits } => tone::posterize(image, bits),
            Self::Invert => tone::invert(image),
            Self::AutoContrast => tone::auto_contrast(image),
            Self::Equalize => tone::equalize(image),
            Self::GaussianBlur { radius } => blur::gaussian_blur(image, radius),
            Self::Brightness { factor } => colour::brightness(image, factor),
            Self::Contrast { factor } => colour::contrast(image, factor),
            Self::Saturation { factor } => colour::saturation(image, factor),
            Self::Sharpness { factor } => colour::sharpness(image, factor),
            Self::Rotate { degrees, filter } => *image = geometry::rotate(image, degrees, fill, filter),
            Self::ShearX { factor, filter } => *image = geometry::shear_x(image, factor, fill, filter),
            Self::ShearY { factor, filter } => *image = geometry::shear_y(image, factor, fill, filter),
            Self::TranslateX { share, filter } => *image = geometry::translate_x(image, share, fill, filter),
            Self::TranslateY { share, filter } => *image = geometry::translate_y(image, share, fill, filter),
        }
    }
}
