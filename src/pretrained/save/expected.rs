//! The weights that a configuration's model has: a state is held against them before it is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::{Architecture, Tensors};
use crate::error::{Error, Result};
use crate::pretrained::format::Family;
use crate::pretrained::names::{APART, QKV};

/// Shapes by keys.
type Shapes = BTreeMap<String, Vec<usize>>;

/// Swin's, which no peer has.
const MASK_TOKEN: &str = "mask_token";

/// Refuses a state that lacks a weight of the configured model, has another, or one of another shape.
pub(super) fn check(family: Family, cfg: &impl Architecture, state: &Tensors) -> Result<()> {
    let asked = Asked::default();
    cfg.make(VarBuilder::from_backend(
        Box::new(asked.clone()),
        DType::F32,
        Device::Cpu,
    ))?;
    let asked = asked.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let expected = shapes(family, asked.iter().map(|(name, shape)| (name, &shape[..])));
    let got = shapes(family, state.iter().map(|(name, tensor)| (name, tensor.dims())));
    let refused = |value: String| {
        let allowed = format!("the weights of the configured {}, all and no others", family.name());
        Err(Error::invalid("state", value, allowed))
    };
    for (key, shape) in &expected {
        match got.get(key) {
            None => return refused(format!("one without {key}")),
            Some(got) if got != shape => {
                return refused(format!("one with {key} of {got:?}, not {shape:?}"));
            }
            Some(_) => {}
        }
    }
    match got.keys().find(|key| !expected.contains_key(*key)) {
        Some(key) => refused(format!("one with {key}")),
        None => Ok(()),
    }
}

/// The same for whatever names a model's weights have: packed projections are taken apart, and dimensions of 1 in front
/// left out.
fn shapes<'a>(family: Family, weights: impl Iterator<Item = (&'a String, &'a [usize])>) -> Shapes {
    let mut shapes = Shapes::new();
    for (name, shape) in weights.filter(|(name, _)| *name != MASK_TOKEN) {
        let key = family.key(name, Some(shape)).unwrap_or_else(|| name.clone());
        let shape: Vec<_> = shape.iter().copied().skip_while(|n| *n == 1).collect();
        match (key.contains(QKV), &shape[..]) {
            (true, [rows, rest @ ..]) if rows.is_multiple_of(3) => {
                let third: Vec<_> = std::iter::once(rows / 3).chain(rest.iter().copied()).collect();
                shapes.extend(APART.map(|part| (key.replace(QKV, part), third.clone())));
            }
            _ => drop(shapes.insert(key, shape)),
        }
    }
    shapes
}

/// A source of zeros, which notes what a model asks for.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Shapes>>);

impl SimpleBackend for Asked {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut asked = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        asked.insert(name.to_string(), shape.dims().to_vec());
        Tensor::zeros(shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        Err(candle_core::Error::Msg(format!("the shape of {name} is not said")))
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}
