//! Place of the weights in a checkpoint: which of its dictionaries, and behind which prefix of their names.

use std::collections::{BTreeMap, BTreeSet};

use super::format::Format;
use super::stored::{Dictionary, Stored};

/// Keys below which training scripts save the weights that they train, the likeliest first: facebookresearch and
/// Microsoft `model`, timm and Lightning `state_dict`, DeepSpeed `module`, DINO `teacher` and `student`.
const KEYS: [&str; 8] = [
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "network",
    "teacher",
    "student",
];
/// Parts of the keys of averaged weights, of which timm's `state_dict_ema` is one: whole ones, for `semantic` is none.
const AVERAGED: [&str; 5] = ["ema", "swa", "avg", "average", "averaged"];
/// Ends of names that a model has once, those of its patch embedding or stem: what stands before one is where the model
/// begins, or above it.
const LANDMARKS: [&str; 12] = [
    "patch_embed.proj.weight",
    "patch_embed.projection.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "conv1.weight",
    "conv_proj.weight",
    "features.0.0.weight",
    "embedder.embedder.convolution.weight",
    "embedding.kernel",
    "embeddings.patch_embeddings.weight",
    "stem.0.weight",
    "downsample_layers.0.0.weight",
];
/// Most modules that a model may be wrapped in, one in the other.
const MOST_WRAPPERS: usize = 6;
/// Most starts of names behind which a model is looked for.
const MOST_STARTS: usize = 4096;

/// Tells whether scripts save weights below that key.
pub(super) fn is_key(key: &str) -> bool {
    KEYS.contains(&key)
}

/// Rank of what lies below a key, as the weights of a checkpoint: averaged ones come last.
pub(super) fn rank(key: &str) -> usize {
    let known = KEYS.iter().position(|known| *known == key);
    known.unwrap_or(KEYS.len() + 1 + usize::from(is_average(key)))
}

fn is_average(name: &str) -> bool {
    name.split(['.', '_', '-']).any(|part| AVERAGED.contains(&part))
}

/// Rank of what lies below no key.
pub(super) fn rank_of_none() -> usize {
    KEYS.len()
}

/// A known format, and where it stands.
pub(super) struct Place {
    pub(super) format: Format,
    /// Start of the names of all its weights, which those of its format do not have.
    pub(super) prefix: String,
    /// Start of the format's names, which these do not have.
    pub(super) lacks: &'static str,
}

/// What keeps a model from being found.
pub(super) enum Unclear {
    /// Several stand there, and nothing tells which is meant: the starts of their names.
    Ambiguous(Vec<String>),
    /// Names begin in more ways than those of any file of weights.
    TooManyStarts,
}

/// The dictionary that holds a known format, by its number, and where in it that is. `wanted` is a key or the start of
/// names, where the user has said one. `None` where no format is known.
pub(super) fn find(dictionaries: &[Dictionary], wanted: Option<&str>) -> Result<Option<(usize, Place)>, Unclear> {
    for (index, dictionary) in dictionaries.iter().enumerate() {
        let key = dictionary.key.as_deref();
        let below = wanted
            .filter(|wanted| key != Some(wanted))
            .map(|wanted| format!("{wanted}."));
        if let Some(layout) = find_in(&dictionary.tensors, key, below.as_deref().unwrap_or_default())? {
            return Ok(Some((index, layout)));
        }
    }
    Ok(None)
}

/// The outermost known format whose names begin with `below`.
fn find_in(tensors: &BTreeMap<String, Stored>, key: Option<&str>, below: &str) -> Result<Option<Place>, Unclear> {
    let depth = |prefix: &str| prefix.matches('.').count();
    let mut prefixes = BTreeSet::new();
    for (name, landmark) in tensors
        .keys()
        .flat_map(|name| LANDMARKS.map(|landmark| (name, landmark)))
    {
        let Some(before) = name.strip_suffix(landmark) else {
            continue;
        };
        if before.starts_with(below) && depth(before) <= MOST_WRAPPERS && (before.is_empty() || before.ends_with('.')) {
            let starts = before.match_indices('.').map(|(dot, _)| &before[..=dot]);
            prefixes.extend(starts.chain([""]).filter(|start| start.starts_with(below)));
            if prefixes.len() > MOST_STARTS {
                return Err(Unclear::TooManyStarts);
            }
        }
    }
    let mut layouts: Vec<_> = prefixes
        .into_iter()
        .filter_map(|prefix| {
            let (format, lacks) = Format::recognise(tensors, prefix, key)?;
            let first = prefix.split('.').next().unwrap_or_default();
            let place = (is_average(prefix), depth(prefix), rank(first));
            let prefix = prefix.to_string();
            Some((place, Place { format, prefix, lacks }))
        })
        .collect();
    layouts.sort_by_key(|(place, _)| *place);
    let first = layouts.first().map(|(place, _)| *place);
    let alike = layouts.iter().filter(|(place, _)| Some(*place) == first);
    let alike: Vec<_> = alike.map(|(_, layout)| layout.prefix.clone()).collect();
    if alike.len() > 1 {
        return Err(Unclear::Ambiguous(alike));
    }
    Ok(layouts.into_iter().next().map(|(_, layout)| layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_told_by_whole_parts_of_their_names() {
        for name in [
            "ema",
            "state_dict_ema",
            "model_ema.module.",
            "net-swa",
            "averaged_model",
        ] {
            assert!(is_average(name), "{name}");
        }
        for name in ["semantic.", "schema.", "swap", "model", ""] {
            assert!(!is_average(name), "{name}");
        }
    }
}
