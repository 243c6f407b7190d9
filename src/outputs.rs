//! Outputs of a model: a tensor of logits, or several of them.

use candle_core::Tensor;

/// Outputs of a model: one tensor of logits, as nearly all have, or those of several heads in a tuple, an array or a
/// `Vec`. A struct of your own may be one.
///
/// The model's trait then names them, `impl Forward<(Tensor, Tensor)> for TwoHeads`, and [`MaskSub`](crate::MaskSub) hands
/// them to the losses as they are. Where the trait names none it is a `Tensor`.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{loss::{cross_entropy, mse}, Linear, Module};
/// use masksub::{Forward, MaskSub, Params, Pass, PatchDrop, RandomMasking, Seed, Weights};
///
/// struct TwoHeads {
///     class: Linear,
///     angle: Linear,
/// }
/// impl Forward<(Tensor, Tensor)> for TwoHeads {
///     fn forward_pass(&self, xs: &Tensor, _: &mut Pass) -> Result<(Tensor, Tensor)> {
///         let xs = xs.flatten_from(1)?;
///         Ok((self.class.forward(&xs)?, self.angle.forward(&xs)?.squeeze(1)?))
///     }
/// }
///
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let weights = Weights::seeded(seed);
/// # let vb = weights.var_builder(DType::F32, &device);
/// let heads = TwoHeads {
///     class: candle_nn::linear(64, 10, vb.pp("class"))?,
///     angle: candle_nn::linear(64, 1, vb.pp("angle"))?,
/// };
/// let params = Params::from_varmap(weights.varmap());
/// let model = MaskSub::new(heads, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, params)
///     .with_sub_loss(|sub: &(Tensor, Tensor), target: &(Tensor, Tensor), _: Option<&_>| {
///         masksub::SubModelLoss::kl().forward(&sub.0, &target.0)? + mse(&sub.1, &target.1)?
///     });
/// let images = Tensor::ones((2, 1, 8, 8), DType::F32, &device)?;
/// let (labels, angles) = (Tensor::new(&[3u32, 7], &device)?, Tensor::new(&[0.5f32, -1.0], &device)?);
/// let step = model.backward(&images, seed.at(0), |(class, angle)| {
///     cross_entropy(class, &labels)? + mse(angle, &angles)?
/// })?;
/// # assert_eq!(step.main_logits.1.dims(), [2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be what a model returns",
    label = "does not implement `Outputs`",
    note = "a model returns a `Tensor`, or several in a tuple, an array or a `Vec`; a struct of them implements `Outputs`"
)]
pub trait Outputs: Clone + 'static {
    /// All tensors, in an order that is the same for all outputs of a model.
    fn tensors(&self) -> Vec<&Tensor>;

    /// The same values, through which no gradient flows.
    fn detach(&self) -> Self;
}

impl Outputs for Tensor {
    fn tensors(&self) -> Vec<&Tensor> {
        vec![self]
    }
    fn detach(&self) -> Self {
        self.detach()
    }
}

impl<O: Outputs> Outputs for Vec<O> {
    fn tensors(&self) -> Vec<&Tensor> {
        self.iter().flat_map(O::tensors).collect()
    }
    fn detach(&self) -> Self {
        self.iter().map(O::detach).collect()
    }
}

impl<O: Outputs, const N: usize> Outputs for [O; N] {
    fn tensors(&self) -> Vec<&Tensor> {
        self.iter().flat_map(O::tensors).collect()
    }
    fn detach(&self) -> Self {
        self.each_ref().map(O::detach)
    }
}

impl<A: Outputs, B: Outputs> Outputs for (A, B) {
    fn tensors(&self) -> Vec<&Tensor> {
        [self.0.tensors(), self.1.tensors()].concat()
    }
    fn detach(&self) -> Self {
        (self.0.detach(), self.1.detach())
    }
}

impl<A: Outputs, B: Outputs, C: Outputs> Outputs for (A, B, C) {
    fn tensors(&self) -> Vec<&Tensor> {
        [self.0.tensors(), self.1.tensors(), self.2.tensors()].concat()
    }
    fn detach(&self) -> Self {
        (self.0.detach(), self.1.detach(), self.2.detach())
    }
}
