//! Whole branches, blocks and stems as one operation each.

mod activate;
pub(crate) mod affine;
pub(crate) mod attention_branch;
pub(crate) mod conv_mlp_branch;
pub(crate) mod conv_norm;
pub(crate) mod gated_mlp_branch;
#[cfg(test)]
mod mixed;
pub(crate) mod mlp_branch;
mod norm;
mod packed;
pub(crate) mod patch_embed;
mod projection;
pub(crate) mod residual;
pub(crate) mod residual_blocks;
pub(crate) mod stem;
pub(crate) mod stream;
pub(crate) mod window_attention_branch;
