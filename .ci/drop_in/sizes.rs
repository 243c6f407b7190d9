//! Models at their published sizes, to be timed, and small ones, to be trained.

use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, convnext, efficientnet, resnet, vit};

use crate::text::Model;

/// A model by its name, and the shape of its input: images, or token ids.
pub fn build(name: &str, vb: VarBuilder<'static>) -> Result<(Model, Vec<usize>)> {
    let image = |batch| vec![batch, 3, 224, 224];
    Ok(match name {
        "vit-s" => {
            let cfg = vit::Config {
                hidden_size: 384,
                num_attention_heads: 6,
                intermediate_size: 1536,
                ..vit::Config::vit_base_patch16_224()
            };
            let model = vit::Model::new(&cfg, 1000, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), image(8))
        }
        "resnet18" => {
            let model = resnet::resnet18(1000, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), image(4))
        }
        "resnet50" => {
            let model = resnet::resnet50(1000, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), image(4))
        }
        "convnext-t" => {
            let model = convnext::convnext(&convnext::Config::tiny(), 1000, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), image(4))
        }
        "efficientnet-b0" => {
            let model = efficientnet::EfficientNet::new(vb, efficientnet::MBConvConfig::b0(), 1000)?;
            (Box::new(move |xs: &Tensor| model.forward_t(xs, true)), image(8))
        }
        "small vit" => {
            let cfg = vit::Config {
                hidden_size: 192,
                num_hidden_layers: 4,
                num_attention_heads: 3,
                intermediate_size: 768,
                image_size: 64,
                patch_size: 8,
                ..vit::Config::vit_base_patch16_224()
            };
            let model = vit::Model::new(&cfg, 4, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), vec![16, 3, 64, 64])
        }
        "small resnet18" => {
            let model = resnet::resnet18(4, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), vec![16, 3, 64, 64])
        }
        "small convnext" => {
            let model = convnext::convnext(&convnext::Config::atto(), 4, vb)?;
            (Box::new(move |xs: &Tensor| model.forward(xs)), vec![16, 3, 64, 64])
        }
        "bert-base" => {
            let model = bert::BertModel::load(vb, &bert::Config::default())?;
            (Box::new(move |ids: &Tensor| model.forward(ids, &ids.zeros_like()?, None)), vec![8, 128])
        }
        other => candle_core::bail!("there is no {other}"),
    })
}
