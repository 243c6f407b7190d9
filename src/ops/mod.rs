//! temporary
use candle_core::{Result, Tensor, D};
pub fn gather_rows(tokens: &Tensor, keep: &[u32], p: usize) -> Result<Tensor> {
    let (b, n, d) = tokens.dims3()?;
    let k = keep.len() / b;
    let idx: Vec<u32> = keep
        .chunks(k)
        .enumerate()
        .flat_map(|(i, row)| {
            (0..p as u32)
                .chain(row.iter().map(move |r| r + p as u32))
                .map(move |x| x + (i * n) as u32)
                .collect::<Vec<_>>()
        })
        .collect();
    let idx = Tensor::new(idx, tokens.device())?;
    tokens
        .contiguous()?
        .reshape((b * n, d))?
        .index_select(&idx, 0)?
        .reshape((b, p + k, d))
}
pub fn linear(xs: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = xs.contiguous()?.broadcast_matmul(&w.t()?)?;
    match b {
        Some(b) => y.broadcast_add(b),
        None => Ok(y),
    }
}
pub fn layer_norm(xs: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    let m = xs.mean_keepdim(D::Minus1)?;
    let x = xs.broadcast_sub(&m)?;
    let v = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(v + eps as f64)?.sqrt()?)?
        .broadcast_mul(w)?
        .broadcast_add(b)
}
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    xs.gelu_erf()
}
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    xs * candle_nn::ops::sigmoid(&(xs * 1.702)?)?
}
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, d3) = qkv.dims3()?;
    let d = d3 / 3 / heads;
    let qkv = qkv.reshape((b, n, 3, heads, d))?.permute((2, 0, 3, 1, 4))?;
    let q = (qkv.get(0)?.contiguous()? * (d as f64).powf(-0.5))?;
    let k = qkv.get(1)?.contiguous()?;
    let v = qkv.get(2)?.contiguous()?;
    let a = candle_nn::ops::softmax(&q.matmul(&k.t()?)?, D::Minus1)?;
    a.matmul(&v)?.transpose(1, 2)?.reshape((b, n, heads * d))
}
