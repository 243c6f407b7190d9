//! A Swin's weights as timm and transformers have them.

use candle_nn::VarBuilder;

use super::{by_key, thirds, unlike, Architecture, Layout, Tensors, QKV};
use crate::error::Result;
use crate::models::swin::{Config, SwinTransformer};
use crate::pretrained::format::Family;
use crate::pretrained::names::{APART, HEAD};
use crate::pretrained::respelled::hugging_faces_swin_name;

impl Architecture for Config {
    fn laid_out(&self, state: &Tensors, layout: Layout) -> Result<Tensors> {
        let keys = by_key(Family::Swin, self, state, &["mask_token"])?;
        let mut tensors = Tensors::new();
        for (key, tensor) in keys {
            let key = match merging(self, &key) {
                // timm counts a merging to the stage behind it.
                Some((stage, rest)) => {
                    let stage = stage + usize::from(layout == Layout::Timm);
                    format!("layers.{stage}.downsample.{rest}")
                }
                None if key.starts_with("downsample.") => return Err(unlike(Family::Swin, &key)),
                None => key,
            };
            match layout {
                Layout::Timm => {
                    let name = key.strip_prefix(HEAD).map(|leaf| format!("head.fc.{leaf}"));
                    tensors.insert(name.unwrap_or(key), tensor);
                }
                Layout::HuggingFace if key.contains(QKV) => {
                    for (part, tensor) in APART.into_iter().zip(thirds(&tensor)?) {
                        tensors.insert(hugging_faces_swin_name(&key.replace(QKV, part)), tensor);
                    }
                }
                Layout::HuggingFace => drop(tensors.insert(hugging_faces_swin_name(&key), tensor)),
            }
        }
        Ok(tensors)
    }

    fn make(&self, vb: VarBuilder) -> candle_core::Result<()> {
        SwinTransformer::new(self, vb).map(drop)
    }
}

/// The stage that a merging stands behind, and which part of it this is: keys tell its width, of 4 tokens.
fn merging<'a>(cfg: &Config, key: &'a str) -> Option<(usize, &'a str)> {
    let (width, rest) = key.strip_prefix("downsample.")?.split_once('.')?;
    let width: usize = width.parse().ok()?;
    let mut stages = 0..cfg.depths.len();
    let stage = stages.find(|stage| 4 * (cfg.embed_dim << stage) == width)?;
    Some((stage, rest))
}
