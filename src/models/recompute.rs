//! The choice between memory and time.

use std::str::FromStr;

use candle_core::DType;

use crate::error::{Error, Result};

/// Blocks whose branches compute again in the backward what they would otherwise keep from the forward (Chen et al. 2016,
/// arXiv 1604.06174; PyTorch's and timm's "gradient checkpointing"): bigger batches for the same memory, for the time of
/// most of another forward pass of these blocks. Losses and gradients are the same to the bit.
///
/// For branches that are one operation on the CPU: attention and plain MLPs without dropout. A configuration with dropout,
/// gated MLPs or a `compute_dtype` refuses all but [`Never`](Self::Never). A pass on which a sub-branch imposes dropout
/// ([`DropSub`](crate::DropSub)) keeps all, and so do other devices and f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// All is kept.
    #[default]
    Never,
    /// Every block computes again.
    EveryBlock,
    /// The first of a model's or stage's blocks does, the third, the fifth, ...
    EveryOther,
}

impl FromStr for Recompute {
    type Err = Error;

    /// Reads `never`, `every-block` or `every-other`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "never" => Ok(Self::Never),
            "every-block" => Ok(Self::EveryBlock),
            "every-other" => Ok(Self::EveryOther),
            _ => Err(Error::invalid("recompute", text, "never, every-block or every-other")),
        }
    }
}

impl Recompute {
    pub(super) fn in_block(self, index: usize) -> bool {
        match self {
            Self::Never => false,
            Self::EveryBlock => true,
            Self::EveryOther => index.is_multiple_of(2),
        }
    }

    /// Refuses what would keep all the same.
    pub(super) fn check(self, dropout: f64, gated: bool, compute_dtype: Option<DType>) -> Result<()> {
        let with = match compute_dtype {
            _ if self == Self::Never => return Ok(()),
            _ if gated => "a gated MLP",
            _ if dropout > 0.0 => "dropout",
            Some(_) => "a compute_dtype",
            None => return Ok(()),
        };
        Err(Error::invalid("recompute", format!("{self:?} with {with}"), "Never"))
    }
}
