//! Models of candle-transformers that take no images, each small.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, clip, distilbert, llama, modernbert, qwen2, qwen3, siglip, whisper};

/// A model as a function of its input.
pub type Model = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

pub struct Entry {
    pub name: &'static str,
    pub build: fn(VarBuilder<'static>) -> Result<Model>,
    /// Token ids [B, T] unless it hears [B, 8 bands, T].
    pub hears: bool,
}

pub const VOCABULARY: usize = 32;
pub const LENGTH: usize = 12;

macro_rules! config {
    ($($field:tt)*) => {
        serde_json::from_value(serde_json::json!({ $($field)* })).map_err(candle_core::Error::wrap)?
    };
}

pub fn entries() -> Vec<Entry> {
    let reads = |name, build| Entry { name, build, hears: false };
    vec![
        reads("bert", bert),
        reads("distilbert", distilbert),
        reads("modernbert", modernbert),
        reads("clip, text tower", clip_text),
        reads("siglip, text tower", siglip_text),
        Entry { name: "whisper, encoder", build: whisper, hears: true },
        reads("llama", llama),
        reads("qwen2", qwen2),
        reads("qwen3", qwen3),
    ]
}

fn bert(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: bert::Config = config!(
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 16,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0
    );
    let model = bert::BertModel::load(vb, &cfg)?;
    Ok(Box::new(move |ids| model.forward(ids, &ids.zeros_like()?, None)))
}

fn distilbert(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: distilbert::Config = config!(
        "vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "activation": "gelu",
        "max_position_embeddings": 16, "initializer_range": 0.02, "pad_token_id": 0
    );
    let model = distilbert::DistilBertModel::load(vb, &cfg)?;
    // 1 hides a key there.
    Ok(Box::new(move |ids| {
        let (batch, length) = ids.dims2()?;
        model.forward(ids, &Tensor::zeros((batch, 1, 1, length), DType::U8, ids.device())?)
    }))
}

fn modernbert(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: modernbert::Config = config!(
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 16, "layer_norm_eps": 1e-5, "pad_token_id": 0,
        "global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_attention": 8, "local_rope_theta": 10000.0
    );
    let model = modernbert::ModernBert::load(vb, &cfg)?;
    Ok(Box::new(move |ids| model.forward(ids, &ids.ones_like()?)))
}

fn clip_text(vb: VarBuilder<'static>) -> Result<Model> {
    use clip::text_model::{ClipTextConfig, ClipTextTransformer};
    let cfg = ClipTextConfig {
        vocab_size: VOCABULARY,
        embed_dim: 32,
        intermediate_size: 64,
        max_position_embeddings: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        ..ClipTextConfig::vit_base_patch32()
    };
    let model = ClipTextTransformer::new(vb, &cfg)?;
    Ok(Box::new(move |ids| ids.apply(&model)))
}

fn siglip_text(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: siglip::TextConfig = config!(
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16
    );
    let model = siglip::TextModel::new(&cfg, vb)?;
    Ok(Box::new(move |ids| ids.apply(&model)))
}

fn whisper(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: whisper::Config = config!(
        "num_mel_bins": 8, "max_source_positions": 16, "d_model": 32, "encoder_attention_heads": 2, "encoder_layers": 2,
        "vocab_size": VOCABULARY, "max_target_positions": 16, "decoder_attention_heads": 2, "decoder_layers": 1
    );
    let model = RefCell::new(whisper::model::Whisper::load(&vb, cfg)?);
    Ok(Box::new(move |mel| model.borrow_mut().encoder.forward(mel, true)))
}

fn llama(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg = llama::Config {
        hidden_size: 32,
        intermediate_size: 64,
        vocab_size: VOCABULARY,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 16,
        ..llama::Config::config_7b_v1(false)
    };
    let cache = RefCell::new(llama::Cache::new(false, DType::F32, &cfg, &Device::Cpu)?);
    let model = llama::Llama::load(vb, &cfg)?;
    Ok(Box::new(move |ids| model.forward(ids, 0, &mut cache.borrow_mut())))
}

fn qwen2(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: qwen2::Config = config!(
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "sliding_window": 16,
        "max_window_layers": 2, "tie_word_embeddings": false, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "use_sliding_window": false, "hidden_act": "silu"
    );
    let model = RefCell::new(qwen2::ModelForCausalLM::new(&cfg, vb)?);
    Ok(Box::new(move |ids| {
        let mut model = model.borrow_mut();
        model.clear_kv_cache();
        model.forward(ids, 0)
    }))
}

fn qwen3(vb: VarBuilder<'static>) -> Result<Model> {
    let cfg: qwen3::Config = config!(
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "head_dim": 8, "attention_bias": false, "num_key_value_heads": 2,
        "max_position_embeddings": 16, "sliding_window": null, "max_window_layers": 2, "tie_word_embeddings": false,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "use_sliding_window": false, "hidden_act": "silu"
    );
    let model = RefCell::new(qwen3::ModelForCausalLM::new(&cfg, vb)?);
    Ok(Box::new(move |ids| {
        let mut model = model.borrow_mut();
        model.clear_kv_cache();
        model.forward(ids, 0)
    }))
}
