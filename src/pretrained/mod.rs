//! Checkpoints of other projects, loaded into the crate's models.
//!
//! [`Pretrained::open`] reads a `.safetensors` file, what `torch.save` wrote (`.pth`, `.pt`, `.bin`), an archive of
//! `numpy.savez` (`.npz`), or a directory of `save_pretrained`, recognises from the names and shapes of its tensors
//! whose it is, and gives [`Weights`]: the source of trainable variables that a model is made from.
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
//! # What is recognised
//!
//! | names of | models | positions are resized |
//! |---|---|---|
//! | timm | ViT, DeiT, DINOv2, SigLIP, DeiT-III, CLIP's tower, EVA-02 | antialiased bicubic |
//! | timm | Swin, BEiT and BEiT v2 | tables in a geometric series |
//! | timm | DINOv3, ConvNeXt and ConvNeXt V2, ResNet | there are none |
//! | facebookresearch | DeiT-III, MAE before and after fine-tuning | bicubic |
//! | facebookresearch | ConvNeXt and ConvNeXt V2 | there are none |
//! | Hugging Face, its files and its `state_dict()` in memory | ViT, ViT-MAE, DeiT, DINOv2, SigLIP, CLIP (all, the tower, a classifier), Swin | bicubic |
//! | Hugging Face | DINOv2 with registers | antialiased bicubic |
//! | Hugging Face | DINOv3, ConvNeXt and ConvNeXt V2, ResNet | there are none |
//! | OpenCLIP, OpenAI | CLIP, all of it or the tower | antialiased bicubic |
//! | torchvision | ViT, Swin, ResNet | bicubic with aligned corners; tables bicubic |
//! | Microsoft | Swin | tables bicubic |
//! | Google (JAX), `.npz` | ViT, and `big_vision`'s ViT and SigLIP | linear with aligned corners |
//! | mmpretrain | ViT, DeiT, DeiT-III, CLIP's tower, DINOv2 | bicubic |
//!
//! Whatever wraps the weights is taken off, and [`Weights::notes`] says what it was:
//!
//! | wrapping | |
//! |---|---|
//! | a directory, `*.index.json`, any shard (`model-00001-of-00003.safetensors`) | all shards are read; one that is missing, torn or another model's is named |
//! | `model`, `state_dict`, `model_state_dict`, `module` (DeepSpeed), `net`, `teacher`, any other key | the likeliest that holds a known format; averaged weights (`state_dict_ema`) only where there are no others, or by [`Pretrained::open_key`] |
//! | `module.`, `_orig_mod.`, `model.`, `backbone.`, any prefix up to six modules deep | the outermost that a known format stands behind; two alike are an error, which [`Pretrained::open_key`] resolves |
//! | gzip | inflated in memory, and held there for as long as the [`Weights`] live |
//! | `AveragedModel`'s count, an `args` namespace, an optimizer's state | left out |
//!
//! A pickle may hold 64 dictionaries of tensors at most; of one with more, [`Pretrained::open_key`] takes one.
//!
//! What is refused says what it is: a model pickled whole or scripted ([`Error::CodeInCheckpoint`]), HDF5, GGUF, a
//! pointer of Git LFS, compressed archives, shards without their siblings, and weights that are told to be of a model
//! that the crate has not, a Swin V2 or a Hiera ([`Error::OtherModel`]).
//!
//! # What is fitted
//!
//! Where shapes differ, a model still gets
//! - position embeddings and Swin's tables of relative positions, resized as the project does it whose names the file
//!   has (the table above, [`Resize`]), or in the way of [`Pretrained::with_resize`]; the class token's position stays
//!   as it is; where the model has none for it, as DINOv2 with registers, it is added to the token itself. (DeiT's files have timm's names, and are taken for timm's.) The crate's ViT tells the grid of its
//!   images, square or not. Of any other model the number of positions tells it: a square where it can be one, for
//!   which a line of [`Weights::notes`] says so; for any other grid, even one of as many positions (7 x 28 instead of
//!   14 x 14), call [`Pretrained::with_grid`]. A file's positions lie on a square where they can;
//! - a kernel for images of one channel, the sum over the three, and of others, repeated and scaled, as timm does it;
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
//!   SigLIP's text tower and projections, CLIP's norm of the class token where a model averages the patch tokens,
//!   SigLIP's attention pooling where Hugging Face's classifier reads their mean, a pooler, a mask token, buffers;
//! - what a format never has: a head after MAE's pre-training and in Hugging Face's and OpenCLIP's towers (CLIP,
//!   SigLIP, DINOv2), MAE's and FT-CLIP's `fc_norm`, our Swin's `mask_token`;
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

