//! The sizes of a packed projection.

use crate::check;
use crate::error::Error;

/// B, N, the number of heads and d.
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    /// Tokens of each sample, from the first on, that ask for a result.
    pub(crate) queries: usize,
    pub(crate) heads: usize,
    pub(crate) head_width: usize,
}

impl Dims {
    /// Of `qkv` [B, N, 3 D], once it fits the number of heads.
    pub(crate) fn of(qkv: &[usize], heads: usize) -> crate::error::Result<Self> {
        let &[batch, tokens, packed] = qkv else {
            return Err(Error::shape("qkv", qkv, "[B, N, 3 D]"));
        };
        check::at_least_one("num_heads", heads)?;
        let Some(parts) = heads.checked_mul(3).filter(|parts| packed.is_multiple_of(*parts)) else {
            return Err(Error::shape(
                "qkv",
                qkv,
                format!("[B, N, 3 D] with D a multiple of num_heads = {heads}"),
            ));
        };
        Ok(Self {
            batch,
            tokens,
            queries: tokens,
            heads,
            head_width: packed / parts,
        })
    }

    /// B, N and the heads of each window of `window`² = N tokens, of those of whole samples.
    pub(crate) fn within(self, window: usize) -> Self {
        let positions = window * window;
        Self {
            batch: self.batch * self.tokens / positions,
            tokens: positions,
            queries: positions,
            ..self
        }
    }

    /// D.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// 1 / √d.
    pub(super) fn scale(&self) -> f32 {
        (self.head_width as f32).sqrt().recip()
    }

    /// Queries whose scores are held at a time: nearly equal blocks of at most [`QUERIES`].
    pub(super) fn block(&self) -> usize {
        blocks_of(self.queries)
    }
}

/// The size of nearly equal blocks of so many queries, at most [`QUERIES`].
pub(super) fn blocks_of(queries: usize) -> usize {
    queries.div_ceil(queries.div_ceil(QUERIES))
}

/// Most queries whose scores are held at a time, so that a block of scores stays in the second-level cache.
pub(super) const QUERIES: usize = 256;
