//! The rows of one head among those of all, in order or scattered.

use super::dims::Dims;
use crate::ops::cpu::matrix::Mat;

/// One head of one sample.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) sample: usize,
    pub(super) index: usize,
}

/// Some columns of the rows of a head's sample: its queries, keys, values or results.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    data: &'a [f32],
    head_width: usize,
    /// From one row to the next.
    stride: usize,
}

impl<'a> Part<'a> {
    pub(super) fn rows(self, first: usize, rows: usize) -> Mat<'a> {
        Mat::rows(&self.data[first * self.stride..], rows, self.head_width, self.stride)
    }
}

/// Queries, keys and values of a head.
pub(super) type Packed<'a> = [Part<'a>; 3];

/// The first `len` elements of `scratch`, which is left with the rest.
pub(super) fn take<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    taken
}

/// Where the rows of every head are.
pub(super) struct HeadRows {
    pub(super) dims: Dims,
    /// The places of the tokens of consecutive samples, if not one after another: the windows of a grid that stays in
    /// its own order. It repeats itself, so that there may be many such grids.
    pub(super) order: Option<Vec<u32>>,
}

impl HeadRows {
    /// The row of the `at`-th token of all samples.
    fn row(&self, at: usize) -> usize {
        match &self.order {
            None => at,
            Some(order) => at - at % order.len() + order[at % order.len()] as usize,
        }
    }

    /// Where token `token` of a head begins in part `part` of `qkv`: queries, keys, values.
    pub(super) fn packed_at(&self, head: Head, part: usize, token: usize) -> usize {
        let row = self.row(head.sample * self.dims.tokens + token);
        (3 * row + part) * self.dims.width() + head.index * self.dims.head_width
    }

    /// Where query `query` of a head begins in the result.
    pub(super) fn result_at(&self, head: Head, query: usize) -> usize {
        self.row(head.sample * self.dims.queries + query) * self.dims.width() + head.index * self.dims.head_width
    }

    /// Elements of scratch memory for a [`Part`].
    pub(super) fn gathered(&self) -> usize {
        match self.order {
            None => 0,
            Some(_) => self.dims.tokens * self.dims.head_width,
        }
    }

    /// Rows of a head that are `stride` apart where the tokens are in order; otherwise it takes
    /// [`gathered`](Self::gathered) of `scratch` for them.
    pub(super) fn part<'a, 's: 'a>(
        &self,
        xs: &'a [f32],
        at: impl Fn(usize) -> usize,
        stride: usize,
        scratch: &mut &'s mut [f32],
    ) -> Part<'a> {
        let head_width = self.dims.head_width;
        if self.order.is_none() {
            return Part {
                data: &xs[at(0)..],
                head_width,
                stride,
            };
        }
        let data = take(scratch, self.gathered());
        for (token, row) in data.chunks_exact_mut(head_width).enumerate() {
            row.copy_from_slice(&xs[at(token)..][..head_width]);
        }
        Part {
            data,
            head_width,
            stride: head_width,
        }
    }

    /// Queries, keys and values of `head`.
    pub(super) fn packed<'a, 's: 'a>(&self, qkv: &'a [f32], head: Head, scratch: &mut &'s mut [f32]) -> Packed<'a> {
        [0, 1, 2].map(|part| {
            let at = |token| self.packed_at(head, part, token);
            self.part(qkv, at, 3 * self.dims.width(), scratch)
        })
    }
}
