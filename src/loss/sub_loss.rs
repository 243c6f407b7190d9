//! Losses between sub-branch and target, of any kind.

use candle_core::{Result, Tensor};

use crate::mask::Mask;
use crate::outputs::Outputs;

/// A loss between what the sub-branch predicts and its target, a scalar.
///
/// [`SubModelLoss`](crate::SubModelLoss) is one for classes. Anything else is a closure (its arguments want their types)
/// or a type of your own: the logits may have any shape, and be several tensors where the model has several heads
/// ([`Outputs`]). `mask` says what the sub-branch has kept, where it masks; [`Mask::gather`] takes the kept positions out of
/// a target that has all of them.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{loss::mse, Module};
/// use masksub::{Mask, MaskSub, Params, PatchDrop, RandomMasking, Seed, Weights};
///
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let weights = Weights::seeded(seed);
/// # let vb = weights.var_builder(DType::F32, &device);
/// let head = candle_nn::linear(64, 1, vb.pp("head"))?;
/// let net = move |xs: &Tensor| head.forward(&xs.flatten_from(1)?)?.squeeze(1); // a number for each image, [B]
/// let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, Params::from_varmap(weights.varmap()))
///     .with_sub_loss(|sub: &Tensor, target: &Tensor, _: Option<&Mask>| mse(sub, target));
/// let (images, ages) = (Tensor::ones((2, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[30f32, 41.], &device)?);
/// let step = model.backward(&images, seed.at(0), |predicted| mse(predicted, &ages))?;
/// # assert!(step.sub_loss.is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no loss between a sub-branch and its target, which are `{O}`",
    label = "does not implement `SubLoss<{O}>`",
    note = "take `SubModelLoss`, or a closure with the types of its arguments: \
            `|sub: &Tensor, target: &Tensor, mask: Option<&Mask>| ..`, which returns `candle_core::Result<Tensor>`"
)]
pub trait SubLoss<O = Tensor> {
    /// The loss of `sub`, in which the gradient flows, against `target`, which is detached.
    ///
    /// With [`Mutual`](crate::Mutual) targets it is called both ways round: also with the main branch's logits as `sub` and
    /// the sub-branch's as `target`, under the same mask.
    ///
    /// # Errors
    /// The loss's own.
    fn compare(&self, sub: &O, target: &O, mask: Option<&Mask>) -> Result<Tensor>;
}

impl<O: Outputs, F> SubLoss<O> for F
where
    F: Fn(&O, &O, Option<&Mask>) -> Result<Tensor>,
{
    fn compare(&self, sub: &O, target: &O, mask: Option<&Mask>) -> Result<Tensor> {
        self(sub, target, mask)
    }
}
