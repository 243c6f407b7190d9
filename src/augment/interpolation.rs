//! The filter that an image gets, fixed or drawn.

use rand::Rng;

use super::resize::Filter;

/// The filter of an operation that is drawn for each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interpolation {
    /// [`Filter::Bilinear`].
    Bilinear,
    /// [`Filter::Bicubic`], as the recipes for transformers have it.
    Bicubic,
    /// One of the two for each image and each operation, as timm's default is.
    Random,
}

impl Interpolation {
    /// The filter of one operation. Only [`Random`](Self::Random) draws.
    pub fn draw(self, rng: &mut impl Rng) -> Filter {
        match self {
            Self::Bilinear => Filter::Bilinear,
            Self::Bicubic => Filter::Bicubic,
            Self::Random => [Filter::Bilinear, Filter::Bicubic][rng.random_range(0..2)],
        }
    }

    /// The filter where nothing may be drawn, in evaluation: bicubic, as in all recipes, unless it is bilinear
    /// throughout.
    pub fn fixed(self) -> Filter {
        match self {
            Self::Bicubic | Self::Random => Filter::Bicubic,
            Self::Bilinear => Filter::Bilinear,
        }
    }
}
