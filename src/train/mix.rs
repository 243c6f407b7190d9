//! Mixup and cutmix.

use candle_core::{DType, Device, Tensor, D};
use rand::Rng;
use rand_distr::{Beta, Distribution};

use crate::check;
use crate::error::{Error, Result};
use crate::key::{KeyedRng, Purpose, StepKey};

/// Alphas must be below.
const MOST_ALPHA: f64 = 1e6;

/// Mixes each image of a batch with another one, and their labels with them: mixup (Zhang et al., arXiv 1710.09412),
/// cutmix (Yun et al., arXiv 1905.04899), or one of the two, drawn for each batch. As timm's `Mixup` in its batch mode:
/// the partner is the batch reversed, and one lambda holds for all.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::{train::mix::Mix, Criterion, Seed};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mix = Mix::new(10, 0.8, 1.0)?.with_label_smoothing(0.1)?; // mixup's and cutmix's alpha
/// let images = Tensor::ones((4, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let labels = Tensor::new(&[3u32, 1, 4, 1], &Device::Cpu)?;
/// let mixed = mix.apply(&images, &labels, Seed::new(0).at(0))?;
/// // model.backward(&mixed.images, key, |logits| criterion.forward(logits, &mixed.targets))
/// assert_eq!(mixed.targets.dims(), [4, 10]);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    num_classes: usize,
    mixup: Option<Beta<f64>>,
    cutmix: Option<Beta<f64>>,
    prob: f64,
    switch_prob: f64,
    label_smoothing: f64,
}

/// A mixed batch.
#[derive(Clone, Debug)]
pub struct Mixed {
    /// [B, C, H, W], as the images that were given.
    pub images: Tensor,
    /// Probabilities [B, classes] in f32; each row's sum is 1.
    pub targets: Tensor,
    /// The share of each image, and of its label, that is its own; after cutmix that which was really kept.
    pub lambda: f64,
    /// Mixing that was done.
    pub kind: MixKind,
}

/// Mixing of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixKind {
    /// Nothing.
    None,
    /// A weighted sum of the images.
    Mixup,
    /// A box of the partner's pixels.
    Cutmix {
        /// First row of the box.
        top: usize,
        /// First column.
        left: usize,
        /// Rows; 0 where the box would be less than two.
        height: usize,
        /// Columns.
        width: usize,
    },
}

impl Mix {
    /// Mixup with lambda drawn from Beta(`mixup_alpha`, `mixup_alpha`), cutmix likewise; 0 turns either off. Every
    /// batch is mixed, and where both are on, each is chosen with probability 1/2.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `num_classes` is 0 or an alpha is negative, a million or more, or NaN.
    pub fn new(num_classes: usize, mixup_alpha: f64, cutmix_alpha: f64) -> Result<Self> {
        let beta = |argument, alpha: f64| match check::non_negative(argument, alpha)? {
            0.0 => Ok(None),
            // Beyond, it is .5 for all that matters, and its sampling ends in NaN somewhere.
            MOST_ALPHA.. => Err(Error::invalid(argument, alpha, "below a million")),
            _ => Beta::new(alpha, alpha)
                .map(Some)
                .map_err(|error| Error::invalid(argument, alpha, error.to_string())),
        };
        Ok(Self {
            num_classes: check::at_least_one("num_classes", num_classes)?,
            mixup: beta("mixup_alpha", mixup_alpha)?,
            cutmix: beta("cutmix_alpha", cutmix_alpha)?,
            prob: 1.0,
            switch_prob: 0.5,
            label_smoothing: 0.0,
        })
    }

    /// Mixes a batch with this probability, and leaves it as it is otherwise.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `prob` is not within [0, 1].
    pub fn with_prob(self, prob: f64) -> Result<Self> {
        let prob = check::share("prob", prob)?;
        Ok(Self { prob, ..self })
    }

    /// Probability of cutmix where both are on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `switch_prob` is not within [0, 1].
    pub fn with_switch_prob(self, switch_prob: f64) -> Result<Self> {
        let switch_prob = check::share("switch_prob", switch_prob)?;
        Ok(Self { switch_prob, ..self })
    }

    /// Replaces targets t by (1 - s) t + s / classes. The same as
    /// [`Criterion::with_label_smoothing`](crate::Criterion::with_label_smoothing): set one of the two.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `label_smoothing` is not within [0, 1].
    pub fn with_label_smoothing(self, label_smoothing: f64) -> Result<Self> {
        let label_smoothing = check::share("label_smoothing", label_smoothing)?;
        Ok(Self {
            label_smoothing,
            ..self
        })
    }

