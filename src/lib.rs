//! MaskSub for candle: supervised training with a masked sub-branch that matches the main branch's own prediction.
//!
//! MaskSub (Heo et al., *Masking meets Supervision: A Strong Learning Alliance*, CVPR 2025,
//! [arXiv 2306.11339](https://arxiv.org/abs/2306.11339)) runs every training step twice on the same network: the main
//! branch on the batch as usual, and a sub-branch on a heavily masked view of it, which is asked to agree with the main
//! branch's own, detached prediction. The two losses are added, half and half, and one optimizer step follows. Masks as a
//! plain augmentation make supervised training unstable, the paper finds; in a sub-branch they improve each of its
//! recipes, a ViT's at about half a step's extra cost. (On the small data of the examples a ViT gains from masks alone as
//! well, a ResNet and a Swin from neither: RESULTS.md in the repository has the figures.)
//!
//! # In a project of your own
//!
//! ```toml
//! [dependencies]
//! masksub = "0.1" # default-features = false: MaskSub, layers and operations alone
//! candle-core = "0.11"
//! candle-nn = "0.11"
//! ```
//!
//! | feature | default | |
//! |---|---|---|
//! | `models` | yes | ViT, ResNet, ConvNeXt and Swin: [`models`] |
//! | `train` | yes | optimizers, schedules, averages, mixup and cutmix, checkpoints of a run: [`train`] |
//! | `pretrained` | yes | checkpoints of other projects, for the models: [`pretrained`] |
//! | `augment` | no | the recipes' image transforms |
//! | `mpi` | no | ranks that are processes: [`manual::ranks`] |
//! | `nccl` | no | ranks that have a CUDA device each |
//! | `cuda`, `cudnn`, `metal`, `accelerate`, `mkl` | no | candle's of that name |
//!
//! [The manual](manual) answers questions in the order in which they come up; this page is the plan of the house.
//!
//! # A step
//!
//! The trainer owns its loop, its loss and its optimizer. What changes is that [`MaskSub::backward`] stands in the place
//! of the forward and backward pass:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, ModuleT, Optimizer, ParamsAdamW};
//! use masksub::models::vit::{Config, VisionTransformer};
//! use masksub::{Criterion, DropToken, MaskSub, Params, RandomMasking, Seed, Weights};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (device, seed) = (Device::Cpu, Seed::new(0));
//! let weights = Weights::seeded(seed);
//! let cfg = Config { embed_dim: 32, depth: 2, num_heads: 2, mlp_dim: 64, ..Config::deit3_tiny(10) }.with_input(8, 2, 1);
//! let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &device))?;
//!
//! let params = Params::from_varmap(weights.varmap());
//! let mut opt = AdamW::new(params.vars(), ParamsAdamW::default())?;
//! let model = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.5)?), params);
//! let criterion = Criterion::cross_entropy().with_label_smoothing(0.1)?;
//!
//! # let loader = vec![(Tensor::ones((4, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[0u32, 1, 2, 3], &device)?)];
//! for (t, (images, labels)) in loader.iter().enumerate() {
//!     let step = model.backward(images, seed.at(t), |logits| criterion.forward(logits, labels))?;
//!     opt.step(&step.grads)?;
//!     println!("main {:.3}, sub {:.3}", step.main_loss, step.sub_loss.unwrap_or_default());
//! }
//! let logits = model.forward_t(&loader[0].0, false)?; // evaluation: the bare model
//! # Ok(()) }
//! ```
//!
//! # Which branch for which model
//!
//! | model | branch | what is hidden |
//! |---|---|---|
//! | a ViT: [`models::vit`], or any that implements [`TokenModel`] | [`DropToken`] | tokens, after the position embedding: the sequence gets shorter |
//! | text, audio, series: any that implements [`SequenceModel`] | [`SequenceDrop`] | tokens, of each sample a share of its own length |
//! | Swin: [`models::swin`], or any that implements [`MaskTokenModel`] | [`MaskToken`] | blocks of positions, behind a learned token |
//! | ResNet: [`models::resnet`], and any candle `Module`, `ModuleT` or closure, through [`MaskSub::wrap`] | [`PatchDrop`] | blocks of the image |
//! | one that asks its [`Pass`] for dropout or drop path, as the ViT does | [`DropSub`], [`PathSub`] | activations, residual branches |
//!
//! # Your own model
//!
//! A source that is written for `candle_nn` trains when `use masksub::nn as candle_nn;` stands at its top: [`nn`] has all of
//! it at the same paths, less what cuts gradients without a word. [`MaskSub::wrap`] then takes it with [`PatchDrop`] as it
//! is; one that implements [`TokenModel`] goes to [`MaskSub::new`] with [`DropToken`]. Without that line
//! [`MaskSub::backward`] names the parameters that no gradient reaches, or the operation that has no backward and what
//! replaces it. An own rule for what is hidden is a [`MaskGenerator`].
//!
//! # Other tasks, losses and targets
//!
//! The sub-branch's loss should be of the main loss's kind: the default, a soft cross-entropy, beside cross-entropy, and
//! [`SubModelLoss::bce`] beside binary cross-entropy. Logits may have any shape, and be several tensors ([`Outputs`]); the
//! loss may be a closure or a type of your own ([`SubLoss`]). Its target is the main branch's prediction, another model's
//! or an averaged copy's ([`Teacher`], [`MaskedTeacher`]), or both branches learn from each other ([`Mutual`], with which
//! this is CoSub or R-Drop). The mask ratio may change from step to step ([`MaskRatio`]).
//!
//! # What is where
//!
//! * **Plug-in**: [`MaskSub`], the branches above, the masks they draw ([`RandomMasking`], [`BlockMasking`], [`Mask`]),
//!   the losses ([`Criterion`], [`SubModelLoss`]), the targets ([`SubTarget`]), [`Params`] and [`grad`].
//! * **Models and layers that can be trained**: [`models`], [`nn`], [`ops`].
//! * **Weights**: [`Weights`], a `VarBuilder` source of trainable variables, from a seed or a file, and of models on the same
//!   memory that only predict ([`Weights::no_grad_builder`]); [`pretrained`], the checkpoints of other projects, recognised
//!   and fitted to the model.
//! * **The recipes' pieces**, without a loop: [`train::optim`] (AdamW, LAMB, SGD, with parameter groups and a state that can
//!   be restored), [`train::schedule`], [`train::ema`], [`train::mix`], [`train::accumulate`], [`train::checkpoint`].
//! * **Several devices**: [`train::replicas`] on one, [`train::distributed`] on several ranks, threads or MPI's processes.
//! * **Images**: `augment`, the recipes' transforms as Pillow computes them, from eight-bit RGB to a normalised tensor; behind
//!   the feature of that name.
//!
//! # Randomness
//!
//! Nothing is global. A draw depends on (seed, step, sample, purpose) and nothing else ([`Seed`], [`StepKey`]), so the
//! same seed draws the same on every platform, a run resumes at any step, and a micro-batch draws what the whole batch
//! would. Arithmetic does not depend on the number of threads: on one kind of machine the same seed gives the same bits.
//!
//! # Errors
//!
//! Functions return the typed [`Error`]. Those that stand among candle's (losses, [`ops`], [`nn`]), traits that users
//! implement and closures they hand in return candle's; a typed error survives the passage through it, both ways. The
//! library does not panic.
#![warn(missing_docs, clippy::too_many_lines)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The house is held together with all of its rooms. A reduced set of features leaves links of the documentation, and what
// one room alone uses of another, without their other end: that is no fault.
#![cfg_attr(
    not(all(feature = "models", feature = "train", feature = "pretrained", feature = "augment")),
    allow(dead_code, unused_imports, rustdoc::broken_intra_doc_links)
)]

