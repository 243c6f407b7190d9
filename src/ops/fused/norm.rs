//! The layer norm in front of a residual branch, on slices.

use candle_core::Result;

use crate::ops::autograd::ParamGrads;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::layer_norm;

/// A layer norm of rows `width` long, which backwards is computed again from its input instead of kept.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl Norm<'_> {
    pub(crate) fn forward(self, xs: &[f32]) -> Buffer {
        let width = self.weight.len();
        let mut ys = Buffer::new(xs.len());
        kernel::for_rows(&mut ys, width, |first, ys| {
            let xs = &xs[first * width..][..ys.len()];
            layer_norm::forward_rows(xs, self.weight, Some(self.bias), self.eps, ys);
        });
        ys
    }

    /// Adds the gradient of `xs` to `dxs`, and hands over those of weight and bias, which `param_grads` begins with.
    pub(crate) fn backward(
        self,
        xs: &[f32],
        grads: &[f32],
        dxs: &mut [f32],
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let width = self.weight.len();
        let mut dweight = kernel::for_rows_summing(dxs, width, 2 * width, |first, dxs, sums| {
            let rows = first * width..first * width + dxs.len();
            layer_norm::backward_rows(&xs[rows.clone()], self.weight, &grads[rows], self.eps, dxs, sums);
        });
        let dbias = dweight.split_off(width);
        param_grads.set(0, dweight)?;
        param_grads.set(1, dbias)
    }
}
