//! The vision models of candle-transformers 0.11.1, each at the smallest size its constructor allows.
//!
//! Left out: what is no vision model in spite of its name (`openclip` holds a text tower, `mixformer` is Phi), TrOCR's
//! encoder (it is `vit`), generators, and towers of language models that read packed patches instead of images.

mod convolutional;
mod hybrids;
mod image_towers;
mod transformers;

use candle_core::{ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

/// A model as a function of images \[B, 3, H, W\] and the training flag.
pub type Model = Box<dyn Fn(&Tensor, bool) -> Result<Tensor>>;

pub struct Entry {
    /// Module in candle-transformers, and the variant.
    pub name: &'static str,
    /// Side of the square images.
    pub image: usize,
    /// Numbers of images that are tried.
    pub batches: &'static [usize],
    pub build: fn(VarBuilder<'static>) -> Result<Model>,
    /// Tensors that the source takes as optional and this variant's checkpoint lacks: a `VarMap` would make them.
    pub absent: fn(&str) -> bool,
    /// Start of the image model's parameter names, where the type holds a text model too.
    pub part: &'static str,
    /// Mean of the norms' weights at the start. Where batch norm does not normalise, activations can outgrow f32.
    pub norm_weight: f64,
    /// How many of the parameters get a gradient, as the table has it.
    pub with_gradient: &'static str,
    /// What stands out, as the table has it in bold; README sums these up.
    pub found: &'static str,
    pub cause: &'static str,
    pub remedy: &'static str,
}

/// Stands in for the fields that most entries leave alone.
const PLAIN: Entry = Entry {
    name: "",
    image: 32,
    batches: &[4, 1],
    build: |_| candle_core::bail!("no constructor"),
    absent: |_| false,
    part: "",
    norm_weight: 1.0,
    with_gradient: "",
    found: "",
    cause: "",
    remedy: "",
};

const NORM: &str = "`LayerNorm` (contiguous input) has no backward";
const NORM_SOFTMAX: &str = "`LayerNorm` (contiguous input) and `softmax_last_dim` have no backward";
const NORM_BATCH: &str = "`LayerNorm` (contiguous input) has no backward; class token or positions are not broadcast";
const CLIP: &str = "`LayerNorm` (contiguous input) has no backward; a `VarMap` gets no class token, it is a constant";
const FROZEN: &str = "the source passes `train = false` to `BatchNorm`";
const FUSED: &str = "the constructor fuses batch norms into convolutions";

const OUR_VIT: &str =
    "`use masksub::nn as candle_nn;` in its source, or `masksub::models::vit`, same weights and names";
const OWN_COPY: &str = "`use masksub::nn as candle_nn;` in its source";
const OWN_COPY_BATCH: &str = "`use masksub::nn as candle_nn;` in its source; for batches broadcast over them, too";
const OWN_TRAIN: &str = "as it is for fine-tuning at fixed statistics; else own copy that passes `train` on";
const OWN_BRANCHES: &str = "own copy that keeps the branches apart while it trains";

fn model(module: impl ModuleT + 'static) -> Result<Model> {
    Ok(Box::new(move |xs, train| module.forward_t(xs, train)))
}

/// A configuration through serde: some have private fields.
macro_rules! config {
    ($($field:tt)*) => {
        serde_json::from_value(serde_json::json!({ $($field)* })).map_err(candle_core::Error::wrap)?
    };
}
use config;

/// All of them.
pub fn all() -> Vec<Entry> {
    [
        transformers::entries(),
        image_towers::entries(),
        hybrids::entries(),
        convolutional::entries(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
