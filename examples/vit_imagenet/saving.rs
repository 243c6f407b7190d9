//! The weights that a run leaves, under the names of those who will load them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::Tensor;
use clap::ValueEnum;
use masksub::pretrained::{self, Architecture, Layout};

use crate::flags::Flags;
use crate::network::Network;

type State = BTreeMap<String, Tensor>;

/// Whose names `--save-layout` chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SaveLayout {
    /// timm's, and facebookresearch's
    Timm,
    /// transformers'
    Huggingface,
    /// Those of --init-from, with all else that is in it: a tower goes back beside CLIP's text tower
    InitFrom,
}

/// Weights as they are saved.
pub struct Named {
    pub tensors: State,
    /// Of their file.
    pub metadata: BTreeMap<String, String>,
    /// Names of what the file has no place for.
    pub without_place: Vec<String>,
}

/// How weights are named when they are saved.
pub enum Saving {
    As(Layout),
    /// In the place of those in a checkpoint, below that key of it.
    Into(PathBuf, Option<String>),
}

impl Saving {
    /// As the flags say; by default timm's names, or transformers' where timm has no such model. What the project cannot
    /// load is refused now, and not when the run is over.
    pub fn new(flags: &Flags, network: &Network, state: &State) -> Result<Self> {
        let saving = match flags.save_layout {
            Some(SaveLayout::Timm) => Self::As(Layout::Timm),
            Some(SaveLayout::Huggingface) => Self::As(Layout::HuggingFace),
            Some(SaveLayout::InitFrom) => {
                let file = flags.init_from.clone();
                let file = file.context("--save-layout init-from needs the file: --init-from FILE")?;
                Self::Into(file, flags.init_key.clone())
            }
            None => {
                let has = |layout: &Layout| named(network, state, *layout).is_ok();
                Self::As(Layout::ALL.into_iter().find(has).unwrap_or(Layout::Timm))
            }
        };
        let left_out = saving.state(network, state)?.without_place;
        if !left_out.is_empty() {
            println!(
                "no place in the file of --init-from, so not saved: {}",
                left_out.join(", ")
            );
        }
        Ok(saving)
    }

    /// A state under those names.
    pub fn state(&self, network: &Network, state: &State) -> Result<Named> {
        match self {
            Self::As(layout) => Ok(named(network, state, *layout)?),
            Self::Into(file, key) => {
                let refilled = crate::open(file, key.as_deref())?.refilled(state)?;
                Ok(Named {
                    tensors: refilled.tensors,
                    metadata: refilled.metadata,
                    without_place: refilled.without_place,
                })
            }
        }
    }
}

fn named(network: &Network, state: &State, layout: Layout) -> Result<Named, masksub::Error> {
    match network {
        Network::Vit(cfg) => of(cfg, state, layout),
        Network::ResNet(cfg, _) => of(cfg, state, layout),
        Network::ConvNeXt(cfg, _) => of(cfg, state, layout),
        Network::Swin(cfg) => of(cfg, state, layout),
    }
}

fn of(cfg: &impl Architecture, state: &State, layout: Layout) -> Result<Named, masksub::Error> {
    Ok(Named {
        tensors: pretrained::state_dict(cfg, state, layout)?,
        metadata: pretrained::metadata(cfg),
        without_place: vec![],
    })
}
