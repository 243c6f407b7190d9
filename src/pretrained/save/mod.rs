//! Weights in files that peers load: under their names, in their shapes.

mod convolutional;
mod expected;
mod refilled;
mod swin;
mod vit;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use candle_nn::VarBuilder;

pub use refilled::Refilled;

use super::format::Family;
use super::names::{ONE_NORM, QKV};
use crate::error::{Error, Fault, Result};
use crate::file;

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

/// Projects whose loaders take what [`save`] writes, with `strict=True`.
///
/// `Display` gives the names in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// timm's (`timm`), which facebookresearch's DeiT and MAE and, of a ResNet, torchvision have as well.
    Timm,
    /// transformers' (`huggingface`): those of its files, for `from_pretrained`.
    HuggingFace,
}

impl Layout {
    /// The layouts, in the order in which to try them.
    pub const ALL: [Self; 2] = [Self::Timm, Self::HuggingFace];

    const fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::HuggingFace => "huggingface",
        }
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::models::vit::Config {}
    impl Sealed for crate::models::swin::Config {}
    impl Sealed for crate::models::convnext::Config {}
    impl Sealed for crate::models::resnet::Config {}
}

/// Configurations of the crate's models, which tell what their peers call the weights.
pub trait Architecture: sealed::Sealed {
    /// The weights of such a model, by its own names, under those of `layout`.
    #[doc(hidden)]
    fn laid_out(&self, state: &BTreeMap<String, Tensor>, layout: Layout) -> Result<BTreeMap<String, Tensor>>;

    /// Makes such a model.
    #[doc(hidden)]
    fn make(&self, vb: VarBuilder) -> candle_core::Result<()>;

    /// Tells whether peers call the model's `fc_norm` the final norm.
    #[doc(hidden)]
    fn has_one_norm(&self) -> bool {
        false
    }
}

/// A model's weights under the names and in the shapes of a project. `state` is
/// [`Weights::state`](crate::Weights::state) of a model of the crate, in whichever names, and `cfg` its configuration.
///
/// What these hold is equal to the model's: a position of the class token that a peer has and the model has not is 0,
/// and so is a bias; a norm of every token before their mean is called `norm`. Swin's mask token, which no peer has, is
/// left out.
///
/// | in | loaded by |
/// |---|---|
/// | [`Layout::Timm`] | `timm.create_model(...).load_state_dict(tensors)`, of a ViT that averages with the arguments below |
/// | [`Layout::HuggingFace`] | `from_pretrained` of `ViTForImageClassification`, `DeiTForImageClassification` and `...WithTeacher`, `Dinov2ForImageClassification` and `Dinov2WithRegistersForImageClassification`, `SiglipForImageClassification` (`vision_use_head=False`), and the same of Swin, ConvNeXt, ConvNeXt V2 and ResNet |
///
/// | [`Pool`](crate::models::vit::Pool) | arguments of timm's `VisionTransformer` |
/// |---|---|
/// | `Mean` | `global_pool='avg'` (`fc_norm=True`, its default then) |
/// | `NormThenMean`, `FinalNormThenMean` | `global_pool='avg', fc_norm=False, final_norm=True` |
/// | `MeanOnly` | `global_pool='avg', fc_norm=False, final_norm=False` |
///
/// # Errors
/// [`Error::InvalidArgument`] where the project has no such model, and for a `state` that is not of one of `cfg`: that
/// has other weights, or of other shapes.
pub fn state_dict(cfg: &impl Architecture, state: &Tensors, layout: Layout) -> Result<Tensors> {
    cfg.laid_out(state, layout)
}

/// Writes a model's weights as a `.safetensors` file that a project's own loaders take: those of [`state_dict`].
///
/// ```
/// # use candle_core::{DType, Device};
/// # use masksub::models::vit::{Config, VisionTransformer};
/// use masksub::pretrained::{self, Format, Layout, Pretrained};
/// # let cfg = Config { embed_dim: 8, depth: 1, num_heads: 2, mlp_dim: 16, ..Config::hf_base(10) }.with_input(32, 8, 3);
/// # let weights = masksub::Weights::seeded(masksub::Seed::new(1));
/// # let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// # let path = std::env::temp_dir().join(format!("masksub-save-{}.safetensors", std::process::id()));
/// pretrained::save(&path, vit.config(), &weights.state(), Layout::Timm)?;
/// assert_eq!(Pretrained::open(&path)?.format(), Format::TimmVit);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`state_dict`], and [`Error::File`] when the file cannot be written.
pub fn save(path: impl AsRef<Path>, cfg: &impl Architecture, state: &Tensors, layout: Layout) -> Result<()> {
    write(path.as_ref(), &state_dict(cfg, state, layout)?, metadata(cfg))
}

/// The metadata of a file of [`state_dict`]'s tensors, for those who write it themselves: that they are PyTorch's
/// (transformers opens no file that does not say so), and what [`Pretrained::open`](super::Pretrained::open) must know
/// beside their names, of a [`Pool::NormThenMean`](crate::models::vit::Pool::NormThenMean) that its norm is no class
/// token's.
pub fn metadata(cfg: &impl Architecture) -> BTreeMap<String, String> {
    metadata_of(cfg.has_one_norm())
}

fn metadata_of(one_norm: bool) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    if one_norm {
        metadata.insert(ONE_NORM.to_string(), "true".to_string());
    }
    metadata
}

fn write(path: &Path, tensors: &Tensors, metadata: BTreeMap<String, String>) -> Result<()> {
    let written = file::write_safetensors(path, tensors, metadata, |_| Ok(()));
    written.map_err(|error| Fault::caused_by("it cannot be written", error).of_file(path))
}

/// A model's weights by their keys, those of `skipped` names left out. They are all that the configured model has.
fn by_key(family: Family, cfg: &impl Architecture, state: &Tensors, skipped: &[&str]) -> Result<Tensors> {
    let mut keys = Tensors::new();
    for (name, tensor) in state.iter().filter(|(name, _)| !skipped.contains(&name.as_str())) {
        let key = family
            .key(name, Some(tensor.dims()))
            .ok_or_else(|| unlike(family, name))?;
        if keys.insert(key, tensor.clone()).is_some() {
            return Err(unlike(family, name));
        }
    }
    expected::check(family, cfg, state)?;
    Ok(keys)
}

/// The refusal of weights that are none of the model's.
fn unlike(family: Family, name: &str) -> Error {
    let allowed = format!(
        "a state of the configured {}, which has no such weight, or has it once",
        family.name()
    );
    Error::invalid("state", format!("one with {name}"), allowed)
}

/// The refusal of a model that a project has not.
fn no_peer(layout: Layout, why: &str) -> Error {
    let others: Vec<_> = Layout::ALL
        .iter()
        .filter(|other| **other != layout)
        .map(Layout::to_string)
        .collect();
    let allowed = format!(
        "{}, or Pretrained::save of a checkpoint like it: {why}",
        others.join(", ")
    );
    Error::invalid("layout", layout, allowed)
}

/// The three parts of a packed projection.
fn thirds(packed: &Tensor) -> Result<[Tensor; 3]> {
    let rows = packed.dim(0)? / 3;
    let part = |part: usize| packed.narrow(0, part * rows, rows)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}
