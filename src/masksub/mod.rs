//! MaskSub: a model and its sub-branch.

mod difficulty;
mod step;

pub use difficulty::Difficulty;
pub use step::Step;

use std::marker::PhantomData;

use candle_core::Tensor;
use candle_nn::ModuleT;

use crate::branch::SubBranch;
use crate::check;
use crate::error::{Error, Result};
use crate::key::StepKey;
use crate::loss::{SubLoss, SubModelLoss};
use crate::mask::Mask;
use crate::model::Plain;
use crate::outputs::Outputs;
use crate::params::Params;
use crate::pass::Pass;
use crate::target::{MainBranch, SubTarget};

/// A model `M` trained with a sub-branch `S` of itself (MaskSub, Heo et al., CVPR 2025, arXiv 2306.11339).
///
/// A step runs the model twice: the main branch on the batch, trained by whatever loss the trainer has, and the
/// sub-branch on a masked view of it, trained to agree with the main branch's own detached prediction. The total is
/// `(1 - w) * main + w * sub` with w = 1/2 unless told otherwise.
///
/// Outside training it *is* the main branch: a [`ModuleT`] that drops into evaluation code.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{loss::cross_entropy, AdamW, Optimizer, ParamsAdamW};
/// use masksub::{MaskSub, Params, PatchDrop, RandomMasking, Seed, Weights};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (device, seed) = (Device::Cpu, Seed::new(0));
/// let weights = Weights::seeded(seed);
/// let vb = weights.var_builder(DType::F32, &device);
/// let net = candle_nn::seq()
///     .add_fn(|xs| xs.flatten_from(1))
///     .add(candle_nn::linear(64, 10, vb.pp("fc"))?);
///
/// let params = Params::from_varmap(weights.varmap());
/// let mut opt = AdamW::new(params.vars(), ParamsAdamW::default())?;
/// let branch = PatchDrop::new(RandomMasking::new(0.5)?, 4)?;
/// let model = MaskSub::wrap(net, branch, params);
///
/// let images = Tensor::ones((2, 1, 8, 8), DType::F32, &device)?;
/// let labels = Tensor::new(&[3u32, 7], &device)?;
/// for t in 0..2 {
///     let step = model.backward(&images, seed.at(t), |logits| cross_entropy(logits, &labels))?;
///     opt.step(&step.grads)?;
/// }
/// # Ok(()) }
/// ```
///
/// `O` is what the model returns, where that is not one tensor ([`Outputs`]); `L` the sub-branch's loss ([`SubLoss`]) and
/// `T` its target ([`SubTarget`]).
#[derive(Clone, Debug)]
pub struct MaskSub<M, S, O = Tensor, L = SubModelLoss, T = MainBranch> {
    model: M,
    branch: S,
    sub_loss: L,
    target: T,
    weight: f64,
    difficulty: bool,
    params: Option<Params>,
    outputs: PhantomData<fn() -> O>,
}

impl<M: ModuleT, S: SubBranch<Plain<M>>> MaskSub<Plain<M>, S> {
    /// Wraps any candle module, as it is: a `Module`, a `ModuleT`, a closure `|xs: &Tensor| ...`, or one in
    /// `candle_nn::func_t`, which is told whether it trains.
    ///
    /// Models that implement [`Forward`](crate::Forward), those of this crate among them, go to [`new`](Self::new): in
    /// here they would be run like any module, without keys for their drop path. The batch norms and dropouts of
    /// [`crate::nn`] take part in the step; candle's own batch norm changes its running statistics even when a step is
    /// rejected.
    pub fn wrap(module: M, branch: S, params: impl Into<Params>) -> Self {
        Self::new(Plain(module), branch, params)
    }
}

impl<M, S: SubBranch<M, O>, O: Outputs> MaskSub<M, S, O> {
    /// A model, the way it runs as sub-model, and the variables that are trained, as [`Params`] or `&Params`. The model
    /// may be borrowed: `&M` is one, too.
    ///
    /// [`backward`](Self::backward) returns the gradients of these variables only, and fails, naming them, when some
    /// have none: candle cuts gradients silently, and a model that trains half of its weights still has a loss that
    /// falls.
    pub fn new(model: M, branch: S, params: impl Into<Params>) -> Self {
        Self {
            params: Some(params.into()),
            ..Self::unchecked(model, branch)
        }
    }

    /// A model whose gradients are not checked, because its variables are not known: [`backward`](Self::backward)
    /// returns those of all variables that it reached, and cannot know which it did not. It takes a model as
    /// [`new`](Self::new) does; a candle module goes in as `Plain(module)`.
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use masksub::{MaskSub, PatchDrop, Plain, RandomMasking};
    /// let module = |xs: &Tensor| xs.flatten_from(1);
    /// let model = MaskSub::unchecked(Plain(module), PatchDrop::new(RandomMasking::new(0.5)?, 4)?);
    /// # Ok::<(), masksub::Error>(())
    /// ```
    pub fn unchecked(model: M, branch: S) -> Self {
        Self {
            model,
            branch,
            sub_loss: SubModelLoss::default(),
            target: MainBranch,
            weight: 0.5,
            difficulty: false,
            params: None,
            outputs: PhantomData,
        }
    }
}

