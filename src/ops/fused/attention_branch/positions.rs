//! The part that tokens' positions have in an attention branch.

use candle_core::{Result, Tensor};

use crate::error::Result as OurResult;
use crate::ops::attention::{self, Dims};
use crate::ops::biased_attention::{self, RelativeBias};
use crate::ops::fused::packed::{self, Share};
use crate::ops::rotary_qkv::{self, Rotation};

/// The part that positions have in an [`attention_branch`](super::attention_branch()): none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Positions<'a> {
    /// Angles by which queries and keys are turned, as [`rotary_qkv`](crate::ops::rotary_qkv()) does it.
    pub rotation: Option<Rotation<'a>>,
    /// Biases of the scores, as [`biased_attention`](crate::ops::biased_attention()) has them.
    pub bias: Option<RelativeBias<'a>>,
}

impl Positions<'_> {
    pub(super) fn check(&self, dims: Dims, xs: &Tensor) -> OurResult<()> {
        if let Some(rotation) = &self.rotation {
            rotation.check(dims)?;
        }
        self.bias.as_ref().map_or(Ok(()), |bias| bias.check(dims, "xs", xs))
    }

    /// Attention of a packed projection by candle's operations.
    pub(super) fn attend(&self, qkv: Tensor, dims: Dims) -> Result<Tensor> {
        let qkv = match &self.rotation {
            Some(rotation) => rotary_qkv::routed(&qkv, dims, rotation)?,
            None => qkv,
        };
        match &self.bias {
            Some(bias) => biased_attention::routed(&qkv, dims, bias),
            None => attention::routed(&qkv, dims),
        }
    }

    /// Of some samples of a batch.
    pub(super) fn of(&self, share: Share, tokens: usize) -> Result<PositionsOf> {
        let angles = |angles: &Tensor| match share.samples {
            Some(samples) if angles.rank() == 3 => packed::select(angles, samples),
            _ => Ok(angles.clone()),
        };
        let rotation = |Rotation { cos, sin, pairs }| Ok::<_, candle_core::Error>((angles(cos)?, angles(sin)?, pairs));
        let pairs = tokens * tokens;
        let index = |bias: RelativeBias| match share.samples {
            Some(samples) if bias.index.len() > pairs => {
                let of_sample = |&sample: &usize| &bias.index[sample * pairs..][..pairs];
                samples.iter().flat_map(of_sample).copied().collect()
            }
            _ => bias.index.to_vec(),
        };
        Ok(PositionsOf {
            rotation: self.rotation.map(rotation).transpose()?,
            index: self.bias.map(index),
        })
    }
}

/// [`Positions`] of some samples of a batch, less the table.
pub(super) struct PositionsOf {
    rotation: Option<(Tensor, Tensor, rotary_qkv::Pairs)>,
    pub(super) index: Option<Vec<u32>>,
}

impl PositionsOf {
    pub(super) fn rotation(&self) -> Option<Rotation<'_>> {
        let (cos, sin, pairs) = self.rotation.as_ref()?;
        Some(Rotation {
            cos,
            sin,
            pairs: *pairs,
        })
    }

    /// With the table that `positions` has.
    pub(super) fn with_table<'a>(&'a self, positions: &Positions<'a>) -> Positions<'a> {
        let bias = |(bias, index): (RelativeBias<'a>, &'a Vec<u32>)| RelativeBias { index, ..bias };
        Positions {
            rotation: self.rotation(),
            bias: positions.bias.zip(self.index.as_ref()).map(bias),
        }
    }
}
