//! The ViT's token sequence: patches projected, learned tokens before them, positions added.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Config, WeightNames};
use crate::check::{self, WEIGHTS};
use crate::grid::Grid;
use crate::models::init::{pytorch_default, NORMAL, ZERO};
use crate::models::resample::{self, Resize};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, PatchEmbed};
use crate::weights::{self, PositionRows};

/// Images to tokens.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    /// [D, C, p, p], as a convolution has it.
    patch_weight: Tensor,
    patch_bias: Option<Tensor>,
    compute_dtype: Option<DType>,
    /// Class token, distillation token and registers, those that there are: [1, ., D] each.
    prefix: Vec<Tensor>,
    /// [1, L, D], or [1, S + L, D] where the first S tokens have positions, too; zeros where there are none.
    pos_embed: Tensor,
    /// They are learned, and so not 0.
    has_positions: bool,
    num_prefix_positions: usize,
    pre_norm: Option<LayerNorm>,
    /// Of the positions.
    grid: Grid,
    resampled: Resampled,
}

impl Embedding {
    pub(super) fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (d, c, p, names) = (cfg.embed_dim, cfg.in_channels, cfg.patch_size, cfg.names());
        // timm leaves the patch convolution at PyTorch's default.
        let uniform = pytorch_default(c * p * p);
        let (weight_init, bias_init) = match cfg.weight_names {
            WeightNames::Timm => (uniform, uniform),
            WeightNames::HuggingFace | WeightNames::Clip => (NORMAL, ZERO),
        };
        let patch = vb.pp(names.patch_embed);
        let bias = || patch.get_with_hints(d, "bias", bias_init);
        let table = |rows: usize, name: &str, unbatched: &[usize]| {
            let shape = if names.batched_embeddings {
                vec![1, rows, d]
            } else {
                unbatched.to_vec()
            };
            vb.get_with_hints(shape, name, NORMAL)?.reshape((1, rows, d))
        };
        let told = PositionRows {
            prefix: cfg.num_prefix_positions(),
            grid: cfg.grid(),
        };
        // Before the tokens: a source that has positions of theirs, for which there is no place, adds them to these.
        if cfg.absolute_positions {
            weights::tell_positions(&vb, names.pos_embed, told);
        }
        let tokens = [
            (usize::from(cfg.class_token), names.cls_token),
            (usize::from(cfg.distillation_token), names.dist_token),
        ];
        let tokens = tokens.into_iter().filter(|(rows, _)| *rows > 0);
        let mut prefix = tokens
            .map(|(rows, name)| table(rows, name, &[d]))
            .collect::<Result<Vec<_>>>()?;
        if cfg.num_registers > 0 {
            prefix.push(table(cfg.num_registers, names.reg_token, &[cfg.num_registers, d])?);
        }
        let positions = cfg.num_prefix_positions() + cfg.grid().len();
        let pre_norm = || layer_norm(d, cfg.norm_eps, vb.pp(names.pre_norm));
        Ok(Self {
            patch_weight: patch.get_with_hints((d, c, p, p), "weight", weight_init)?,
            patch_bias: cfg.patch_bias.then(bias).transpose()?,
            compute_dtype: cfg.compute_dtype,
            prefix,
            pos_embed: if cfg.absolute_positions {
                table(positions, names.pos_embed, &[positions, d])?
            } else {
                let grid = format_args!("{} patches", cfg.grid()).to_string();
                check::fits_memory("image_size", grid, positions.checked_mul(d), vb.dtype().size_in_bytes())?;
                Tensor::zeros((1, positions, d), vb.dtype(), vb.device())?
            },
            has_positions: cfg.absolute_positions,
            num_prefix_positions: cfg.num_prefix_positions(),
            pre_norm: cfg.pre_norm.then(pre_norm).transpose()?,
            grid: cfg.grid(),
            resampled: Resampled::default(),
        })
    }

    /// [B, C, H, W] of that grid to [B, P + L, D], or to [B, P + K, D] of the positions that `keep` lists, K for each
    /// sample.
    pub(super) fn forward(&self, xs: &Tensor, grid: Grid, keep: Option<&[u32]>) -> Result<Tensor> {
        check::same_dtype("images", xs, WEIGHTS, &self.patch_weight)?;
        let (prefix, positions) = self.prefix_and_positions(&self.positions_on(grid)?)?;
        let rounded = |param: &Tensor| param.to_dtype(self.compute_dtype.unwrap_or(param.dtype()));
        let (weight, bias) = (
            rounded(&self.patch_weight)?,
            self.patch_bias.as_ref().map(rounded).transpose()?,
        );
        let embed = PatchEmbed {
            weight: &weight,
            bias: bias.as_ref(),
            prefix: prefix.as_ref(),
            positions: &positions,
        };
        let tokens = ops::patch_embed(xs, &embed, keep)?;
        match &self.pre_norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }

    /// The positions for images of another grid: [1, L, D], or [1, S + L, D].
    fn positions_on(&self, grid: Grid) -> Result<Tensor> {
        if grid == self.grid {
            return Ok(self.pos_embed.clone());
        }
        if !self.has_positions {
            let (d, table) = (self.pos_embed.dim(2)?, &self.pos_embed);
            let size = table.dtype().size_in_bytes();
            check::fits_memory(
                "image_size",
                format_args!("{grid} patches"),
                grid.len().checked_mul(d),
                size,
            )?;
            return Tensor::zeros((1, grid.len(), d), table.dtype(), table.device());
        }
        let (prefix, all) = (self.num_prefix_positions, self.pos_embed.dim(1)?);
        let patches = self.pos_embed.narrow(1, prefix, all - prefix)?;
        let weights = self.resampled.weights(self.grid, grid, patches.device())?;
        let resized = |patches: &Tensor| weights.to_dtype(patches.dtype())?.matmul(patches);
        let patches = match patches.squeeze(0)? {
            patches if ops::is_half(&patches) => ops::in_f32(&[&patches], |patches| resized(&patches[0]))?,
            patches => resized(&patches)?,
        };
        Tensor::cat(&[self.pos_embed.narrow(1, 0, prefix)?, patches.unsqueeze(0)?], 1)
    }

    /// The tokens in front, [1, P, D], and the positions of what has none yet: all tokens have them or the patches
    /// only.
    fn prefix_and_positions(&self, pos_embed: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
        let prefix = match &self.prefix[..] {
            [] => return Ok((None, pos_embed.clone())),
            [tokens] => tokens.clone(),
            tokens => Tensor::cat(tokens, 1)?,
        };
        let (with, all) = (self.num_prefix_positions, prefix.dim(1)?);
        if with == 0 || with == all {
            return Ok((Some(prefix), pos_embed.clone()));
        }
        // Registers have no position: those of the others are added here.
        let first = (prefix.narrow(1, 0, with)? + pos_embed.narrow(1, 0, with)?)?;
        let prefix = Tensor::cat(&[first, prefix.narrow(1, with, all - with)?], 1)?;
        let patches = pos_embed.narrow(1, with, pos_embed.dim(1)? - with)?;
        Ok((Some(prefix), patches))
    }
}

