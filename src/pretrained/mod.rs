//! Checkpoints of other projects, loaded into the crate's models.
//!
//! [`Pretrained::open`] reads a `.safetensors` file or what `torch.save` wrote (`.pth`, `.pt`, `.bin`), recognises from
//! the names and shapes of its tensors whose it is, and gives [`Weights`]: the source of trainable variables that a
//! model is made from.
//!
//! ```
//! use candle_core::{DType, Device};
//! use masksub::models::vit::{Config, VisionTransformer};
//! use masksub::pretrained::{Format, Pretrained};
//! use masksub::Seed;
//! # use std::collections::HashMap;
//! # let cfg = Config { embed_dim: 8, depth: 1, num_heads: 2, mlp_dim: 16, ..Config::mae_base(1000) };
//! # let cfg = cfg.with_input(32, 8, 3);
//! # let directory = std::env::temp_dir().join(format!("masksub-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! # let path = directory.join("mae_finetuned_vit_base.safetensors");
//! # let saved = masksub::Weights::seeded(Seed::new(1));
//! # VisionTransformer::new(&cfg, saved.var_builder(DType::F32, &Device::Cpu))?;
//! # saved.varmap().save(&path)?;
//!
//! let pretrained = Pretrained::open(&path)?;
//! assert_eq!(pretrained.format(), Format::MaeFinetuned);
//!
//! // The published size, for ten classes and images of 48 pixels.
//! # let published = cfg;
//! # let base = |classes| Config { num_classes: classes, ..published };
//! let cfg = Config { image_size: (48, 48), ..base(10) };
//! let weights = pretrained.weights(Seed::new(0));
//! let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
//!
//! // What was done, and whether anything is missing or left over.
//! assert_eq!(weights.notes(), [
//!     "format mae-finetuned, 20 tensors",
//!     "pos_embed: 4 x 4 -> 6 x 6 positions, bicubic",
//!     "head: 1000 -> 10 classes, drawn anew",
//! ]);
//! weights.check_exact(|_| false)?;
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A checkpoint fits every model of its architecture, whatever names that has: an OpenCLIP tower fills a
//! [`vit::WeightNames::Clip`](crate::models::vit::WeightNames::Clip) as well as a
//! [`vit::WeightNames::Timm`](crate::models::vit::WeightNames::Timm).
//!
//! Where shapes differ, a model still gets
//! - position embeddings and Swin's tables of relative positions, resized by bicubic interpolation as PyTorch's
//!   `interpolate(mode="bicubic", align_corners=False, antialias=False)` does it; the class token's position stays as
//!   it is. timm's own resizing (`resample_abs_pos_embed`) is antialiased by default, so that its models of another
//!   image size have slightly other positions, and logits, than those here. **The grid of the model's positions is
//!   taken for a square where their count is one**, and so is the checkpoint's: for a grid of another shape, even one
//!   of as many positions (7 x 28 instead of 14 x 14), call [`Pretrained::with_grid`], or they are copied in the wrong
//!   order without a note;
//! - a head for another number of classes, drawn from the seed as the configuration says.
//!
//! Any other shape is an [`Error::MisshapenWeight`], and a model of another architecture an
//! [`Error::OtherArchitecture`].
//!
//! **Nothing else makes sure that the file was used: call [`Weights::check_exact`] once the model is made.** What is
//! missing is drawn from the seed until then, and a model made below a prefix, as with `vb.pp("backbone")`, finds
//! nothing at all, since names start at the root of the builder.
//!
//! [`check_exact`](Weights::check_exact) ignores, with a line in [`Weights::notes`] for each:
//! - what belongs to a format and not to a classifier: the decoder and the final norm of MAE's pre-training, CLIP's and
//!   SigLIP's text tower and projections, CLIP's norm of the class token where a model averages the patch tokens, SigLIP's
//!   attention pooling where Hugging Face's classifier reads their mean, a pooler, a mask token, buffers;
//! - what a format never has: a head after MAE's pre-training and in Hugging Face's and OpenCLIP's towers (CLIP, SigLIP,
//!   DINOv2), MAE's and FT-CLIP's `fc_norm`, our Swin's `mask_token`;
//! - a head that was drawn for another number of classes.
//!
//! A head that is missing elsewhere is an error, for it would give random logits. Where it may be, as in a timm feature
//! extractor saved with `num_classes=0` or Hugging Face's `ViTModel`, call
//! `check_exact(|name| name.starts_with("head."))`, with the model's name of it.
//!
//! A head fits what it was trained on: that of Hugging Face's `CLIPForImageClassification`, which reads the mean of the
//! patch tokens and no norm, is an [`Error::InvalidArgument`] in a model that pools otherwise and has as many classes.
//!
//! The configuration says what a file cannot tell: the number of heads, the activation (OpenAI's CLIP has the quick
//! GELU), what norms add to the variance.
//!
//! A pickle can hold code. It is read as data: nothing is imported or called, and a file that holds code where weights
//! should be is an [`Error::CodeInCheckpoint`]. Tensors are read when a model asks for them.

