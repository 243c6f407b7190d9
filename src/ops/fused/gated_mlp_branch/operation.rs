//! The gated MLP with all around it as one operation of candle's graph.

use candle_core::Result;
use gemm::Parallelism;

use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::to_vec;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::fused::norm::Norm;
use crate::ops::fused::projection::{Projection, Rows};
use crate::ops::fused::residual;
use crate::ops::pointwise::Pointwise as _;
use crate::ops::sigmoid::Silu;

/// Where the parameters begin: those of the norm, and behind them a weight and a bias for each [`Part`].
const NORM: usize = 0;
const LAYERS: usize = 2;

/// A layer that makes some columns of gate and value, [B N, 2 H].
pub(super) struct Part {
    pub(super) start: usize,
    pub(super) columns: usize,
}

pub(super) struct Op {
    /// B, N and D.
    pub(super) dims: [usize; 3],
    /// H.
    pub(super) hidden: usize,
    pub(super) eps: f32,
    pub(super) parts: Vec<Part>,
    pub(super) has_inner_norm: bool,
    pub(super) drop_path: Option<Vec<f32>>,
}

impl Op {
    fn rows(&self) -> usize {
        self.dims[0] * self.dims[1]
    }

    /// Where the parameters behind the layers begin: the inner norm's, where there is one.
    fn behind_layers(&self) -> usize {
        LAYERS + 2 * self.parts.len()
    }

    fn fc2_at(&self) -> usize {
        self.behind_layers() + if self.has_inner_norm { 2 } else { 0 }
    }

    fn norm<'a>(&self, params: &[&'a [f32]]) -> Norm<'a> {
        Norm {
            weight: params[0],
            bias: params[1],
            eps: self.eps,
        }
    }

    fn inner_norm<'a>(&self, params: &[&'a [f32]]) -> Option<Norm<'a>> {
        self.has_inner_norm.then(|| self.norm(&params[self.behind_layers()..]))
    }

    fn fc2<'a>(&self, params: &[&'a [f32]]) -> Projection<'a> {
        let at = self.fc2_at();
        Projection {
            weight: params[at],
            bias: params[at + 1],
            gamma: params.get(at + 2).copied(),
        }
    }

    /// Each part with its weight.
    fn weights<'s, 'a: 's>(&'s self, params: &'s [&'a [f32]]) -> impl Iterator<Item = (&'s Part, &'a [f32])> {
        self.parts.iter().zip(params[LAYERS..].iter().step_by(2).copied())
    }

    /// The biases of gate and value, [2 H].
    fn biases(&self, params: &[&[f32]]) -> Vec<f32> {
        let biases = params[LAYERS + 1..].iter().step_by(2).take(self.parts.len());
        biases.copied().flatten().copied().collect()
    }

    /// silu(gate) value, of gates and values without their biases.
    fn activate(&self, gated: &[f32], biases: &[f32]) -> Buffer {
        let hidden = self.hidden;
        let mut out = Buffer::new(self.rows() * hidden);
        kernel::for_rows(&mut out, hidden, |first, out| {
            gate(&gated[2 * first * hidden..][..2 * out.len()], biases, out);
        });
        out
    }
}

kernel::simd_fn! {
    /// silu(g) v of rows [.., 2 H], without biases [2 H], of gates and values.
    fn gate<S>(gated: &[f32], biases: &[f32], out: &mut [f32]) -> () {
        let hidden = biases.len() / 2;
        let (gate_biases, value_biases) = biases.split_at(hidden);
        for (gated, out) in gated.chunks_exact(2 * hidden).zip(out.chunks_exact_mut(hidden)) {
            let (gates, values) = gated.split_at(hidden);
            let gates = gates.iter().zip(gate_biases);
            for ((out, (&g, &gb)), (&v, &vb)) in out.iter_mut().zip(gates).zip(values.iter().zip(value_biases)) {
                *out = Silu::value::<S>(g + gb) * (v + vb);
            }
        }
    }
}

