//! Attention pooling: a learned query that reads all patches, and an MLP behind it (SigLIP, arXiv 2303.15343).

use candle_core::{Result, Tensor, D};
use candle_nn::VarBuilder;

use super::config::Config;
use crate::models::init::{normal, NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::mlp::{Mlp, MlpNames, Regime};
use crate::ops::{self, Stream};
use crate::pass::Pass;

/// timm's `AttentionPoolLatent` with one latent, whose names the parts have: z = proj(attention(q, k, v)), z +
/// mlp(norm(z)).
#[derive(Clone, Debug)]
pub(super) struct AttentionPool {
    num_heads: usize,
    /// [1, 1, D]
    latent: Tensor,
    q: Linear,
    /// [2 D, D]
    kv: Linear,
    proj: Linear,
    mlp: Mlp,
}

impl AttentionPool {
    pub(super) fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let d = cfg.embed_dim;
        let linear = |out_dim, name: &str| -> Result<Linear> {
            Ok(Linear::new(d, out_dim, NORMAL, ZERO, vb.pp(name))?.in_dtype(cfg.compute_dtype))
        };
        let names = MlpNames {
            norm: "norm",
            fc1: "mlp.fc1",
            fc2: "mlp.fc2",
        };
        let regime = Regime {
            compute_dtype: cfg.compute_dtype,
            dropout: 0.0,
            drop_path: 0.0,
            recompute: false,
        };
        let dims = [d, cfg.mlp_dim];
        Ok(Self {
            num_heads: cfg.num_heads,
            latent: vb.get_with_hints((1, 1, d), "latent", normal((d as f64).powf(-0.5)))?,
            q: linear(d, "q")?,
            kv: linear(2 * d, "kv")?,
            proj: linear(d, "proj")?,
            mlp: Mlp::new(dims, cfg.norm_eps, cfg.activation, NORMAL, names, regime, vb.clone())?,
        })
    }

    /// [B, N, D] to [B, D]. Nothing is dropped in it, whatever a sub-branch drops elsewhere.
    pub(super) fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        // The same for all samples, so that the query is projected once.
        let (q, kv) = (self.q.forward(&self.latent)?, self.kv.forward(tokens)?);
        let pooled = if ops::is_half(&kv) {
            ops::in_f32(&[&q, &kv], |t| self.attend(&t[0], &t[1]))
        } else {
            self.attend(&q, &kv)
        }?;
        let mut pooled = Stream::new(&self.proj.forward(&pooled)?.to_dtype(tokens.dtype())?);
        self.mlp.forward(&mut pooled, &mut Pass::eval())?;
        pooled.tokens()?.squeeze(1)
    }

    /// The query [1, 1, D] on keys and values [B, N, 2 D]: [B, 1, D].
    fn attend(&self, q: &Tensor, kv: &Tensor) -> Result<Tensor> {
        let (batch, length, both) = kv.dims3()?;
        let (heads, d) = (self.num_heads, both / 2);
        let kv = kv.reshape((batch, length, 2, heads, d / heads))?;
        let part = |i| kv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (k, v) = (part(0)?, part(1)?);
        let q = (q.reshape((1, heads, 1, d / heads))? * ((d / heads) as f64).powf(-0.5))?;
        let q = q.broadcast_as((batch, heads, 1, d / heads))?.contiguous()?;
        let weights = ops::softmax(&q.matmul(&k.t()?)?, D::Minus1)?;
        weights.matmul(&v)?.reshape((batch, 1, d))
    }
}
