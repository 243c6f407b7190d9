//! A file of recorded values: its tensors, and the models that its configuration describes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use candle_core::{Device, Tensor};
use masksub::models::resnet::{self, BlockKind};
use masksub::models::swin;
use masksub::models::vit::{self, Activation, Pool, WeightNames};
use masksub::Weights;
use serde_json::Value;

use crate::peer;

/// A file of recorded tensors and its configuration.
pub struct Recorded {
    pub tensors: BTreeMap<String, Tensor>,
    pub config: Value,
}

impl Recorded {
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let config = metadata.metadata().as_ref().and_then(|entries| entries.get("config"));
        let config =
            config.context("it has no configuration: a file of recorded values has `config` in its metadata")?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
        Ok(Self {
            tensors: tensors.into_iter().collect(),
            config: peer::described(serde_json::from_str(config)?)?,
        })
    }

    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .with_context(|| format!("it has no tensor {name}"))
    }

    /// A single number. (They are recorded with the shape \[1\].)
    pub fn number_at(&self, name: &str) -> Result<Tensor> {
        Ok(self.get(name)?.reshape(())?)
    }

    /// All tensors below `prefix`, by the rest of their name.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors
            .iter()
            .filter_map(move |(name, t)| Some((name.strip_prefix(prefix)?, t)))
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        self.config[key]
            .as_str()
            .with_context(|| format!("its configuration has no {key}"))
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        self.config[key]
            .as_f64()
            .with_context(|| format!("its configuration has no {key}"))
    }

    pub fn count(&self, key: &str) -> Result<usize> {
        Ok(self.number(key)? as usize)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or(false)
    }

    /// The recorded weights, as a source for a model of ours.
    pub fn weights(&self) -> Weights {
        Weights::from_tensors(self.below("w/").map(|(name, t)| (name.to_string(), t.clone())))
    }

    pub fn counts(&self, key: &str) -> Result<Vec<usize>> {
        let list = self.config[key]
            .as_array()
            .with_context(|| format!("its configuration has no {key}"))?;
        let counts = list.iter().map(|count| count.as_u64().map(|count| count as usize));
        counts
            .collect::<Option<_>>()
            .with_context(|| format!("{key} are no counts"))
    }

    pub fn resnet_config(&self) -> Result<resnet::Config> {
        let four =
            |key| -> Result<[usize; 4]> { self.counts(key)?.try_into().map_err(|_| anyhow!("{key} are not four")) };
        Ok(resnet::Config {
            block: match self.text("block")? {
                "BasicBlock" => BlockKind::Basic,
                "Bottleneck" => BlockKind::Bottleneck,
                other => bail!("the block {other} is not known here"),
            },
            depths: four("layers")?,
            channels: four("channels")?,
            stem_channels: self.count("stem_channels")?,
            in_channels: self.count("in_channels")?,
            norm_eps: self.number("norm_eps")?,
            ..resnet::Config::resnet18(self.count("num_classes")?)
        })
    }

    pub fn swin_config(&self) -> Result<swin::Config> {
        let side = self.count("image_size")?;
        Ok(swin::Config {
            image_size: (side, side),
            patch_size: self.count("patch_size")?,
            in_channels: self.count("in_channels")?,
            embed_dim: self.count("embed_dim")?,
            depths: self.counts("depths")?,
            num_heads: self.counts("num_heads")?,
            window_size: self.count("window_size")?,
            mlp_ratio: self.count("mlp_ratio")?,
            norm_eps: self.number("norm_eps")?,
            ..swin::Config::tiny(self.count("num_classes")?)
        })
    }

    /// The ViT that the configuration describes.
    pub fn vit_config(&self) -> Result<vit::Config> {
        let classes = self.count("num_classes")?;
        let form = match self.text("model")? {
            "deit3" => vit::Config::deit3_tiny(classes),
            "mae_finetune" => vit::Config::mae_base(classes),
            "hf_vit" => vit::Config::hf_base(classes),
            "clip_vision" => vit::Config::clip_base(classes),
            "ft_clip" => vit::Config::ft_clip_base(classes),
            other => bail!("{other} is no ViT"),
        };
        let pool = match form.weight_names {
            WeightNames::Timm if !self.flag("global_pool") => Pool::ClassToken,
            _ => form.pool,
        };
        let embed_dim = self.count("embed_dim")?;
        Ok(vit::Config {
            embed_dim,
            depth: self.count("depth")?,
            num_heads: self.count("num_heads")?,
            mlp_dim: embed_dim * self.count("mlp_ratio")?,
            norm_eps: self.number("norm_eps")?,
            // Its initial value does not matter: the weights are recorded.
            layer_scale: self.flag("layer_scale").then_some(1.0),
            class_token_position: self.flag("cls_in_pos_embed"),
            activation: match self.text("activation")? {
                "gelu_erf" => Activation::Gelu,
                "quick_gelu" => Activation::QuickGelu,
                other => bail!("the activation {other} is not known here"),
            },
            pool,
            ..form.with_input(
                self.count("image_size")?,
                self.count("patch_size")?,
                self.count("in_channels")?,
            )
        })
    }
}
