//! MaskSub: a model, its sub-branch, and the step that trains both.

use candle_core::backprop::GradStore;
use candle_core::Tensor;
use candle_nn::ModuleT;

use crate::branch::SubBranch;
use crate::check;
use crate::error::{Error, Result};
use crate::grad;
use crate::key::StepKey;
use crate::loss::SubModelLoss;
use crate::mask::Mask;
use crate::model::Plain;
use crate::ops::Gradients;
use crate::params::Params;
use crate::pass::Pass;

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
#[derive(Clone, Debug)]
pub struct MaskSub<M, S> {
    model: M,
    branch: S,
    sub_loss: SubModelLoss,
    weight: f64,
    params: Option<Params>,
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

impl<M, S: SubBranch<M>> MaskSub<M, S> {
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
    /// returns those of all variables that it reached, and cannot know which it did not.
    pub fn unchecked(model: M, branch: S) -> Self {
        Self {
            model,
            branch,
            sub_loss: SubModelLoss::default(),
            weight: 0.5,
            params: None,
        }
    }

    /// Another loss for the sub-branch than the soft cross-entropy.
    pub fn with_sub_loss(self, sub_loss: SubModelLoss) -> Self {
        Self { sub_loss, ..self }
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

    /// The logits of both branches on `xs` [B, ...], in training mode, for those who form their own loss. The graph of
    /// both lives at once, so a joint backward needs more memory than [`backward`](Self::backward).
    ///
    /// Batch statistics are not updated until [`Branches::accept`].
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty batch, and those of model and branch.
    pub fn forward_pair(&self, xs: &Tensor, key: StepKey) -> Result<Branches> {
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

    /// One training step's gradients: the main branch forward and backward, *then* the sub-branch, and the sum of both.
    ///
    /// The two halves never hold their activations at the same time, which keeps the memory of plain training. The
    /// result is that of a backward through `(1 - w) * main_loss(main) + w * sub_loss(sub, detached main)`.
    ///
    /// `xs` [B, ...] is the batch, `key` what masks, dropout and drop path are drawn from; `main_loss` is any scalar
    /// loss of the main logits [B, classes]: mixup targets, distillation, whatever a trainer has. Nothing is updated
    /// but batch statistics: of models that stage them in their [`Pass`], and of the batch norms of [`crate::nn`], only when
    /// both losses are finite and every gradient is there; of candle's batch norms in each forward pass. Any optimizer
    /// steps on `grads`.
    ///
    /// # Errors
    /// * [`Error::Shape`] for an empty batch;
    /// * [`Error::LossNotScalar`], [`Error::LossDetached`], [`Error::NonFiniteLoss`], naming the branch;
    /// * [`Error::MissingGradients`] when trained parameters have none, unless the model is
    ///   [`unchecked`](Self::unchecked);
    /// * [`Error::BackwardUnsupported`] when candle cannot differentiate an operation;
    /// * [`Error::InvalidArgument`] when it was made with no variable;
    /// * those of model, branch and `main_loss`.
    pub fn backward(
        &self,
        xs: &Tensor,
        key: StepKey,
        main_loss: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Step> {
        check_batch(xs)?;
        let params = self.params.as_ref();
        params.map_or(Ok(()), Params::check_not_empty)?;

        let mut main_pass = Pass::train(key);
        let logits = self.branch.main(&self.model, xs, &mut main_pass)?;
        let loss = main_loss(&logits)?;
        let main_value = grad::check_loss(&loss, "main")?;
        let mut gradients = match self.weight {
            // All weight on the sub-branch: the main branch is only its target.
            1.0 => Gradients::new(),
            w => grad::raw_backward(&(&loss * (1.0 - w))?, "main", params, Gradients::new())?,
        };
        let main_logits = logits.detach();
        // The graph of the main half, and with it its activations, ends here.
        drop((loss, logits));

        let mut step = Step {
            grads: GradStore::default(),
            main_loss: main_value,
            sub_loss: None,
            main_logits,
            mask: None,
        };
        let mut passes = vec![main_pass];
        if self.weight > 0.0 {
            let mut sub_pass = Pass::train_sub(key);
            let (sub_logits, mask) = self.branch.sub(&self.model, xs, &mut sub_pass)?;
            let loss = self.sub_loss.forward(&sub_logits, &step.main_logits)?;
            step.sub_loss = Some(grad::check_loss(&loss, "sub")?);
            step.mask = mask;
            gradients = grad::raw_backward(&(loss * self.weight)?, "sub", params, gradients)?;
            passes.push(sub_pass);
        }
        let grads = grad::into_store(gradients);
        if let Some(params) = params {
            grad::check_missing(&grads, params)?;
        }
        Pass::commit_all(passes)?;
        step.grads = grads;
        Ok(step)
    }
}

/// The main branch. In training mode a model that needs random draws is refused with [`Error::DrawsWithoutKey`]: there
/// is no key in this signature.
impl<M, S: SubBranch<M>> ModuleT for MaskSub<M, S> {
    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mut pass = Pass::without_key(train);
        let logits = self.branch.main(&self.model, xs, &mut pass)?;
        pass.commit()?;
        Ok(logits)
    }
}

/// The logits of both branches, attached to the model, and the mask.
#[derive(Debug)]
pub struct Branches {
    /// Main logits [B, classes].
    pub main: Tensor,
    /// Sub logits [B, classes].
    pub sub: Tensor,
    /// Positions that the sub-branch kept, where it masks.
    pub mask: Option<Mask>,
    passes: [Pass; 2],
}

impl Branches {
    /// Accepts the step: the batch statistics that both passes have seen are committed. Dropping `Branches` instead
    /// discards them.
    ///
    /// # Errors
    /// When a running average and its update do not agree.
    pub fn accept(self) -> Result<()> {
        Pass::commit_all(self.passes)
    }
}

/// Result of a training step. Everything is detached.
#[derive(Debug)]
pub struct Step {
    /// The gradients of `(1 - w) * main + w * sub` with respect to the trained variables.
    pub grads: GradStore,
    /// The main loss, unweighted.
    pub main_loss: f64,
    /// The sub-branch's loss, unweighted; none where its weight is 0.
    pub sub_loss: Option<f64>,
    /// The main logits [B, classes].
    pub main_logits: Tensor,
    /// Positions that the sub-branch kept, where it masks.
    pub mask: Option<Mask>,
}

fn check_batch(xs: &Tensor) -> Result<()> {
    match xs.dims().first() {
        Some(0) | None => Err(Error::shape("xs", xs.dims(), "[B, ...] with at least one sample")),
        Some(_) => Ok(()),
    }
}
