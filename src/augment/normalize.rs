//! Mean and standard deviation: from eight-bit pixels to what a model sees.

use candle_core::{Device, Tensor};

use super::color::luma;
use super::image::{Image, CHANNELS};
use crate::check;
use crate::error::{Error, Result};

/// Turns eight-bit values into (value / 255 - mean) / std, channel by channel: torchvision's `ToTensor` and
/// `Normalize`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    mean: [f64; CHANNELS],
    std: [f64; CHANNELS],
}

impl Normalize {
    /// Mean and deviation of ImageNet's training images, as the recipes of DeiT-III, MAE, Swin and ResNet use them.
    pub const IMAGENET: Self = Self {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };

    /// Mean and deviation of the images that OpenAI trained CLIP on.
    pub const CLIP: Self = Self {
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
    };

    /// Values from -1 to 1: Hugging Face's `IMAGENET_STANDARD_MEAN` and `_STD`, which its ViT's checkpoints take, and timm's
    /// `IMAGENET_INCEPTION_MEAN` and `_STD`.
    pub const INCEPTION: Self = Self {
        mean: [0.5; CHANNELS],
        std: [0.5; CHANNELS],
    };

    /// Mean and standard deviation of red, green and blue, of values in [0, 1].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a mean is infinite or NaN, or a standard deviation is not above 0 and finite;
    /// when pixels would become so large that f32 does not hold them.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Result<Self> {
        for (&mean, &std) in mean.iter().zip(&std) {
            check::finite("mean", mean)?;
            check::positive("std", std)?;
            check_finite(mean, std)?;
        }
        check_finite(average(mean), average(std))?;
        Ok(Self { mean, std })
    }

    /// The means of red, green and blue.
    pub fn mean(&self) -> [f64; 3] {
        self.mean
    }

    /// The standard deviations of red, green and blue.
    pub fn std(&self) -> [f64; 3] {
        self.std
    }

    /// The mean as a colour, which normalises to (nearly) 0: for what comes into view where an image was moved away.
    pub fn mean_color(&self) -> [u8; 3] {
        self.mean.map(|mean| (mean * 255.0).round_ties_even() as u8)
    }

    /// The normalised image [3, H, W] on `device`, f32.
    ///
    /// # Errors
    /// candle's, when the device has no room for it.
    pub fn to_tensor(&self, image: &Image, device: &Device) -> Result<Tensor> {
        let shape = (CHANNELS, image.height(), image.width());
        Ok(Tensor::from_vec(self.to_vec(image), shape, device)?)
    }

    /// The normalised values [3, H, W].
    pub fn to_vec(&self, image: &Image) -> Vec<f32> {
        let mut values = vec![0.0; image.as_raw().len()];
        self.fill(image, &mut values);
        values
    }

    /// Writes the normalised values [3, H, W] to `out`, such as an image's place in its batch.
    ///
    /// # Errors
    /// [`Error::Shape`] when `out` has another length.
    pub fn write(&self, image: &Image, out: &mut [f32]) -> Result<()> {
        check_len(out, CHANNELS, image)?;
        self.fill(image, out);
        Ok(())
    }

    /// Writes the normalised grey levels [1, H, W] to `out`, by the average of mean and deviation over the three
    /// colours.
    ///
    /// # Errors
    /// [`Error::Shape`] when `out` has another length.
    pub fn write_gray(&self, image: &Image, out: &mut [f32]) -> Result<()> {
        check_len(out, 1, image)?;
        let (pixels, _) = image.as_raw().as_chunks::<CHANNELS>();
        let table = table(average(self.mean), average(self.std));
        let grays = pixels.iter().map(|&pixel| table[luma(pixel) as usize]);
        out.iter_mut().zip(grays).for_each(|(out, gray)| *out = gray);
        Ok(())
    }

    fn fill(&self, image: &Image, out: &mut [f32]) {
        let (pixels, _) = image.as_raw().as_chunks::<CHANNELS>();
        let (red, rest) = out.split_at_mut(pixels.len());
        let (green, blue) = rest.split_at_mut(pixels.len());
        let tables: [_; CHANNELS] = std::array::from_fn(|c| table(self.mean[c], self.std[c]));
        for (((&[r, g, b], red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
            *red = tables[0][r as usize];
            *green = tables[1][g as usize];
            *blue = tables[2][b as usize];
        }
    }
}

/// Of the three colours, for grey levels.
fn average(values: [f64; CHANNELS]) -> f64 {
    values.iter().sum::<f64>() / CHANNELS as f64
}

fn check_len(out: &[f32], channels: usize, image: &Image) -> Result<()> {
    let (height, width) = (image.height(), image.width());
    if out.len() == channels * height * width {
        return Ok(());
    }
    let expected = format!("[{channels} * {height} * {width}]");
    Err(Error::shape("out", &[out.len()], expected))
}

/// Refuses what would make infinite numbers, or none, of an image.
fn check_finite(mean: f64, std: f64) -> Result<()> {
    let table = table(mean, std);
    if table.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    let value = format!("{std} for a mean of {mean}");
    Err(Error::invalid(
        "std",
        value,
        "such that normalised pixels are finite in f32",
    ))
}

/// The value of each of the 256 levels.
fn table(mean: f64, std: f64) -> [f32; 256] {
    let (mean, std) = (mean as f32, std as f32);
    std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std)
}

