//! Recorded checkpoints once more, as the crate writes them: for the peers' own loaders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device;
use masksub::pretrained::{Layout, Pretrained};

use crate::checkpoint::{self, Network};
use crate::recorded::Recorded;

/// Writes `NAME.timm.safetensors` and `NAME.huggingface.safetensors` of each recorded checkpoint, where such a model is
/// there, and `NAME.refilled.safetensors`, under its writer's names.
///
/// # Errors
/// When a file cannot be read or written.
pub fn save_all(files: &[PathBuf], directory: &Path, device: &Device) -> Result<()> {
    fs::create_dir_all(directory)?;
    for path in files {
        let file = Recorded::open(path, device)?;
        if file.text("kind")? != "checkpoint" {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.trim_end_matches(".expect.safetensors");
        save(&file, path, &directory.join(name)).with_context(|| format!("of {}", path.display()))?;
    }
    Ok(())
}

fn save(file: &Recorded, path: &Path, stem: &Path) -> Result<()> {
    let checkpoint = path.with_file_name(file.text("checkpoint")?);
    let (network, state) = checkpoint::loaded(&checkpoint, file)?;
    let saved = |ending: String| stem.with_extension(format!("{ending}.safetensors"));
    for layout in Layout::ALL {
        let path = saved(layout.to_string());
        // What a project has no model of is not written.
        let _ = match &network {
            Network::Vit(model) => masksub::pretrained::save(path, model.config(), &state, layout),
            Network::Swin(_, cfg) => masksub::pretrained::save(path, cfg, &state, layout),
            Network::ResNet(_, cfg) => masksub::pretrained::save(path, cfg, &state, layout),
            Network::ConvNeXt(_, cfg) => masksub::pretrained::save(path, cfg, &state, layout),
        };
    }
    let opened = Pretrained::open(&checkpoint)?;
    if !opened.format().name().starts_with("big-vision") && !opened.format().name().starts_with("google") {
        opened.save(saved("refilled".into()), &state)?;
    }
    Ok(())
}