#[cfg(feature = "augment")]
pub mod augment;
mod branch;
mod check;
mod error;
mod file;
pub mod grad;
mod grid;
mod key;
mod loss;
#[cfg(any(doc, doctest))]
pub mod manual;
mod mask;
mod masksub;
mod model;
#[cfg(feature = "models")]
pub mod models;
mod nearest;
pub mod nn;
pub mod ops;
mod outputs;
mod params;
mod pass;
#[cfg(feature = "pretrained")]
pub mod pretrained;
mod target;
#[cfg(feature = "train")]
pub mod train;
mod weights;

pub use branch::{DropSub, DropToken, MaskToken, PatchDrop, PathSub, SequenceDrop, SubBranch};
pub use error::{CandleError, Error, Result};
pub use grid::Grid;
pub use key::{KeyedRng, Purpose, Seed, StepKey};
pub use loss::{Criterion, SubLoss, SubModelLoss};
pub use mask::{num_keep, BlockMasking, Fill, Mask, MaskGenerator, MaskRatio, RandomMasking, Sequences};
pub use masksub::{Branches, Difficulty, MaskSub, Step};
pub use model::{Forward, MaskTokenModel, Plain, SequenceModel, TokenModel};
pub use outputs::Outputs;
pub use params::Params;
pub use pass::Pass;
/// The version of rand whose traits [`KeyedRng`] implements.
pub use rand;
pub use target::{MainBranch, MaskedTeacher, Mutual, SubTarget, Teacher};
pub use weights::Weights;

// README's code compiles and runs with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
