//! The part that tokens' positions have in an attention branch.

use candle_core::{Result, Tensor};

use crate::error::Result as OurResult;
use crate::ops::attention::{self, Dims};
use crate::ops::biased_attention::{self, RelativeBias};
use crate::ops::fused::packed;
use crate::ops::rotary_qkv::{self, Rotation};

/// The part that positions have in an [`attention_branch`](super::attention_branch()): none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Positions<'a> {
    /// Angles by which queries and keys are turned, as [`rotary_qkv`](crate::ops::rotary_qkv()) does it.
    pub rotation: Option<Rotation<'a>>,
    /// Biases of the scores, as [`biased_attention`](crate::ops::biased_attention()) has them.
    pub bias: Option<RelativeBias<'a>>,
}

impl<'a> Positions<'a> {
    pub(super) fn check(&self, dims: Dims, xs: &Tensor) -> OurResult<()> {
        if let Some(rotation) = &self.rotation {
            rotation.check(dims)?;
        }
        self.bias.as_ref().map_or(Ok(()), |bias| bias.check(dims, "xs", xs))
    }

    /// Attention of a packed projection, in heads.
    pub(crate) fn attend(&self, qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
        let dims = Dims::of(qkv.dims(), num_heads)?;
        let turned = match &self.rotation {
            Some(rotation) => &rotary_qkv::routed(qkv, dims, rotation)?,
            None => qkv,
        };
        match &self.bias {
            Some(bias) => biased_attention::routed(turned, dims, bias),
            None => attention::routed(turned, dims),
        }
    }

    fn tensors(&self) -> Vec<&'a Tensor> {
        let angles = self.rotation.iter().flat_map(|rotation| [rotation.cos, rotation.sin]);
        angles.chain(self.bias.map(|bias| bias.index)).collect()
    }

    /// What of the tensors concerns some samples of a batch; all of it where `samples` is `None`.
    pub(super) fn select(&self, samples: Option<&[usize]>) -> Result<Vec<Tensor>> {
        let of_samples = |tensor: &Tensor| match samples {
            // With a dimension of samples, and more than one entry there.
            Some(samples) if tensor.rank() == 3 && tensor.dim(0)? > 1 => packed::select(tensor, samples),
            _ => Ok(tensor.clone()),
        };
        self.tensors().into_iter().map(of_samples).collect()
    }

    /// The same with what [`select`](Self::select) gave.
    pub(super) fn with(&self, selected: &'a [Tensor]) -> Self {
        let rotation = self.rotation.zip(selected.first().zip(selected.get(1)));
        Self {
            rotation: rotation.map(|(rotation, (cos, sin))| Rotation { cos, sin, ..rotation }),
            bias: self
                .bias
                .zip(selected.last())
                .map(|(bias, index)| RelativeBias { index, ..bias }),
        }
    }
}
