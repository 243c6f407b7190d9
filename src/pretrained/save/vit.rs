//! A ViT's weights as timm and transformers have them.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{by_key, no_peer, thirds, unlike, Architecture, Layout, Tensors, QKV};
use crate::error::Result;
use crate::models::vit::names::{Names, Qkv, CLIP, HUGGING_FACE, TIMM};
use crate::models::vit::{Config, Gate, Pool, QkvBias, Rotary, VisionTransformer};
use crate::pretrained::format::Family;
use crate::pretrained::forms::{form_name, HF_DINOV2};
use crate::pretrained::names::{APART, FC_NORM, FINAL_NORM, POS_EMBED};

/// timm's `VisionTransformer`, whose LayerScale is a module.
const TIMM_VIT: Names = Names {
    gamma1: "ls1.gamma",
    gamma2: "ls2.gamma",
    ..TIMM
};

/// timm's EVA-02 with `qkv_fused=False`.
const TIMM_EVA_APART: Names = Names {
    qkv: Qkv::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
    ..TIMM
};

/// Hugging Face's `DeiTForImageClassification`, and `DeiTForImageClassificationWithTeacher`.
const HF_DEIT: Names = Names {
    patch_embed: "deit.embeddings.patch_embeddings.projection",
    cls_token: "deit.embeddings.cls_token",
    dist_token: "deit.embeddings.distillation_token",
    pos_embed: "deit.embeddings.position_embeddings",
    blocks: "deit.encoder.layer",
    norm: "deit.layernorm",
    ..HUGGING_FACE
};
const HF_DEIT_TEACHER: Names = Names {
    head: "cls_classifier",
    ..HF_DEIT
};

const HF_DINOV2_REGISTERS: Names = Names {
    patch_embed: "dinov2_with_registers.embeddings.patch_embeddings.projection",
    cls_token: "dinov2_with_registers.embeddings.cls_token",
    reg_token: "dinov2_with_registers.embeddings.register_tokens",
    pos_embed: "dinov2_with_registers.embeddings.position_embeddings",
    blocks: "dinov2_with_registers.encoder.layer",
    norm: "dinov2_with_registers.layernorm",
    ..HF_DINOV2
};

/// Hugging Face's `SiglipForImageClassification`.
const HF_SIGLIP: Names = Names {
    patch_embed: "vision_model.embeddings.patch_embedding",
    pos_embed: "vision_model.embeddings.position_embedding.weight",
    blocks: "vision_model.encoder.layers",
    norm: "vision_model.post_layernorm",
    head: "classifier",
    ..CLIP
};

/// Form of a project's model.
struct Target {
    form: Names,
    /// Queries and values have biases of their own beside a packed weight.
    separate_biases: bool,
    /// The class token, where there is one, has a position.
    class_position: bool,
    /// Name of a mask token of pre-training, [1, D]: the model has none, which is the same as 0.
    mask_token: Option<&'static str>,
}

impl Target {
    fn of(cfg: &Config, layout: Layout) -> Result<Self> {
        match layout {
            Layout::Timm => Self::timms(cfg),
            Layout::HuggingFace => Self::hugging_faces(cfg),
        }
    }

    fn timms(cfg: &Config) -> Result<Self> {
        let refused = |why: &str| Err(no_peer(Layout::Timm, why));
        if cfg.pool == Pool::ClassAndMean {
            return refused("timm's heads do not read the class token beside the mean of the patches");
        }
        let has_positions = cfg.rotary.is_some() || cfg.relative_positions;
        if has_positions && cfg.qkv_bias == QkvBias::All {
            return refused("timm's models of rotary or relative positions have no bias of keys");
        }
        Ok(Self {
            form: match (has_positions, cfg.gate) {
                (true, Some(Gate::Normed)) => TIMM_EVA_APART,
                (true, _) => TIMM,
                (false, _) => TIMM_VIT,
            },
            separate_biases: has_positions,
            class_position: false,
            mask_token: None,
        })
    }

    fn hugging_faces(cfg: &Config) -> Result<Self> {
        let refused = |why: &str| Err(no_peer(Layout::HuggingFace, why));
        let own = match cfg.rotary {
            Some(Rotary::Eva { .. }) => Some("EVA-02"),
            Some(Rotary::DinoV3) => Some("DINOv3 with a head"),
            None if cfg.relative_positions => Some("BEiT of these names"),
            None if cfg.pre_norm => Some("CLIP with this head"),
            None => None,
        };
        if let Some(own) = own {
            return refused(&format!("transformers has no {own}"));
        }
        let (form, mask_token) = match (cfg.pool, cfg.layer_scale.is_some()) {
            (Pool::ClassAndMean, true) if cfg.num_registers > 0 => {
                (HF_DINOV2_REGISTERS, Some("dinov2_with_registers.embeddings.mask_token"))
            }
            (Pool::ClassAndMean, true) => (HF_DINOV2, Some("dinov2.embeddings.mask_token")),
            (_, true) => {
                return refused("transformers has LayerScale in DINOv2, whose head reads class token and mean")
            }
            _ if cfg.num_registers > 0 => return refused("transformers has registers in DINOv2"),
            (Pool::ClassAndDistillation, _) => (HF_DEIT_TEACHER, None),
            (Pool::ClassToken, _) if cfg.distillation_token => (HF_DEIT, None),
            (Pool::ClassToken, _) => (HUGGING_FACE, None),
            (Pool::FinalNormThenMean | Pool::NormThenMean, _) if !cfg.class_token => {
                // Its attention has all of them or fails to load; zeros would be trained there.
                if cfg.qkv_bias == QkvBias::Absent {
                    return refused("transformers' SigLIP has biases of queries, keys and values");
                }
                (HF_SIGLIP, None)
            }
            (pool, _) => return refused(&format!("transformers has no ViT whose head reads {pool:?}")),
        };
        let gated = cfg.gate.is_some_and(|gate| gate != Gate::Packed) || cfg.gate.is_some() && mask_token.is_none();
        if gated || !cfg.absolute_positions || !cfg.patch_bias {
            return refused(
                "transformers' models of this kind have positions, a bias of patches, and no gate but DINOv2's",
            );
        }
        Ok(Self {
            form: match cfg.gate {
                Some(_) => Names {
                    fc1: "mlp.weights_in",
                    fc2: "mlp.weights_out",
                    ..form
                },
                None => form,
            },
            separate_biases: false,
            class_position: cfg.class_token,
            mask_token,
        })
    }

