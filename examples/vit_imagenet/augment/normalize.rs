//! From eight-bit pixels to what a model sees: (value / 255 - mean) / std, channel by channel.

use super::colour::luma;
use super::pixels::{Pixels, CHANNELS};

/// Mean and standard deviation of red, green and blue, of values in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    pub mean: [f64; CHANNELS],
    pub std: [f64; CHANNELS],
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

    /// The mean as a colour, which normalises to (nearly) 0: what comes into view where an image was moved away.
    pub fn mean_colour(&self) -> [u8; CHANNELS] {
        self.mean.map(|mean| (mean * 255.).round_ties_even() as u8)
    }

    /// Writes `[C, height, width]`, with C = 3, or 1 for the grey level, which takes the average over the three colours.
    pub fn write(&self, image: &Pixels, out: &mut [f32]) {
        let (pixels, _) = image.values.as_chunks::<CHANNELS>();
        let plane = pixels.len();
        if out.len() == plane {
            let average = |values: [f64; CHANNELS]| values.iter().sum::<f64>() / CHANNELS as f64;
            let table = table(average(self.mean), average(self.std));
            let greys = pixels.iter().map(|&pixel| table[luma(pixel) as usize]);
            return out.iter_mut().zip(greys).for_each(|(out, grey)| *out = grey);
        }
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let tables: [_; CHANNELS] = std::array::from_fn(|c| table(self.mean[c], self.std[c]));
        for (((&[r, g, b], red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
            *red = tables[0][r as usize];
            *green = tables[1][g as usize];
            *blue = tables[2][b as usize];
        }
    }
}

/// What each of the 256 values becomes.
fn table(mean: f64, std: f64) -> [f32; 256] {
    let (mean, std) = (mean as f32, std as f32);
    std::array::from_fn(|v| (v as f32 / 255. - mean) / std)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_mean_and_std_and_grey_their_average() {
        let image = Pixels {
            width: 2,
            height: 1,
            values: vec![255, 255, 255, 0, 51, 255],
        };
        let mut colour = [0f32; 6];
        Normalization::IMAGENET.write(&image, &mut colour);
        let expected = [
            (1. - 0.485) / 0.229,
            -0.485 / 0.229,
            (1. - 0.456) / 0.224,
            (0.2 - 0.456) / 0.224,
            (1. - 0.406) / 0.225,
            (1. - 0.406) / 0.225,
        ];
        assert!(colour
            .iter()
            .zip(expected)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5));
        let mut grey = [0f32; 2];
        Normalization::IMAGENET.write(&image, &mut grey);
        let level = (0.587 * 51. + 0.114 * 255f32).round() / 255.;
        let expected = [(1. - 0.449) / 0.226, (level - 0.449) / 0.226];
        assert!(grey.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!(Normalization::IMAGENET.mean_colour(), [124, 116, 104]);
    }
}