impl<M, S: SubBranch<M, O>, O: Outputs, L, T> MaskSub<M, S, O, L, T> {
    /// Another loss for the sub-branch than the soft cross-entropy, which belongs to a main branch that is trained with
    /// cross-entropy: [`SubModelLoss::bce`] for one that is trained with binary cross-entropy, a closure over (sub, target,
    /// mask), or a type of your own ([`SubLoss`]).
    pub fn with_sub_loss<N: SubLoss<O>>(self, sub_loss: N) -> MaskSub<M, S, O, N, T> {
        self.with(|_, target| (sub_loss, target))
    }

    /// Another target for the sub-branch than the main branch's prediction: a [`Teacher`](crate::Teacher)'s, say, or
    /// [`Mutual`](crate::Mutual), by which the main branch learns from the sub-branch, too.
    pub fn with_target<N: SubTarget<O>>(self, target: N) -> MaskSub<M, S, O, L, N> {
        self.with(|sub_loss, _| (sub_loss, target))
    }

    fn with<N, U>(self, change: impl FnOnce(L, T) -> (N, U)) -> MaskSub<M, S, O, N, U> {
        let (sub_loss, target) = change(self.sub_loss, self.target);
        MaskSub {
            model: self.model,
            branch: self.branch,
            sub_loss,
            target,
            weight: self.weight,
            difficulty: self.difficulty,
            params: self.params,
            outputs: PhantomData,
        }
    }

    /// Gives the sub-branch the weight w, and the main branch 1 - w; 1/2 each is the default and the paper's choice. At
    /// w = 0 [`backward`](Self::backward) leaves the sub-branch out: plain training.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `weight` is NaN or outside [0, 1].
    pub fn with_weight(self, weight: f64) -> Result<Self> {
        check::share("weight", weight)?;
        Ok(Self { weight, ..self })
    }

    /// Records how hard the sub-branch's task is in each [`Step::difficulty`]; it does not by default. A step then keeps
    /// the gradients of both halves for a moment, one more set of them than otherwise, and reads each three times.
    pub fn with_difficulty(self, difficulty: bool) -> Self {
        Self { difficulty, ..self }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The variables that are trained, unless it is [`unchecked`](Self::unchecked).
    pub fn params(&self) -> Option<&Params> {
        self.params.as_ref()
    }

    /// The model back.
    pub fn into_model(self) -> M {
        self.model
    }

    /// The logits of both branches on `xs` `[B, ...]`, in training mode, for those who form their own loss. The graph of
    /// both lives at once, so a joint backward needs more memory than [`backward`](Self::backward).
    ///
    /// Batch statistics are not updated until [`Branches::accept`].
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use candle_nn::loss::cross_entropy;
    /// use masksub::{grad, MaskSub, Params, Seed, SubBranch, SubModelLoss};
    /// # fn of<M, S: SubBranch<M>>(model: &MaskSub<M, S>, params: &Params, images: &Tensor, labels: &Tensor) -> masksub::Result<()> {
    /// // What `backward` does, in one piece.
    /// let pair = model.forward_pair(images, Seed::new(0).at(0))?;
    /// let sub_loss = SubModelLoss::default().forward(&pair.sub, &pair.main)?; // which detaches the target
    /// let loss = ((cross_entropy(&pair.main, labels)? + sub_loss)? * 0.5)?;
    /// let grads = grad::backward(&loss, params)?;
    /// pair.accept()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty batch, and those of model and branch.
    pub fn forward_pair(&self, xs: &Tensor, key: StepKey) -> Result<Branches<O>> {
        check_batch(xs)?;
        let mut main_pass = Pass::train(key);
        let main = self.branch.main(&self.model, xs, &mut main_pass)?;
        let mut sub_pass = Pass::train_sub(key);
        let (sub, mask) = self.branch.sub(&self.model, xs, &mut sub_pass)?;
        let passes = [main_pass, sub_pass];
        Ok(Branches {
            main,
            sub,
            mask,
            passes,
        })
    }
}

/// The main branch. In training mode a model that needs random draws is refused with [`Error::DrawsWithoutKey`]: there
/// is no key in this signature.
impl<M, S: SubBranch<M>, L, T> ModuleT for MaskSub<M, S, Tensor, L, T> {
    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mut pass = Pass::without_key(train);
        let logits = self.branch.main(&self.model, xs, &mut pass)?;
        pass.commit()?;
        Ok(logits)
    }
}

/// Both branches of a step, as [`MaskSub::forward_pair`] has run them: their logits, in whose graphs gradients flow back to
/// the model, and the mask.
#[derive(Debug)]
pub struct Branches<O = Tensor> {
    /// Logits of the main branch, `[B, classes]`, or whatever the model has.
    pub main: O,
    /// Logits of the sub-branch, likewise; `[B, K, classes]` where it has one prediction for each token that is kept.
    pub sub: O,
    /// Positions that the sub-branch kept, where it masks.
    pub mask: Option<Mask>,
    passes: [Pass; 2],
}

impl<O> Branches<O> {
    /// Accepts the step: running statistics take in what both passes have seen of the batch. Without a call, as when a loss
    /// is not finite, they stay as they were.
    ///
    /// # Errors
    /// When a running average and its update do not agree.
    pub fn accept(self) -> Result<()> {
        Pass::commit_all(self.passes)
    }
}

fn check_batch(xs: &Tensor) -> Result<()> {
    match xs.dims().first() {
        Some(0) | None => Err(Error::shape("xs", xs.dims(), "[B, ...] with at least one sample")),
        Some(_) => Ok(()),
    }
}
