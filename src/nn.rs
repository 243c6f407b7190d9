//! temporary
use candle_core::{Result, Tensor};
#[derive(Clone, Debug)]
pub struct LayerNorm {
    w: Tensor,
    b: Tensor,
    eps: f64,
}
pub fn layer_norm(size: usize, eps: f64, vb: candle_nn::VarBuilder) -> Result<LayerNorm> {
    Ok(LayerNorm {
        w: vb.get_with_hints(size, "weight", candle_nn::Init::Const(1.))?,
        b: vb.get_with_hints(size, "bias", candle_nn::Init::Const(0.))?,
        eps,
    })
}
impl candle_nn::Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        crate::ops::layer_norm(xs, &self.w, &self.b, self.eps as f32)
    }
}
