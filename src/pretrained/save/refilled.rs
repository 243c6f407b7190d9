//! A checkpoint again, with a model's weights in the place of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;

use super::{metadata_of, thirds, write, Tensors, QKV};
use crate::error::{Error, Result};
use crate::pretrained::names::{
    is_head, is_of_block, APART, INPUT_KERNELS, POOL_IN, POOL_KV, POOL_Q, POSITION_TABLE, POS_EMBED,
};
use crate::pretrained::source::PeerSource;
use crate::pretrained::{Format, Pretrained};
use crate::weights::is_buffer;

/// A checkpoint's tensors, of which a model's weights have taken the place of its own.
#[derive(Clone, Debug)]
pub struct Refilled {
    /// All tensors of the checkpoint by its names, less what they were wrapped in; without those that lie outside of it
    /// or below other keys of the file, which are no part of the model.
    pub tensors: Tensors,
    /// The model's names of weights for which the checkpoint has no place, sorted: a classifier's head in CLIP's
    /// towers.
    pub without_place: Vec<String>,
    /// The metadata of a `.safetensors` file of them: see [`metadata`](crate::pretrained::metadata).
    pub metadata: BTreeMap<String, String>,
}

impl Pretrained {
    /// This checkpoint's tensors, with the weights `state` of a model of its architecture in the place of its own: for
    /// its project's loaders, with `strict=True`, whatever they need beside the model. So a tower that was fine-tuned
    /// goes back into OpenCLIP, beside the text tower.
    ///
    /// What the model has in another shape, a head or positions, has it here as well. `state` is
    /// [`Weights::state`](crate::Weights::state).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an archive of JAX's, whose shapes are others, and for a `state` of another model:
    /// that has weights of a block for which the checkpoint has no place, lacks one that it has, or has another shape
    /// where neither classes nor images tell it; [`Error::File`] when its file cannot be read any more.
    pub fn refilled(self, state: &Tensors) -> Result<Refilled> {
        if let format @ (Format::GoogleVit | Format::BigVision) = self.format() {
            let allowed = "one of PyTorch's names and shapes";
            return Err(Error::invalid("checkpoint", format, allowed));
        }
        let source = PeerSource::new(self.file, &self.layout, self.fitting);
        let family = source.format.family();
        let keyed = state.iter().filter_map(|(name, tensor)| {
            let key = source.key(name, Some(tensor.dims()))?;
            Some((key, (name, tensor)))
        });
        let allowed = format!("the weights of a {} like that of {}", family.name(), source.file.path);
        let refused = |value: String| Error::invalid("state", value, &allowed);
        let given = Given {
            tensors: keyed.collect(),
        };
        let (mut tensors, mut taken) = (Tensors::new(), BTreeSet::new());
        for (name, stored) in &source.file.tensors {
            let key = source.key_in_file(name, stored);
            let value = match &key {
                Some(key) => given.take(key, &mut taken)?,
                None => None,
            };
            let key = key.unwrap_or_default();
            let tensor = match value {
                Some(value) => with_rank(&value, stored.shape.len())?,
                None if is_of_block(&key) && !is_buffer(name) => return Err(refused(format!("one without {name}"))),
                None => source.file.read(stored)?,
            };
            if tensor.dims() != stored.shape && !may_differ(&key) {
                let (got, expected) = (tensor.dims(), &stored.shape);
                return Err(refused(format!("one whose {key} is {got:?}, not {expected:?}")));
            }
            tensors.insert(name.clone(), tensor);
        }
        if taken.is_empty() {
            return Err(refused("of another model".into()));
        }
        let others = state.iter().filter(|(name, _)| !taken.contains(name.as_str()));
        // A weight of a block is no head and no part of one.
        let is_of_model = |(name, tensor): &(&String, &Tensor)| {
            let shape = Some(tensor.dims());
            let of_block = source.key(name, shape).is_some_and(|key| is_of_block(&key));
            of_block || family.other(name, shape).is_some()
        };
        if let Some((name, _)) = others.clone().find(is_of_model) {
            return Err(refused(format!("one with {name}")));
        }
        Ok(Refilled {
            without_place: others.map(|(name, _)| name.clone()).collect(),
            tensors,
            metadata: metadata_of(source.file.one_norm),
        })
    }

    /// Writes [`refilled`](Self::refilled) tensors as a `.safetensors` file, and gives the model's names of weights for
    /// which the checkpoint has no place.
    ///
    /// ```no_run
    /// # use masksub::{pretrained::Pretrained, Weights};
    /// # fn back(weights: &Weights) -> masksub::Result<()> {
    /// let without_place = Pretrained::open("open_clip_model.safetensors")?.save("fine_tuned.safetensors", &weights.state())?;
    /// assert_eq!(without_place, ["head.bias", "head.weight"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`refilled`](Self::refilled), and [`Error::File`] when the file cannot be written.
    pub fn save(self, path: impl AsRef<Path>, state: &Tensors) -> Result<Vec<String>> {
        let refilled = self.refilled(state)?;
        write(path.as_ref(), &refilled.tensors, refilled.metadata)?;
        Ok(refilled.without_place)
    }
}

/// A model's weights by their keys, with their own names.
struct Given<'a> {
    tensors: BTreeMap<String, (&'a String, &'a Tensor)>,
}

impl<'a> Given<'a> {
    /// The weight of that key, put together or taken apart where the model has it otherwise; and notes which are taken.
    fn take(&self, key: &str, taken: &mut BTreeSet<&'a str>) -> Result<Option<Tensor>> {
        let mut get = |key: &str| {
            let (name, tensor) = self.tensors.get(key)?;
            taken.insert(name.as_str());
            Some((*tensor).clone())
        };
        if let Some(whole) = get(key) {
            return Ok(Some(whole));
        }
        if key.contains(QKV) {
            let [q, k, v] = APART.map(|part| get(&key.replace(QKV, part)));
            let (Some(q), Some(v)) = (q, v) else { return Ok(None) };
            // A bias of keys that the model has not is 0.
            let k = match k {
                Some(k) => k,
                None => q.zeros_like()?,
            };
            return Ok(Some(Tensor::cat(&[q, k, v], 0)?));
        }
        if key.starts_with(POOL_IN) {
            let parts = [POOL_Q, POOL_KV].map(|part| get(&key.replace(POOL_IN, part)));
            let [Some(q), Some(kv)] = parts else { return Ok(None) };
            return Ok(Some(Tensor::cat(&[q, kv], 0)?));
        }
        let part = APART.iter().position(|part| key.contains(part));
        let Some((part, packed)) = part.and_then(|part| Some((part, get(&key.replace(APART[part], QKV))?))) else {
            return Ok(None);
        };
        Ok(thirds(&packed)?.into_iter().nth(part))
    }
}

/// Tells whether a weight's shape follows from classes and images: models of one architecture may differ in it.
fn may_differ(key: &str) -> bool {
    is_head(key) || key == POS_EMBED || key.ends_with(POSITION_TABLE) || INPUT_KERNELS.contains(&key)
}

/// The tensor with as many dimensions as its place has: [1, 1, D] and `[D]` are the same to those who write them.
fn with_rank(tensor: &Tensor, rank: usize) -> Result<Tensor> {
    let filled: Vec<_> = tensor.dims().iter().copied().skip_while(|n| *n == 1).collect();
    if filled.len() > rank {
        return Ok(tensor.clone());
    }
    let shape: Vec<_> = std::iter::repeat_n(1, rank - filled.len()).chain(filled).collect();
    Ok(tensor.reshape(shape)?)
}
