//! The MLP with all around it as one operation of candle's graph.

use candle_core::Result;
use gemm::Parallelism;

use crate::ops::activation::Activation;
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::to_vec;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::fused::activate;
use crate::ops::fused::projection::Rows;
use crate::ops::fused::residual::{self, NORM, PROJECTION};

pub(super) struct Op {
    /// B, N and D.
    pub(super) dims: [usize; 3],
    pub(super) hidden: usize,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    pub(super) recompute: bool,
    pub(super) drop_path: Option<Vec<f32>>,
}

impl Operation for Op {
    const NAME: &'static str = "mlp-branch";

    /// What the first layer gave, without its bias: [B N, H].
    type Kept = Buffer;

    fn result_dims(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Buffer)> {
        let (_, [_, bias], fc2) = residual::parts(params, self.eps);
        let hidden = self.recompute(xs, params)?;
        let active = activate::forward(self.activation, &hidden, bias);
        let ys = fc2.add_to(Rows { data: xs, step: 1 }, &active, self.drop_path.as_deref());
        Ok((ys, hidden))
    }

    fn keeps(&self) -> bool {
        !self.recompute
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Buffer> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let (norm, [fc1, _], _) = residual::parts(params, self.eps);
        let mut h = Buffer::new(rows * hidden);
        matrix::matmul(
            &mut MatMut::rows(&mut h, rows, hidden, hidden),
            Write::Replace,
            1.0,
            Mat::rows(&norm.forward(xs), rows, width, width),
            Mat::rows(fc1, hidden, width, width).t(),
            Parallelism::Rayon(0),
        );
        Ok(h)
    }

    fn backward(&self, of: Backward, kept: Buffer, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        self.backward_in_place(of.xs, of.params, to_vec(of.grads), kept, param_grads)
    }

    fn backward_in_place(
        &self,
        xs: &[f32],
        params: &[&[f32]],
        mut grads: Vec<f32>,
        kept: Buffer,
        param_grads: &mut ParamGrads,
    ) -> Result<Vec<f32>> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let (norm, [fc1, bias], fc2) = residual::parts(params, self.eps);
        let dropped = residual::dropped(&grads, width, self.drop_path.as_deref());
        let mut dh = Buffer::new(rows * hidden);
        fc2.backward(&dropped, &mut dh);
        let mut active = Buffer::new(rows * hidden);
        let dbias = activate::backward(self.activation, &kept, bias, [&mut active, &mut dh]);
        drop(kept);
        fc2.param_gradients(&mut param_grads.part(PROJECTION), &dropped, &active, || {})?;
        drop((active, dropped));

        let dnormed = residual::middle_backward(&dh, dbias, fc1, || norm.forward(xs), param_grads)?;
        drop(dh);
        norm.backward(xs, &dnormed, &mut grads, &mut param_grads.part(NORM))?;
        Ok(grads)
    }
}
