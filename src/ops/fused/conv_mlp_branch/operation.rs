//! The block of a ConvNeXt as one operation of candle's graph.

use candle_core::Result;
use gemm::Parallelism;

use super::response::Response;
use crate::ops::activation::Activation;
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::conv2d::channels_last::ChannelsLast;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::to_vec;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::fused::activate;
use crate::ops::fused::projection::Rows;
use crate::ops::fused::residual::{self, NORM, PROJECTION};

/// Where the parameters stand. Behind these come those of a residual branch.
const CONV: usize = 0;
const RESPONSE: usize = 2;

pub(super) struct Op {
    /// B, the grid, C, and the kernel.
    pub(super) conv: ChannelsLast,
    pub(super) hidden: usize,
    pub(super) eps: f32,
    pub(super) has_response: bool,
    pub(super) drop_path: Option<Vec<f32>>,
}

/// What a forward leaves.
pub(super) struct Kept {
    /// What the convolution gave, [B L, C].
    conv: Buffer,
    /// What the first layer gave, without its bias, [B L, H].
    hidden: Buffer,
    /// Of the response normalisation the channels' norms, [B, H].
    norms: Vec<f32>,
}

impl Op {
    fn rows(&self) -> usize {
        self.conv.batch * self.conv.height * self.conv.width
    }

    /// Where the parameters of the residual branch begin.
    fn branch(&self) -> usize {
        if self.has_response {
            RESPONSE + 2
        } else {
            RESPONSE
        }
    }

    fn response<'a>(&self, params: &[&'a [f32]]) -> Option<Response<'a>> {
        self.has_response.then(|| Response {
            weight: params[RESPONSE],
            bias: params[RESPONSE + 1],
            batch: self.conv.batch,
        })
    }

    /// What is kept, and what the second layer gets.
    fn to_active(&self, xs: &[f32], params: &[&[f32]]) -> (Kept, Buffer) {
        let (rows, width, hidden) = (self.rows(), self.conv.channels, self.hidden);
        let (norm, [fc1, bias], _) = residual::parts(&params[self.branch()..], self.eps);
        let mut conv = Buffer::new(xs.len());
        self.conv.forward(xs, params[CONV], params[CONV + 1], &mut conv);
        let mut h = Buffer::new(rows * hidden);
        matrix::matmul(
            &mut MatMut::rows(&mut h, rows, hidden, hidden),
            Write::Replace,
            1.0,
            Mat::rows(&norm.forward(&conv), rows, width, width),
            Mat::rows(fc1, hidden, width, width).t(),
            Parallelism::Rayon(0),
        );
        let mut active = activate::forward(Activation::Gelu, &h, bias);
        let norms = self.response(params).map(|response| response.forward(&mut active));
        let kept = Kept {
            conv,
            hidden: h,
            norms: norms.unwrap_or_default(),
        };
        (kept, active)
    }
}

impl Operation for Op {
    const NAME: &'static str = "conv-mlp-branch";

    type Kept = Kept;

    fn result_dims(&self) -> Vec<usize> {
        vec![self.conv.batch, self.conv.height * self.conv.width, self.conv.channels]
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Kept)> {
        let (kept, active) = self.to_active(xs, params);
        let (_, _, fc2) = residual::parts(&params[self.branch()..], self.eps);
        let ys = fc2.add_to(Rows { data: xs, step: 1 }, &active, self.drop_path.as_deref());
        Ok((ys, kept))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Kept> {
        Ok(self.to_active(xs, params).0)
    }

    fn backward(&self, of: Backward, kept: Kept, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        self.backward_in_place(of.xs, of.params, to_vec(of.grads), kept, param_grads)
    }

    fn backward_in_place(
        &self,
        xs: &[f32],
        params: &[&[f32]],
        mut grads: Vec<f32>,
        kept: Kept,
        param_grads: &mut ParamGrads,
    ) -> Result<Vec<f32>> {
        let (rows, width, hidden) = (self.rows(), self.conv.channels, self.hidden);
        let (norm, [fc1, bias], fc2) = residual::parts(&params[self.branch()..], self.eps);
        let dropped = residual::dropped(&grads, width, self.drop_path.as_deref());
        let mut dh = Buffer::new(rows * hidden);
        fc2.backward(&dropped, &mut dh);
        let mut active = Buffer::new(rows * hidden);
        let outs: [&mut [f32]; 2] = [&mut active, &mut dh];
        let dbias = match self.response(params) {
            None => activate::backward(Activation::Gelu, &kept.hidden, bias, outs),
            Some(response) => {
                let [dweight, dresponse_bias, dbias] = response.backward(&kept.hidden, bias, &kept.norms, outs);
                param_grads.set(RESPONSE, dweight)?;
                param_grads.set(RESPONSE + 1, dresponse_bias)?;
                dbias
            }
        };
        let Kept { conv, hidden: h, .. } = kept;
        drop(h);
        let mut of_branch = param_grads.part(self.branch());
        fc2.param_gradients(&mut of_branch.part(PROJECTION), &dropped, &active, || {})?;
        drop((active, dropped));

        let dnormed = residual::middle_backward(&dh, dbias, fc1, || norm.forward(&conv), &mut of_branch)?;
        drop(dh);
        let mut dconv = Buffer::new(rows * width);
        dconv.fill(0.0);
        norm.backward(&conv, &dnormed, &mut dconv, &mut of_branch.part(NORM))?;
        drop((conv, dnormed));
        let [dweight, dbias] = self.conv.backward(xs, params[CONV], &dconv, &mut grads);
        param_grads.set(CONV, dweight)?;
        param_grads.set(CONV + 1, dbias)?;
        Ok(grads)
    }
}
