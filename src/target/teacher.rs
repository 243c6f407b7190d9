//! Teachers: another model's prediction as the target.

use candle_core::{Result, Tensor};

use super::SubTarget;
use crate::mask::Mask;
use crate::model::{Forward, TokenModel};
use crate::pass::Pass;

/// The prediction of another model, in evaluation mode, on the whole input: distillation (Hinton et al., arXiv
/// 1503.02531) into the sub-branch, while the main branch learns from the labels.
///
/// The teacher is a [`Forward`] model: this crate's are, and any candle module in [`Plain`](crate::Plain). Made by
/// [`Weights::no_grad_builder`](crate::Weights::no_grad_builder) it keeps nothing for a backward; made of variables it has a
/// graph until its prediction is there.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::loss::cross_entropy;
/// use masksub::{MaskSub, Params, PatchDrop, Plain, RandomMasking, Seed, Teacher, Weights};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let net = |vb: candle_nn::VarBuilder| -> candle_core::Result<_> {
/// #     Ok(candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?))
/// # };
/// let teacher = net(Weights::seeded(Seed::new(7)).no_grad_builder(DType::F32, &device))?; // from its checkpoint
/// let weights = Weights::seeded(seed);
/// let student = net(weights.var_builder(DType::F32, &device))?;
/// let branch = PatchDrop::new(RandomMasking::new(0.5)?, 4)?;
/// let model = MaskSub::wrap(student, branch, Params::from_varmap(weights.varmap())).with_target(Teacher(Plain(teacher)));
///
/// let (images, labels) = (Tensor::ones((2, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[3u32, 7], &device)?);
/// let step = model.backward(&images, seed.at(0), |logits| cross_entropy(logits, &labels))?;
/// # Ok(()) }
/// ```
///
/// An averaged copy of the model itself (Mean Teacher, Tarvainen and Valpola, arXiv 1703.01780) is a teacher on the
/// weights of an average, `Ema::weights`, which sees every update:
///
#[cfg_attr(feature = "train", doc = "```")]
#[cfg_attr(not(feature = "train"), doc = "```ignore")]
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{loss::cross_entropy, AdamW, Optimizer};
/// use masksub::{train::ema::Ema, MaskSub, Params, PatchDrop, Plain, RandomMasking, Seed, Teacher, Weights};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let net = |vb: candle_nn::VarBuilder| -> candle_core::Result<_> {
/// #     Ok(candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?))
/// # };
/// let weights = Weights::seeded(seed);
/// let student = net(weights.var_builder(DType::F32, &device))?;
/// let mut ema = Ema::of(weights.varmap(), 0.99)?;
/// let averaged = net(ema.weights().no_grad_builder(DType::F32, &device))?;
/// let params = Params::from_varmap(weights.varmap());
/// let mut opt = AdamW::new(params.vars(), Default::default())?;
/// let model = MaskSub::wrap(student, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, params)
///     .with_target(Teacher(Plain(averaged)));
///
/// # let (images, labels) = (Tensor::ones((2, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[3u32, 7], &device)?);
/// for t in 0..2 {
///     let step = model.backward(&images, seed.at(t), |logits| cross_entropy(logits, &labels))?;
///     opt.step(&step.grads)?;
///     ema.update()?;
/// }
/// # Ok(()) }
/// ```
///
/// Averages of half-precision weights are f32. Their copy is made in f32 and sees its inputs so:
/// `Teacher(Plain(move |xs: &Tensor| averaged.forward_t(&xs.to_dtype(DType::F32)?, false)))`. The sub losses take a target
/// in another dtype.
#[derive(Clone, Debug)]
pub struct Teacher<M>(pub M);

impl<O, M: Forward<O>> SubTarget<O> for Teacher<M> {
    fn target(&self, xs: &Tensor, _: &O, _: Option<&Mask>) -> Result<O> {
        self.0.forward_pass(xs, &mut Pass::eval())
    }
}

/// The prediction of another model, in evaluation mode, on the tokens that the sub-branch keeps: it costs the share of a
/// prediction that is kept. Where the sub-branch masks nothing it sees the whole input.
///
/// Masking a teacher's tokens saves up to half of its cost without loss for the student (Son et al., arXiv 2302.10494;
/// they choose by the student's attention what a teacher sees, and show the student all of it).
///
/// The teacher's positions must be those of the mask: as many rows and columns of patches.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::loss::cross_entropy;
/// use masksub::{DropToken, MaskSub, MaskedTeacher, Params, RandomMasking, Seed, Weights};
/// # #[cfg(feature = "models")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use masksub::models::vit::{Config, VisionTransformer};
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let small = Config { embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32, ..Config::deit3_tiny(10) }.with_input(8, 2, 1);
/// # let large = Config { depth: 2, ..small.clone() };
/// let teacher = VisionTransformer::new(&large, Weights::seeded(Seed::new(7)).no_grad_builder(DType::F32, &device))?;
/// let weights = Weights::seeded(seed);
/// let student = VisionTransformer::new(&small, weights.var_builder(DType::F32, &device))?;
/// let params = Params::from_varmap(weights.varmap());
/// let model = MaskSub::new(student, DropToken::new(RandomMasking::new(0.5)?), params).with_target(MaskedTeacher(teacher));
/// # let (images, labels) = (Tensor::ones((2, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[3u32, 7], &device)?);
/// let step = model.backward(&images, seed.at(0), |logits| cross_entropy(logits, &labels))?;
/// # Ok(()) }
/// # #[cfg(not(feature = "models"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug)]
pub struct MaskedTeacher<M>(pub M);

impl<O, M: TokenModel<O>> SubTarget<O> for MaskedTeacher<M> {
    fn target(&self, xs: &Tensor, _: &O, mask: Option<&Mask>) -> Result<O> {
        let mut pass = Pass::eval();
        let tokens = self.0.embed(xs, mask, &mut pass)?;
        self.0.classify(&tokens, mask, &mut pass)
    }
}
