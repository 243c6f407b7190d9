//! One residual block on slices: its geometry, its forward and its backward.

use candle_core::{Result, Tensor};

use super::ResidualBlock;
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::ParamGrads;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::channels::{through_relu, Moments, Upstream};
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;
use crate::ops::fused::conv_norm::{Layer, LayerWithParams, Names};

const CONVS: Names = Names {
    input: "input",
    weight: "convs.weight",
    norm: ["convs.norm.weight", "convs.norm.bias"],
    running: ["convs.running.mean", "convs.running.var"],
};

const DOWNSAMPLE: Names = Names {
    input: "input",
    weight: "downsample.weight",
    norm: ["downsample.norm.weight", "downsample.norm.bias"],
    running: ["downsample.running.mean", "downsample.running.var"],
};

/// `error` with the place of what it is about: the name alone does not tell which of many.
fn located(mut error: Error, place: String) -> Error {
    use Error::{DType, InvalidArgument, Shape};
    if let InvalidArgument { allowed: must, .. } | Shape { expected: must, .. } | DType { expected: must, .. } =
        &mut error
    {
        must.push_str(&format!(", for {place}"));
    }
    error
}

/// A block without its parameters.
pub(super) struct Block {
    /// The convolutions, the projection last.
    pub(super) layers: Vec<Layer>,
    has_downsample: bool,
    drop_path: Option<Vec<f32>>,
    /// Where its parameters begin, of which each layer has three.
    pub(super) first_param: usize,
}

impl Block {
    /// The block number `index`, of an input of shape `xs`, once all fits; tensors are of the dtype and on the device
    /// of `like`.
    pub(super) fn new(
        block: &ResidualBlock,
        index: usize,
        xs: &[usize],
        first_param: usize,
        like: &Tensor,
    ) -> OurResult<Self> {
        let here = |error| located(error, format!("blocks[{index}]"));
        if block.convs.is_empty() {
            return Err(here(Error::invalid("convs", "empty", "at least one convolution")));
        }
        let mut layers = Vec::with_capacity(block.convs.len() + 1);
        let mut dims = xs.to_vec();
        for (i, conv) in block.convs.iter().enumerate() {
            let input = if index == 0 && i == 0 { "xs" } else { "input" };
            let layer = Layer::new(&Names { input, ..CONVS }, conv, &dims, like)
                .map_err(|error| located(error, format!("blocks[{index}].convs[{i}]")))?;
            dims = layer.conv.result_dims().to_vec();
            layers.push(layer);
        }
        let identity = match &block.downsample {
            None => xs.to_vec(),
            Some(conv) => {
                let input = if index == 0 { "xs" } else { "input" };
                let layer = Layer::new(&Names { input, ..DOWNSAMPLE }, conv, xs, like)
                    .map_err(|error| located(error, format!("blocks[{index}].downsample")))?;
                let dims = layer.conv.result_dims().to_vec();
                layers.push(layer);
                dims
            }
        };
        if identity != dims {
            let given = match block.downsample {
                Some(_) => format!("a projection to {identity:?}"),
                None => "None".to_string(),
            };
            let allowed = format!("a projection to {dims:?}, the shape of the branch's result");
            return Err(here(Error::invalid("downsample", given, allowed)));
        }
        check::drop_path(block.drop_path.as_deref(), dims[0]).map_err(here)?;
        Ok(Self {
            layers,
            has_downsample: block.downsample.is_some(),
            drop_path: block.drop_path.clone(),
            first_param,
        })
    }

    pub(super) fn result_dims(&self) -> [usize; 4] {
        let last = self.layers.len() - 1 - usize::from(self.has_downsample);
        self.layers[last].conv.result_dims()
    }

    /// With its parameters out of those of all blocks.
    pub(super) fn with_params<'a>(&'a self, params: &[&'a [f32]]) -> Result<BlockWithParams<'a>> {
        let layers = self.layers.iter().zip(params[self.first_param..].chunks_exact(3));
        let branch = layers.map(|(layer, params)| layer.with_params(params));
        let mut branch = branch.collect::<Result<Vec<_>>>()?;
        let downsample = if self.has_downsample { branch.pop() } else { None };
        Ok(BlockWithParams {
            branch,
            downsample,
            drop_path: self.drop_path.as_deref(),
        })
    }
}

/// A block and the elements of its parameters.
pub(super) struct BlockWithParams<'a> {
    branch: Vec<LayerWithParams<'a>>,
    downsample: Option<LayerWithParams<'a>>,
    drop_path: Option<&'a [f32]>,
}

/// The moments of each layer's result.
pub(super) type BlockMoments = Vec<Vec<Moments>>;