    /// Mixes `images` [B, C, H, W] and their labels: class indices `[B]` (any integer dtype) or probabilities [B,
    /// classes].
    ///
    /// `key` is the step's own, which [`MaskSub::backward`](crate::MaskSub::backward) gets, too: their draws have different
    /// purposes. Mix a whole batch first and cut it into micro-batches then, for the partner of a sample is its mirror
    /// image in the batch; all micro-batches of a step would draw the same lambda and box.
    ///
    /// # Errors
    /// [`Error::Shape`] when images are not [B, C, H, W] with B > 0 or labels do not agree with them; [`Error::DType`]
    /// for images or probabilities that are no floats, and class indices that are; [`Error::InvalidArgument`] for a
    /// class index that is not below the number of classes.
    pub fn apply(&self, images: &Tensor, labels: &Tensor, key: StepKey) -> Result<Mixed> {
        let (batch, height, width) = match *images.dims() {
            [batch, _, height, width] if batch > 0 => (batch, height, width),
            _ => {
                return Err(Error::shape(
                    "images",
                    images.dims(),
                    "[B, C, H, W] with at least one image",
                ))
            }
        };
        if !images.dtype().is_float() {
            return Err(Error::DType {
                argument: "images",
                got: images.dtype(),
                expected: "a float dtype".into(),
            });
        }
        let targets = self.targets(labels, batch)?;
        let mut rng = key.step_rng(Purpose::MIX);
        let (kind, lambda) = self.draw(&mut rng, height, width);
        let reversed = |tensor: &Tensor| -> Result<Tensor> {
            let order: Vec<u32> = (0..batch as u32).rev().collect();
            Ok(tensor.index_select(&Tensor::new(order, tensor.device())?, 0)?)
        };
        let blend =
            |tensor: &Tensor| -> Result<Tensor> { Ok(((tensor * lambda)? + (reversed(tensor)? * (1.0 - lambda))?)?) };
        let images = match kind {
            MixKind::None => images.clone(),
            MixKind::Mixup => blend(images)?,
            MixKind::Cutmix { .. } => {
                let box_ = kind
                    .to_mask(height, width, images.device())?
                    .broadcast_as(images.dims())?;
                box_.where_cond(&reversed(images)?, images)?
            }
        };
        let targets = match kind {
            MixKind::None => targets,
            _ => blend(&targets)?,
        };
        Ok(Mixed {
            images,
            targets,
            lambda,
            kind,
        })
    }

    fn draw(&self, rng: &mut KeyedRng, height: usize, width: usize) -> (MixKind, f64) {
        if rng.random::<f64>() >= self.prob {
            return (MixKind::None, 1.0);
        }
        let switch = rng.random::<f64>() < self.switch_prob;
        match (self.mixup, self.cutmix) {
            (None, None) => (MixKind::None, 1.0),
            (Some(mixup), None) => (MixKind::Mixup, mixup.sample(rng)),
            (Some(mixup), Some(_)) if !switch => (MixKind::Mixup, mixup.sample(rng)),
            (_, Some(cutmix)) => {
                let lambda = cutmix.sample(rng);
                // A box of the image's aspect and this share of its area, around a point anywhere in it.
                let side = (1.0 - lambda).sqrt();
                let span = |rng: &mut KeyedRng, whole: usize| {
                    let half = (whole as f64 * side) as usize / 2;
                    let centre = rng.random_range(0..whole.max(1));
                    let (start, end) = (centre.saturating_sub(half), (centre + half).min(whole));
                    (start, end - start)
                };
                let (top, height_of_box) = span(rng, height);
                let (left, width_of_box) = span(rng, width);
                let area = (height_of_box * width_of_box) as f64 / (height * width).max(1) as f64;
                let kind = MixKind::Cutmix {
                    top,
                    left,
                    height: height_of_box,
                    width: width_of_box,
                };
                (kind, 1.0 - area)
            }
        }
    }

    /// Labels as probabilities [B, classes] in f32, smoothed.
    fn targets(&self, labels: &Tensor, batch: usize) -> Result<Tensor> {
        let classes = self.num_classes;
        let targets = match (labels.dtype().is_int(), labels.dims()) {
            (true, [b]) if *b == batch => {
                let indices = labels.to_dtype(DType::I64)?;
                let beyond = |class: &&i64| !(0..classes as i64).contains(*class);
                if let Some(class) = indices.to_vec1::<i64>()?.iter().find(beyond) {
                    let value = format!("class {class}");
                    return Err(Error::invalid("labels", value, format!("within 0..{classes}")));
                }
                let all = Tensor::arange(0i64, classes as i64, labels.device())?;
                indices.unsqueeze(D::Minus1)?.broadcast_eq(&all)?.to_dtype(DType::F32)?
            }
            (false, [b, c]) if (*b, *c) == (batch, classes) => labels.detach().to_dtype(DType::F32)?,
            (false, [b]) if *b == batch => {
                return Err(Error::DType {
                    argument: "labels",
                    got: labels.dtype(),
                    expected: format!("an integer one for class indices, or probabilities [{batch}, {classes}]"),
                })
            }
            (true, [b, c]) if (*b, *c) == (batch, classes) => {
                return Err(Error::DType {
                    argument: "labels",
                    got: labels.dtype(),
                    expected: format!("a float one for probabilities, or class indices [{batch}]"),
                })
            }
            _ => {
                let expected = format!("[{batch}] class indices, or probabilities [{batch}, {classes}]");
                return Err(Error::shape("labels", labels.dims(), expected));
            }
        };
        match self.label_smoothing {
            0.0 => Ok(targets),
            s => Ok(targets.affine(1.0 - s, s / classes as f64)?),
        }
    }
}

impl MixKind {
    /// [1, 1, H, W] u8: 1 where the partner's pixels stand.
    fn to_mask(self, height: usize, width: usize, device: &Device) -> Result<Tensor> {
        let mut mask = vec![0u8; height * width];
        if let Self::Cutmix {
            top,
            left,
            height: rows,
            width: columns,
        } = self
        {
            for row in mask.chunks_exact_mut(width.max(1)).skip(top).take(rows) {
                row[left..left + columns].fill(1);
            }
        }
        Ok(Tensor::from_vec(mask, (1, 1, height, width), device)?)
    }
}
