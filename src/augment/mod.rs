//! Image transforms of the recipes, as Pillow computes them and as torchvision and timm draw them: from an eight-bit
//! image to the normalised tensor [C, H, W] that a model sees. Needs the feature `augment`.
//!
//! There is no pipeline object and no loader: a loop calls what its recipe asks for, in the recipe's order, on as many
//! threads as it likes. DeiT-III's training transform, and the evaluation of the same model:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use masksub::augment::{ColorJitter, HorizontalFlip, Image, Normalize};
//! use masksub::augment::{RandomResizedCrop, ResizeCenterCrop, ThreeAugment};
//! use masksub::{Purpose, Seed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let files = vec![image::RgbImage::from_fn(120, 88, |x, y| image::Rgb([x as u8, y as u8, 7])); 2];
//! let (seed, size, device) = (Seed::new(0), 224, Device::Cpu);
//! let crop = RandomResizedCrop::new(size)?; // DeiT-III's for ImageNet-21k: SimpleRandomCrop
//! let flip = HorizontalFlip::new(0.5)?;
//! let jitter = ColorJitter::new(0.3)?;
//! let center = ResizeCenterCrop::new(size)?.with_crop_pct(1.0)?;
//! let normalize = Normalize::IMAGENET;
//!
//! for epoch in 0..2 {
//!     // Each image [3, H, W]; a batch is `Tensor::stack(&images, 0)`.
//!     let images = files.iter().enumerate().map(|(i, photo)| {
//!         let image = Image::from_raw(photo.width() as usize, photo.height() as usize, photo.to_vec())?;
//!         // Draws depend on (seed, epoch, image, transform), so neither threads nor the other transforms change them.
//!         let rng = |transform| seed.at(epoch).rng(i, Purpose::custom(transform));
//!         let mut image = crop.apply(&image, &mut rng(0))?;
//!         flip.apply(&mut image, &mut rng(1));
//!         ThreeAugment.apply(&mut image, &mut rng(2));
//!         jitter.apply(&mut image, &mut rng(3));
//!         normalize.to_tensor(&image, &device)
//!     });
//!     let images: Vec<Tensor> = images.collect::<masksub::Result<_>>()?;
//!     assert_eq!(Tensor::stack(&images, 0)?.dims(), [2, 3, 224, 224]);
//!     // Mixup and cutmix, of whole batches, are `train::mix`'s.
//! }
//!
//! # let photo = &files[0];
//! let image = Image::from_raw(photo.width() as usize, photo.height() as usize, photo.to_vec())?;
//! let image = normalize.to_tensor(&center.apply(&image)?, &device)?; // nothing is drawn
//! assert_eq!(image.dims(), [3, 224, 224]);
//! # Ok(()) }
//! ```
//!
//! | step | types |
//! |---|---|
//! | an image | [`Image`]: from the crate `image`, or from any decoder |
//! | to a square | [`RandomResizedCrop`], [`SimpleRandomCrop`]; [`ResizeCenterCrop`] in evaluation; for small pictures [`RandomShift`] |
//! | its look | [`HorizontalFlip`], [`ThreeAugment`], [`RandAugment`], [`ColorJitter`] |
//! | one operation | [`Operation`]: Gaussian blur, solarize, rotation and fourteen more, with arguments of one's own |
//! | to a tensor | [`Normalize`], then [`RandomErasing`] |
//!
//! A transform is checked when it is made and cannot fail on an image then; what returns a `Result` all the same says
//! when. A generator is an argument, as everywhere in this crate. The same generator draws the same in every release,
//! and the pixels are the same on any number of threads.
//!
//! What computes with integers gives Pillow's values; what resizes, turns and blends is at most 2/255 from them, blur
//! 3/255: the example `parity` compares 48 recorded images.

mod blur;
mod color;
mod color_jitter;
mod geometry;
mod horizontal_flip;
mod image;
mod interpolation;
mod normalize;
mod operation;
mod rand_augment;
mod random_erasing;
mod random_resized_crop;
mod random_shift;
mod rect;
mod resize;
mod resize_center_crop;
mod simd;
mod simple_random_crop;
mod size;
#[cfg(test)]
mod testing;
mod three_augment;
mod tone;

pub use color_jitter::ColorJitter;
pub use horizontal_flip::HorizontalFlip;
pub use image::Image;
pub use interpolation::Interpolation;
pub use normalize::Normalize;
pub use operation::Operation;
pub use rand_augment::RandAugment;
pub use random_erasing::RandomErasing;
pub use random_resized_crop::RandomResizedCrop;
pub use random_shift::RandomShift;
pub use rect::Rect;
pub use resize::Filter;
pub use resize_center_crop::ResizeCenterCrop;
pub use simple_random_crop::SimpleRandomCrop;
pub use three_augment::ThreeAugment;