mod archive;
mod elements;
mod file;
mod fit;
mod format;
mod forms;
mod layout;
mod names;
mod notes;
mod npz;
mod part;
mod pickle;
mod positions;
mod pth;
mod resize;
mod respelled;
mod save;
mod shards;
mod source;
mod stored;
mod strangers;

use std::path::Path;

pub use format::Format;
pub use resize::Resize;
pub use save::{metadata, save, state_dict, Architecture, Layout, Refilled};

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::grid::Grid;
use crate::key::Seed;
use crate::weights::Weights;
use file::TensorFile;
use layout::Place;
use source::{Fitting, PeerSource};

/// A checkpoint of another project, recognised: see the [module](self).
pub struct Pretrained {
    file: TensorFile,
    layout: Place,
    fitting: Fitting,
}

impl Pretrained {
    /// Opens a checkpoint, and recognises its format: a file, an index of shards or one of them, or the directory that
    /// holds them. What the weights are wrapped in is taken off, as the [module](self) says. Which kind a file is, its
    /// first bytes tell.
    ///
    /// # Errors
    /// [`Error::File`] for a file that cannot be read, is cut off, lacks shards, or is of a kind that is not read;
    /// [`Error::CodeInCheckpoint`] for one that holds code where weights should be; [`Error::UnknownFormat`] for
    /// weights of no known format, and [`Error::OtherModel`] where their names tell that they are of one that the crate
    /// has not; [`Error::InvalidArgument`] for several models alike, between which
    /// [`open_key`](Self::open_key) chooses.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_place(path.as_ref(), None)
    }

    /// Opens a checkpoint that holds several models' weights, and takes those below `key`: of timm's `state_dict` and
    /// `state_dict_ema`, of DINO's `student` and `teacher`. It may as well be the start of their names.
    ///
    /// ```no_run
    /// # use masksub::pretrained::Pretrained;
    /// let averaged = Pretrained::open_key("last.pth.tar", "state_dict_ema")?;
    /// # Ok::<(), masksub::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::InvalidArgument`] where no known format lies below `key`.
    pub fn open_key(path: impl AsRef<Path>, key: &str) -> Result<Self> {
        Self::open_place(path.as_ref(), Some(key))
    }

    fn open_place(path: &Path, key: Option<&str>) -> Result<Self> {
        let (file, layout) = TensorFile::open(path, key)?;
        Ok(Self {
            file,
            layout,
            fitting: Fitting::default(),
        })
    }

    /// The project whose names and shapes the checkpoint has.
    pub fn format(&self) -> Format {
        self.layout.format
    }

    /// Sets the grid of the model's patches, for models of others: the crate's ViT tells its own, from which this may
    /// not differ. **Call it whenever their images are not square**: position embeddings do not tell their grid, and a
    /// count that is a square is taken for a square grid. Of a model of 7 x 28 patches and a checkpoint of 14 x 14,
    /// each row would be two of the checkpoint's.
    ///
    /// ```no_run
    /// # use masksub::{pretrained::Pretrained, Grid};
    /// let pretrained = Pretrained::open("vit.safetensors")?.with_grid(Grid::new(7, 28));
    /// # Ok::<(), masksub::Error>(())
    /// ```
    pub fn with_grid(mut self, grid: Grid) -> Self {
        self.fitting.grid = Some(grid);
        self
    }

    /// Resizes positions in another way than the project does whose names the checkpoint has: a checkpoint of timm's
    /// that was fine-tuned elsewhere, say.
    ///
    /// ```no_run
    /// # use masksub::pretrained::{Pretrained, Resize};
    /// // facebookresearch's DeiT has timm's names, and resizes without antialias.
    /// let pretrained = Pretrained::open("deit_small_patch16_224.pth")?.with_resize(Resize::Bicubic);
    /// # Ok::<(), masksub::Error>(())
    /// ```
    pub fn with_resize(mut self, resize: Resize) -> Self {
        self.fitting.resize = Some(resize);
        self
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
        let source = PeerSource::new(self.file, &self.layout, self.fitting);
        Weights::from_source(path, Box::new(source), seed)
    }
}

impl std::fmt::Debug for Pretrained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pretrained")
            .field("path", &self.file.path)
            .field("format", &self.format())
            .finish()
    }
}

/// The side of a square of that many positions.
fn square(count: usize) -> Option<usize> {
    let side = count.isqrt();
    (side > 0 && side * side == count).then_some(side)
}