/// What positions of one grid take of those of another, by the former: each is computed once.
#[derive(Clone, Debug, Default)]
struct Resampled(Arc<Mutex<BTreeMap<(usize, usize), Tensor>>>);

impl Resampled {
    /// Most sizes that are kept.
    const MOST: usize = 32;

    /// [L', L], by which a table of L positions is multiplied from the left.
    fn weights(&self, from: Grid, to: Grid, device: &Device) -> Result<Tensor> {
        // A thread that panicked while holding the lock leaves whole entries.
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(weights) = kept.get(&(to.height, to.width)) {
            return Ok(weights.clone());
        }
        let count = from.len().checked_mul(to.len());
        check::fits_memory("image_size", format_args!("{to} patches"), count, size_of::<f32>())?;
        let taps = |from, to| resample::taps(Resize::AntialiasedBicubic, from, to);
        let (rows, columns) = (taps(from.height, to.height), taps(from.width, to.width));
        let mut weights = vec![0f32; count.unwrap_or_default()];
        let pairs = rows
            .iter()
            .flat_map(|row| columns.iter().map(move |column| (row, column)));
        for (of_position, (row, column)) in weights.chunks_mut(from.len()).zip(pairs) {
            for (y, down) in row {
                for (x, right) in column {
                    if let Some(weight) = of_position.get_mut(y * from.width + x) {
                        *weight += (down * right) as f32;
                    }
                }
            }
        }
        let weights = Tensor::from_vec(weights, (to.len(), from.len()), device)?;
        if kept.len() == Self::MOST {
            kept.clear();
        }
        kept.insert((to.height, to.width), weights.clone());
        Ok(weights)
    }
}
