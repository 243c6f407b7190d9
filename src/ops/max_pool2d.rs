//! Max pooling with any kernel, stride and padding.

use candle_core::{Result, Tensor};

/// The largest of each `kernel` x `kernel` window of `xs` [B, C, H, W].
pub fn max_pool2d(xs: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    let pad = |xs: &Tensor, dim: usize| -> Result<Tensor> {
        if padding == 0 {
            return Ok(xs.clone());
        }
        let mut dims = xs.dims().to_vec();
        dims[dim] = padding;
        let lowest = Tensor::full(f32::MIN as f64, dims, xs.device())?.to_dtype(xs.dtype())?;
        Tensor::cat(&[&lowest, xs, &lowest], dim)
    };
    let padded = pad(&pad(xs, 2)?, 3)?;
    let out = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    let pick = |xs: &Tensor, dim: usize, offset: usize, count: usize| -> Result<Tensor> {
        let at: Vec<u32> = (0..count).map(|i| (offset + i * stride) as u32).collect();
        xs.index_select(&Tensor::from_vec(at, count, xs.device())?, dim)
    };
    let mut best: Option<Tensor> = None;
    for row in 0..kernel {
        let rows = pick(&padded, 2, row, out(height))?;
        for column in 0..kernel {
            let candidate = pick(&rows, 3, column, out(width))?;
            best = Some(match best {
                None => candidate,
                Some(best) => candidate.gt(&best)?.where_cond(&candidate, &best)?,
            });
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("empty kernel".into()))
}
