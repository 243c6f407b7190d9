//! MaskSub for candle.
mod branch;
mod error;
pub mod grad;
mod key;
mod loss;
mod mask;
mod masksub;
pub mod models;
pub mod nn;
pub mod ops;
mod params;
mod weights;

pub use branch::{DropSub, DropToken, Forward, Pass, PatchDrop, PathSub, Plain, SubBranch, TokenModel};
pub use error::{Error, Result};
pub use key::{KeyedRng, Purpose, Seed, StepKey};
pub use loss::{Criterion, SubModelLoss};
pub use mask::{num_keep, BlockMasking, Fill, Grid, Mask, MaskGenerator, MaskRatio, RandomMasking};
pub use masksub::{Branches, MaskSub, Step};
pub use params::Params;
pub use weights::Weights;
