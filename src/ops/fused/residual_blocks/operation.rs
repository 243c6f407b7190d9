//! Residual blocks as one operation of candle's graph.

use std::sync::{Arc, OnceLock};

use candle_core::Result;

use super::block::{Block, BlockMoments, BlockWithParams, Results};
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;

pub(super) struct Op {
    pub(super) blocks: Vec<Block>,
    /// What the norms of each block normalise by, from the forward on.
    pub(super) moments: Arc<OnceLock<Vec<BlockMoments>>>,
}

/// What a backward reads of a block.
pub(super) struct KeptBlock {
    results: Results,
    /// Its own result, unless it is the last one.
    ys: Option<Buffer>,
}

impl Op {
    fn with_params<'a>(&'a self, params: &[&'a [f32]]) -> Result<Vec<BlockWithParams<'a>>> {
        self.blocks.iter().map(|block| block.with_params(params)).collect()
    }

    /// What there is to keep, and the moments: those `given`, or else what the blocks give. Writes the last block's
    /// result to `last`, if there is a place for it.
    fn run(
        &self,
        xs: &[f32],
        blocks: &[BlockWithParams],
        given: Option<&[BlockMoments]>,
        keep: bool,
        mut last: Option<&mut [f32]>,
    ) -> (Vec<KeptBlock>, Vec<BlockMoments>) {
        let mut kept: Vec<KeptBlock> = Vec::new();
        let mut moments = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let xs = kept.last().and_then(|before| before.ys.as_deref()).unwrap_or(xs);
            let given = given.map(|given| &given[i]);
            let mut ys = (i + 1 < blocks.len()).then(|| Buffer::new(self.blocks[i].result_dims().iter().product()));
            let place = ys.as_deref_mut().or_else(|| last.take());
            let (results, seen) = block.forward(xs, given, keep, place);
            moments.push(seen);
            if !keep {
                kept.clear();
            }
            kept.push(KeptBlock { results, ys });
        }
        (kept, moments)
    }
}

impl Operation for Op {
    const NAME: &'static str = "residual-blocks";

    type Kept = Vec<KeptBlock>;

    fn result_dims(&self) -> Vec<usize> {
        self.blocks.last().map_or(vec![], |last| last.result_dims().to_vec())
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Vec<KeptBlock>)> {
        let mut ys = vec![0f32; self.result_dims().iter().product()];
        let (kept, moments) = self.run(xs, &self.with_params(params)?, None, keep, Some(&mut ys));
        self.moments.get_or_init(|| moments);
        Ok((ys, kept))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Vec<KeptBlock>> {
        let moments = self.moments.get().map(Vec::as_slice);
        Ok(self.run(xs, &self.with_params(params)?, moments, true, None).0)
    }

    fn backward(&self, of: Backward, mut kept: Vec<KeptBlock>, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let blocks = self.with_params(of.params)?;
        let moments = self.moments.get().map_or(&[][..], Vec::as_slice);
        let mut dxs = vec![0f32; if of.wants_dxs { of.xs.len() } else { 0 }];
        let mut above: Option<Buffer> = None;
        while let Some(KeptBlock { results, ys: own }) = kept.pop() {
            let i = kept.len();
            let (ys, grads) = match (&own, &above) {
                (Some(own), Some(grads)) => (&own[..], &grads[..]),
                _ => (of.ys, of.grads),
            };
            let below = kept.last().and_then(|below| below.ys.as_deref());
            let mut next = below.map(|below| Buffer::new(below.len()));
            let into = match &mut next {
                Some(next) => Some(&mut next[..]),
                None => of.wants_dxs.then_some(&mut dxs[..]),
            };
            let slices = [below.unwrap_or(of.xs), ys, grads];
            let mut param_grads = param_grads.part(self.blocks[i].first_param);
            blocks[i].backward(slices, results, &moments[i], into, &mut param_grads)?;
            above = next;
        }
        Ok(dxs)
    }
}
