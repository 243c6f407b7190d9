//! The weights that a run leaves, under the names of those who will load them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::Tensor;
use clap::ValueEnum;
use masksub::pretrained::{self, Layout};

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
        let left_out = saving.state(network, state)?.1;
        if !left_out.is_empty() {
            println!(
                "no place in the file of --init-from, so not saved: {}",
                left_out.join(", ")
            );
        }
        Ok(saving)
    }

    /// A state under those names, and the names of what they have no place for.
    pub fn state(&self, network: &Network, state: &State) -> Result<(State, Vec<String>)> {
        match self {
            Self::As(layout) => Ok((named(network, state, *layout)?, vec![])),
            Self::Into(file, key) => {
                let refilled = crate::open(file, key.as_deref())?.refilled(state)?;
                Ok((refilled.tensors, refilled.without_place))
            }
        }
    }
}

fn named(network: &Network, state: &State, layout: Layout) -> Result<State, masksub::Error> {
    match network {
        Network::Vit(cfg) => pretrained::state_dict(cfg, state, layout),
        Network::ResNet(cfg, _) => pretrained::state_dict(cfg, state, layout),
        Network::ConvNeXt(cfg, _) => pretrained::state_dict(cfg, state, layout),
        Network::Swin(cfg) => pretrained::state_dict(cfg, state, layout),
    }
}