impl BlockWithParams<'_> {
    /// What the convolutions give, the last one alone unless all are to be kept, and the moments that their norms
    /// normalise by: those `given`, or else the running statistics or what they see. Writes the block's result to `ys`,
    /// if there is a place for it.
    pub(super) fn forward(
        &self,
        xs: &[f32],
        given: Option<&BlockMoments>,
        keep: bool,
        ys: Option<&mut [f32]>,
    ) -> (Results, BlockMoments) {
        let given = |i: usize| given.map(|given| &given[i][..]);
        let (mut results, mut moments) = (Vec::new(), Vec::new());
        let mut active: Option<Buffer> = None;
        let last = self.branch.len() - 1;
        for (i, layer) in self.branch.iter().enumerate() {
            let result = layer.convolve(active.as_deref().unwrap_or(xs));
            if i < last {
                let (next, seen) = layer.activate(&result, given(i));
                active = Some(next);
                moments.push(seen);
                if !keep {
                    continue;
                }
            }
            results.push(result);
        }
        drop(active);
        let projection = self.downsample.as_ref().map(|layer| layer.convolve(xs));
        if let Some(ys) = ys {
            let of_projection = self.downsample.as_ref().zip(projection.as_ref());
            let of_projection = of_projection.map(|(layer, result)| {
                let given = layer.moments(given(last + 1));
                layer.norm.forward(result, given, f32::NEG_INFINITY, ys)
            });
            if of_projection.is_none() {
                kernel::for_rows(ys, 1, |first, ys| ys.copy_from_slice(&xs[first..][..ys.len()]));
            }
            let layer = &self.branch[last];
            let given = layer.moments(given(last));
            let result = results.last().map_or(&[][..], |result| result);
            moments.push(layer.norm.forward_onto(result, given, self.drop_path, ys));
            moments.extend(of_projection);
        }
        let results = Results {
            branch: results,
            projection,
        };
        (results, moments)
    }

    /// Writes the gradients of the input to `dxs`, where they are asked for, and hands those of the parameters over. Of
    /// `results`, what the convolutions gave, each is let go when nothing needs it any more.
    pub(super) fn backward(
        &self,
        [xs, ys, grads]: [&[f32]; 3],
        results: Results,
        moments: &BlockMoments,
        mut dxs: Option<&mut [f32]>,
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let upstream = Upstream {
            grads: Some(grads),
            relu: Some(ys),
            factors: None,
        };
        self.identity_backward(
            xs,
            results.projection,
            moments,
            upstream,
            dxs.as_deref_mut(),
            param_grads,
        )?;
        let upstream = Upstream {
            factors: self.drop_path,
            ..upstream
        };
        self.branch_backward(xs, results.branch, moments, upstream, dxs, param_grads)
    }

    /// The part of the identity or of its projection, which comes first: it writes `dxs`.
    fn identity_backward(
        &self,
        xs: &[f32],
        projection: Option<Buffer>,
        moments: &BlockMoments,
        upstream: Upstream,
        dxs: Option<&mut [f32]>,
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let Some((layer, result)) = self.downsample.as_ref().zip(projection) else {
            if let (Some(dxs), Some(grads), Some(ys)) = (dxs, upstream.grads, upstream.relu) {
                through_relu(ys, grads, dxs);
            }
            return Ok(());
        };
        let i = self.branch.len();
        let mut grads = Buffer::new(result.len());
        layer.backward(
            [xs, &result],
            &moments[i],
            upstream,
            &mut grads,
            &mut param_grads.part(3 * i),
        )?;
        drop(result);
        if let Some(dxs) = dxs {
            layer.conv.backward_xs(layer.weight, &grads, dxs, Write::Replace);
        }
        Ok(())
    }

    /// The part of the branch: it adds to `dxs`.
    fn branch_backward(
        &self,
        xs: &[f32],
        mut results: Vec<Buffer>,
        moments: &BlockMoments,
        upstream: Upstream,
        mut dxs: Option<&mut [f32]>,
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let mut grads = Buffer::new(results.last().map_or(0, |last| last.len()));
        // What the layer above was handed, whose ReLU the gradients go through.
        let mut above: Option<Buffer> = None;
        while let Some(result) = results.pop() {
            let i = results.len();
            let layer = &self.branch[i];
            let before = results.last();
            let active = before.map(|before| self.branch[i - 1].activate(before, Some(&moments[i - 1])).0);
            let upstream = match &above {
                None => upstream,
                Some(above) => Upstream {
                    grads: None,
                    relu: Some(above),
                    factors: None,
                },
            };
            layer.backward(
                [active.as_deref().unwrap_or(xs), &result],
                &moments[i],
                upstream,
                &mut grads,
                &mut param_grads.part(3 * i),
            )?;
            drop(result);
            if let Some(active) = &active {
                let mut below = Buffer::new(active.len());
                layer.conv.backward_xs(layer.weight, &grads, &mut below, Write::Replace);
                grads = below;
            } else if let Some(dxs) = &mut dxs {
                // The identity's are there.
                layer.conv.backward_xs(layer.weight, &grads, dxs, Write::Add);
            }
            above = active;
        }
        Ok(())
    }
}

/// What the convolutions of a block gave.
pub(super) struct Results {
    branch: Vec<Buffer>,
    projection: Option<Buffer>,
}