mod file;
mod format;
mod names;
mod pickle;
mod pth;
mod resize;
mod source;
mod stored;

use std::path::Path;

pub use format::Format;

use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::Seed;
use crate::weights::Weights;
use file::TensorFile;
use source::PeerSource;

/// A checkpoint of another project, recognised: see the [module](self).
pub struct Pretrained {
    file: TensorFile,
    format: Format,
    grid: Option<Grid>,
}

impl Pretrained {
    /// Opens a checkpoint, and recognises its format. The weights of a PyTorch file may lie below `model` or
    /// `state_dict`; those of either kind of file may all have `module.` (`DistributedDataParallel`) or `_orig_mod.`
    /// (`torch.compile`) before their names. Which kind it is, its first bytes tell.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, is cut off, or is neither a safetensors nor a PyTorch file;
    /// [`Error::CodeInCheckpoint`] for one that holds code; [`Error::UnknownFormat`] for weights of no known format.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(path.as_ref())?;
        match Format::recognise(&file.tensors, file.key.as_deref()) {
            Some(format) => Ok(Self {
                file,
                format,
                grid: None,
            }),
            None => Err(Error::UnknownFormat {
                path: file.path,
                names: file.tensors.into_keys().collect(),
                known: Format::ALL.map(Format::name).join(", "),
            }),
        }
    }

    /// The project whose names and shapes the checkpoint has.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Sets the grid of the model's patches. **Call it whenever images are not square**: position embeddings do not tell
    /// their grid, and a count that is a square is taken for a square grid, without an error or a note. Of a model of
    /// 7 x 28 patches and a checkpoint of 14 x 14, each row would be two of the checkpoint's. The checkpoint's positions
    /// are always taken for a square where they can be one.
    ///
    /// ```no_run
    /// # use masksub::{pretrained::Pretrained, Grid};
    /// let pretrained = Pretrained::open("vit.safetensors")?.with_grid(Grid::new(7, 28));
    /// # Ok::<(), masksub::Error>(())
    /// ```
    pub fn with_grid(self, grid: Grid) -> Self {
        Self {
            grid: Some(grid),
            ..self
        }
    }

    /// The weights, and what is drawn from `seed` for want of them. Once the model is made, [`Weights::notes`] tells
    /// what was done.
    ///
    /// **Call [`Weights::check_exact`] once the model is made: nothing else fails where something is missing or left
    /// over.** The trap is a prefix: of a model made with `vb.pp("backbone")` no name is known, so that all of it is
    /// drawn. Make it from the root of the builder.
    ///
    /// The builder's errors are [`Error::MisshapenWeight`], [`Error::OtherArchitecture`], [`Error::File`], and
    /// [`Error::InvalidArgument`] for a grid that does not have the model's positions, or is not known.
    pub fn weights(self, seed: Seed) -> Weights {
        let path = self.file.path.clone();
        let source = PeerSource::new(self.file, self.format, self.grid);
        Weights::from_source(path, Box::new(source), seed)
    }
}

impl std::fmt::Debug for Pretrained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pretrained")
            .field("path", &self.file.path)
            .field("format", &self.format)
            .finish()
    }
}

/// The side of a square of that many positions.
fn square(count: usize) -> Option<usize> {
    let side = count.isqrt();
    (side > 0 && side * side == count).then_some(side)
}
