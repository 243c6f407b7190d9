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
use crate::{Forward, Pass};
use candle_core::Var;
#[derive(Clone, Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    eps: f64,
    momentum: f64,
}
pub fn batch_norm(
    n: usize,
    cfg: impl Into<candle_nn::BatchNormConfig>,
    vb: candle_nn::VarBuilder,
) -> Result<BatchNorm> {
    let cfg = cfg.into();
    let get = |name: &str, init: f64| vb.get_with_hints(n, name, candle_nn::Init::Const(init));
    Ok(BatchNorm {
        weight: get("weight", 1.)?,
        bias: get("bias", 0.)?,
        running_mean: Var::from_tensor(&get("running_mean", 0.)?)?,
        running_var: Var::from_tensor(&get("running_var", 1.)?)?,
        eps: cfg.eps,
        momentum: cfg.momentum,
    })
}
impl Forward for BatchNorm {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if !pass.is_train() {
            let c = self.weight.elem_count();
            let mut shape = vec![1; xs.rank()];
            shape[1] = c;
            let scale = (&self.weight / (self.running_var.as_detached_tensor() + self.eps)?.sqrt()?)?;
            let shift = (&self.bias - (self.running_mean.as_detached_tensor() * &scale)?)?;
            return xs
                .broadcast_mul(&scale.reshape(shape.clone())?)?
                .broadcast_add(&shift.reshape(shape)?);
        }
        let (ys, s) = crate::ops::batch_norm(xs, &self.weight, &self.bias, self.eps)?;
        pass.update_running(&self.running_mean, &s.mean, self.momentum);
        pass.update_running(&self.running_var, &s.unbiased_var, self.momentum);
        Ok(ys)
    }
}