    /// Adds what a block has for queries, keys and values.
    fn add_projections(&self, index: usize, keys: &Tensors, tensors: &mut Tensors) -> Result<()> {
        let start = format!("{}.{index}", TIMM.blocks);
        let parts = |leaf: &str| -> Result<[Option<Tensor>; 3]> {
            match keys.get(&format!("{start}{QKV}{leaf}")) {
                Some(packed) => Ok(thirds(packed)?.map(Some)),
                None => Ok(APART.map(|part| keys.get(&format!("{start}{part}{leaf}")).cloned())),
            }
        };
        let [Some(q), Some(k), Some(v)] = parts("weight")? else {
            return Err(unlike(Family::Vit, &format!("no{QKV}weight in {start}")));
        };
        let mut biases = parts("bias")?;
        let blocks = self.form.blocks;
        let mut add = |name: String, tensor: Tensor| drop(tensors.insert(format!("{blocks}.{index}.{name}"), tensor));
        match (self.form.qkv, &biases) {
            (Qkv::Packed(_), [Some(q), None, Some(v)]) if self.separate_biases => {
                let [q_bias, v_bias] = self.form.qv_bias;
                add(q_bias.into(), q.clone());
                add(v_bias.into(), v.clone());
                biases = [None, None, None];
            }
            // What has biases has all of them.
            (_, [Some(q), ..]) if !self.separate_biases => {
                let none = q.zeros_like()?;
                biases = biases.map(|bias| Some(bias.unwrap_or(none.clone())));
            }
            _ => {}
        }
        match self.form.qkv {
            Qkv::Packed(name) => {
                add(format!("{name}.weight"), Tensor::cat(&[q, k, v], 0)?);
                if let [Some(q), Some(k), Some(v)] = biases {
                    add(format!("{name}.bias"), Tensor::cat(&[q, k, v], 0)?);
                }
            }
            Qkv::Apart(names) => {
                for ((name, weight), bias) in names.into_iter().zip([q, k, v]).zip(biases) {
                    add(format!("{name}.weight"), weight);
                    if let Some(bias) = bias {
                        add(format!("{name}.bias"), bias);
                    }
                }
            }
        }
        Ok(())
    }

    /// A tensor in the shape that the form has it.
    fn shaped(&self, cfg: &Config, key: &str, tensor: &Tensor) -> Result<Tensor> {
        let d = cfg.embed_dim;
        let is_table = [TIMM.cls_token, TIMM.dist_token, TIMM.reg_token, POS_EMBED].contains(&key);
        if !is_table {
            return Ok(tensor.clone());
        }
        let mut rows = tensor.reshape(((), d))?;
        if key == POS_EMBED && self.class_position && !cfg.class_token_position {
            let none = Tensor::zeros((cfg.num_tokens_before_registers(), d), rows.dtype(), rows.device())?;
            rows = Tensor::cat(&[none, rows], 0)?;
        }
        Ok(match (self.form.batched_embeddings, key) {
            (true, _) => rows.unsqueeze(0)?,
            (false, POS_EMBED) => rows,
            (false, _) => rows.squeeze(0)?,
        })
    }
}

impl Architecture for Config {
    fn laid_out(&self, state: &Tensors, layout: Layout) -> Result<Tensors> {
        let target = Target::of(self, layout)?;
        let keys = by_key(Family::Vit, self, state, &[])?;
        let mut tensors = Tensors::new();
        for (key, tensor) in &keys {
            if key.contains(QKV) || APART.iter().any(|part| key.contains(part)) {
                continue;
            }
            // On every token, it is what peers call the final norm.
            let final_norm = match key.strip_prefix(FC_NORM) {
                Some(leaf) if self.has_one_norm() => Some(format!("{FINAL_NORM}{leaf}")),
                _ => None,
            };
            let name = form_name(&target.form, final_norm.as_ref().unwrap_or(key));
            let name = name.ok_or_else(|| unlike(Family::Vit, key))?;
            tensors.insert(name, target.shaped(self, key, tensor)?);
        }
        for index in 0..self.depth {
            target.add_projections(index, &keys, &mut tensors)?;
        }
        if let (Some(name), Some(class)) = (target.mask_token, keys.get(TIMM.cls_token)) {
            let none = Tensor::zeros((1, self.embed_dim), class.dtype(), class.device())?;
            tensors.insert(name.to_string(), none);
        }
        Ok(tensors)
    }
    fn make(&self, vb: VarBuilder) -> candle_core::Result<()> {
        VisionTransformer::new(self, vb).map(drop)
    }

    fn has_one_norm(&self) -> bool {
        self.pool == Pool::NormThenMean
    }
}
