//! A ConvNeXt's and a ResNet's weights as timm and transformers have them.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{by_key, Architecture, Layout, Tensors};
use crate::error::Result;
use crate::models::convnext::{self, ConvNeXt};
use crate::models::resnet::{self, ResNet};
use crate::pretrained::format::Family;
use crate::pretrained::names::HEAD;
use crate::pretrained::respelled::{hugging_faces_convnext_name, hugging_faces_resnet_name};

/// Last part of the names of batch norm's variances, beside which PyTorch keeps a count of steps.
const VARIANCE: &str = "running_var";

impl Architecture for convnext::Config {
    fn laid_out(&self, state: &Tensors, layout: Layout) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for (key, tensor) in by_key(Family::ConvNeXt, self, state, &[])? {
            let named = match layout {
                Layout::Timm => {
                    let of_head = |start, to: &str| Some(format!("{to}{}", key.strip_prefix(start)?));
                    let name = of_head("norm.", "head.norm.").or_else(|| of_head(HEAD, "head.fc."));
                    (name.unwrap_or(key), tensor)
                }
                Layout::HuggingFace => {
                    let name = hugging_faces_convnext_name(&key, self.response_norm);
                    let tensor = if key.contains(".grn.") {
                        tensor.reshape((1, 1, 1, ()))?
                    } else {
                        tensor
                    };
                    (name, tensor)
                }
            };
            tensors.insert(named.0, named.1);
        }
        Ok(tensors)
    }
    fn make(&self, vb: VarBuilder) -> candle_core::Result<()> {
        ConvNeXt::new(self, vb).map(drop)
    }
}

impl Architecture for resnet::Config {
    fn laid_out(&self, state: &Tensors, layout: Layout) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for (key, tensor) in by_key(Family::ResNet, self, state, &[])? {
            let name = key.strip_prefix(HEAD).map(|leaf| format!("fc.{leaf}")).unwrap_or(key);
            let name = match layout {
                Layout::Timm => name,
                Layout::HuggingFace => hugging_faces_resnet_name(&name),
            };
            if let Some(norm) = name.strip_suffix(VARIANCE) {
                // Nobody's evaluation reads it.
                let count = Tensor::new(0i64, tensor.device())?;
                tensors.insert(format!("{norm}num_batches_tracked"), count);
            }
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }
    fn make(&self, vb: VarBuilder) -> candle_core::Result<()> {
        ResNet::new(self, vb).map(drop)
    }
}