kernel::simd_fn! {
    /// Turns rows of gates and values, without biases, into their gradients, and adds these to `sums`.
    fn gate_backward<S>(gated: &mut [f32], biases: &[f32], grads: &[f32], sums: &mut [f32]) -> () {
        let hidden = biases.len() / 2;
        let (gate_biases, value_biases) = biases.split_at(hidden);
        let (gate_sums, value_sums) = sums.split_at_mut(hidden);
        for (gated, grads) in gated.chunks_exact_mut(2 * hidden).zip(grads.chunks_exact(hidden)) {
            let (gates, values) = gated.split_at_mut(hidden);
            let gates = gates.iter_mut().zip(gate_biases).zip(gate_sums.iter_mut());
            let values = values.iter_mut().zip(value_biases).zip(value_sums.iter_mut());
            for ((((g, &gb), gate_sum), ((v, &vb), value_sum)), &grad) in gates.zip(values).zip(grads) {
                let (active, slope) = Silu::both::<S>(*g + gb);
                *g = grad * (*v + vb) * slope;
                *v = grad * active;
                *gate_sum += *g;
                *value_sum += *v;
            }
        }
    }
}

impl Operation for Op {
    const NAME: &'static str = "gated-mlp-branch";

    /// What the first layers gave, without their biases: [B N, 2 H].
    type Kept = Buffer;

    fn result_dims(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Buffer)> {
        let gated = self.recompute(xs, params)?;
        let mut active = self.activate(&gated, &self.biases(params));
        if let Some(norm) = self.inner_norm(params) {
            active = norm.forward(&active);
        }
        let drop_path = self.drop_path.as_deref();
        let ys = self.fc2(params).add_to(Rows { data: xs, step: 1 }, &active, drop_path);
        Ok((ys, gated))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Buffer> {
        let ([_, _, width], rows, row) = (self.dims, self.rows(), 2 * self.hidden);
        let normed = self.norm(params).forward(xs);
        let mut gated = Buffer::new(rows * row);
        for (&Part { start, columns }, weight) in self.weights(params) {
            matrix::matmul(
                &mut MatMut::rows(&mut gated[start..], rows, columns, row),
                Write::Replace,
                1.0,
                Mat::rows(&normed, rows, width, width),
                Mat::rows(weight, columns, width, width).t(),
                Parallelism::Rayon(0),
            );
        }
        Ok(gated)
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
        let ([_, _, width], rows, hidden) = (self.dims, self.rows(), self.hidden);
        let (mut gated, biases, fc2) = (kept, self.biases(params), self.fc2(params));
        let active = self.activate(&gated, &biases);
        let dropped = residual::dropped(&grads, width, self.drop_path.as_deref());
        let mut dactive = Buffer::new(rows * hidden);
        fc2.backward(&dropped, &mut dactive);
        let mut of_fc2 = param_grads.part(self.fc2_at());
        match self.inner_norm(params) {
            None => fc2.param_gradients(&mut of_fc2, &dropped, &active, || {})?,
            Some(norm) => {
                fc2.param_gradients(&mut of_fc2, &dropped, &norm.forward(&active), || {})?;
                let mut dbefore = Buffer::new(active.len());
                dbefore.fill(0.0);
                norm.backward(
                    &active,
                    &dactive,
                    &mut dbefore,
                    &mut param_grads.part(self.behind_layers()),
                )?;
                dactive = dbefore;
            }
        }
        drop((active, dropped));
        let dbiases = kernel::for_rows_summing(&mut gated, 2 * hidden, 2 * hidden, |first, gated, sums| {
            gate_backward(gated, &biases, &dactive[first * hidden..][..gated.len() / 2], sums);
        });
        drop(dactive);

        let (norm, row) = (self.norm(params), 2 * hidden);
        let normed = norm.forward(xs);
        let mut dnormed = Buffer::new(rows * width);
        for (i, (&Part { start, columns }, weight)) in self.weights(params).enumerate() {
            let dgated = Mat::rows(&gated[start..], rows, columns, row);
            let input_gradient = || {
                matrix::matmul(
                    &mut MatMut::rows(&mut dnormed, rows, width, width),
                    if i == 0 { Write::Replace } else { Write::Add },
                    1.0,
                    dgated,
                    Mat::rows(weight, columns, width, width),
                    Parallelism::Rayon(0),
                );
            };
            param_grads.write_beside(LAYERS + 2 * i, input_gradient, |out, write| {
                matrix::matmul(
                    &mut MatMut::rows(out, columns, width, width),
                    write,
                    1.0,
                    dgated.t(),
                    Mat::rows(&normed, rows, width, width),
                    Parallelism::Rayon(0),
                );
            })?;
            param_grads.set(LAYERS + 2 * i + 1, dbiases[start..][..columns].to_vec())?;
        }
        drop((gated, normed));
        norm.backward(xs, &dnormed, &mut grads, &mut param_grads.part(NORM))?;
        Ok(grads)
    }
}