#[cfg(test)]
mod tests {
    use super::super::testing::image;
    use super::*;

    #[test]
    fn each_channel_has_its_mean_and_std_and_grey_their_average() {
        let image = image(2, 1, vec![255, 255, 255, 0, 51, 255]);
        let colour = Normalize::IMAGENET.to_vec(&image);
        let expected = [
            (1.0 - 0.485) / 0.229,
            -0.485 / 0.229,
            (1.0 - 0.456) / 0.224,
            (0.2 - 0.456) / 0.224,
            (1.0 - 0.406) / 0.225,
            (1.0 - 0.406) / 0.225,
        ];
        assert!(colour
            .iter()
            .zip(expected)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5));
        let mut grey = [0f32; 2];
        Normalize::IMAGENET.write_gray(&image, &mut grey).unwrap();
        let level = (0.587 * 51.0 + 0.114 * 255f32).round() / 255.0;
        let expected = [(1.0 - 0.449) / 0.226, (level - 0.449) / 0.226];
        assert!(grey.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!(Normalize::IMAGENET.mean_color(), [124, 116, 104]);
    }

    #[test]
    fn tensors_hold_the_channels_one_after_another() {
        let image = image(2, 3, (0..18).collect());
        let unit = Normalize::new([0.0; 3], [1.0 / 255.0; 3]).unwrap();
        let tensor = unit.to_tensor(&image, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [3, 3, 2]);
        let expected: Vec<f32> = (0..18).map(|i| (i % 6 * 3 + i / 6) as f32).collect();
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(
            values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5),
            "{values:?}"
        );
    }

    #[test]
    fn settings_and_sizes_are_checked() {
        let image = image(2, 1, vec![0; 6]);
        for (mean, std) in [
            (f64::NAN, 1.0),
            (f64::INFINITY, 1.0),
            (0.5, 0.0),
            (0.5, -1.0),
            (0.5, f64::NAN),
            // In f32, infinite, nothing, and too small to divide by.
            (1e39, 1e39),
            (0.0, 1e-300),
            (1.0, 1e-39),
        ] {
            assert!(Normalize::new([0.5, 0.5, mean], [1.0, 1.0, std]).is_err());
        }
        for len in [0, 2, 5, 7] {
            assert!(Normalize::IMAGENET.write(&image, &mut vec![0.0; len]).is_err());
        }
        for len in [0, 1, 3, 6] {
            assert!(Normalize::IMAGENET.write_gray(&image, &mut vec![0.0; len]).is_err());
        }
    }
}
