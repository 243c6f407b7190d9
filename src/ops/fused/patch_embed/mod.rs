//! The token sequence of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) as one operation.

mod operation;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use self::operation::Op;
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::apply;
use crate::ops::gather_rows::{check_keep, gather};
use crate::ops::linear;
use crate::ops::patchify::{self, Patchify};
use crate::ops::route::{in_f32, Route};

/// The parameters of [`patch_embed`].
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbed<'a> {
    /// The convolution's kernel, whose stride is its side p: [D, C, p, p]. It and its bias may be bf16 or f16 where all
    /// else is f32, see [`Affine`](crate::ops::Affine).
    pub weight: &'a Tensor,
    /// Its bias, `[D]`, where there is one.
    pub bias: Option<&'a Tensor>,
    /// P tokens in front of the patches', such as the class token, where there are any: [1, P, D].
    pub prefix: Option<&'a Tensor>,
    /// Embedding that is added to each position: [1, L, D], or [1, P + L, D] if the tokens in front have some, too.
    pub positions: &'a Tensor,
}

impl<'a> PatchEmbed<'a> {
    /// Weight and positions, then what may be missing: the tokens in front, the bias.
    fn params(&self) -> Vec<&'a Tensor> {
        let params = [self.weight, self.positions];
        params.into_iter().chain(self.prefix).chain(self.bias).collect()
    }

    /// The same with other parameters.
    fn with(self, params: &'a [Tensor]) -> Self {
        let mut optional = params.iter().skip(2);
        Self {
            weight: &params[0],
            positions: &params[1],
            prefix: self.prefix.and_then(|_| optional.next()),
            bias: self.bias.and_then(|_| optional.next()),
        }
    }
}

/// Tokens in front of the patches': how many there are, and how many of them have positions, all or none.
#[derive(Clone, Copy)]
struct Prefix {
    tokens: usize,
    positions: usize,
}

/// Prefix tokens, and the patches of images that are kept, each as a token, with positions added.
///
/// The same as to embed all patches and drop some of them, but those that are dropped cost nothing.
///
/// # Arguments
///
/// - `images`: [B, C, H, W]; pixels right and below of the last whole patch are ignored
/// - `embed`: the parameters
/// - `keep`: B * K indices below L = (H / p) (W / p), sample by sample, or none to keep all of them; on the host
///
/// Returns [B, P + K, D].
///
/// # PyTorch
///
/// ```text
/// tokens = F.conv2d(images, weight, bias, stride=p).flatten(2).transpose(1, 2) + positions[:, P:]
/// tokens = tokens.gather(1, keep.view(B, K, 1).expand(B, K, D))
/// torch.cat([(prefix + positions[:, :P]).expand(B, P, D), tokens], dim=1)
/// ```
///
/// # Errors
///
/// If shapes do not fit or there is no image, dtypes differ or are no floating-point ones, the number of indices is no
/// multiple of B, or an index is not below L.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{patch_embed, PatchEmbed};
/// let images = Tensor::arange(0f32, 4., &Device::Cpu)?.reshape((1, 1, 1, 4))?;
/// let embed = PatchEmbed {
///     weight: &Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu)?,
///     bias: None,
///     prefix: Some(&Tensor::new(&[[[7f32]]], &Device::Cpu)?),
///     positions: &Tensor::new(&[[[10f32], [20.], [30.], [40.]]], &Device::Cpu)?,
/// };
/// let tokens = patch_embed(&images, &embed, Some(&[3, 1]))?;
/// assert_eq!(tokens.flatten_all()?.to_vec1::<f32>()?, [7., 43., 21.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn patch_embed(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> Result<Tensor> {
    let (patches, prefix) = check(images, embed, keep)?;
    routed(images, embed, patches, prefix, keep)
}

/// [`patch_embed`] of arguments that fit.
fn routed(
    images: &Tensor,
    embed: &PatchEmbed,
    patches: Patchify,
    prefix: Prefix,
    keep: Option<&[u32]>,
) -> Result<Tensor> {
    let params = embed.params();
    let tensors: Vec<_> = [images].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => {
            let all = || (0..images.dims()[0]).flat_map(|_| 0..patches.count() as u32);
            let op = Op {
                patches,
                width: embed.weight.dims()[0],
                keep: keep.map_or_else(|| all().collect(), <[u32]>::to_vec),
                prefix,
            };
            apply(op, images, &params)
        }
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &embed.with(&t[1..]), patches, prefix, keep)),
        Route::Composition => compose(images, embed, patches, prefix, keep),
    }
}

/// The patches, and what stands in front of them, once everything fits.
fn check(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> OurResult<(Patchify, Prefix)> {
    check::float("images", images)?;
    let (weight, [width, channels, p, columns]) = match *embed.weight.dims() {
        [d, c, p, q] if d > 0 && c > 0 && p > 0 => (embed.weight, [d, c, p, q]),
        _ => return Err(Error::shape("weight", embed.weight.dims(), "[D, C, p, p], not empty")),
    };
    if p != columns {
        return Err(Error::shape("weight", weight.dims(), "[D, C, p, p]"));
    }
    let patches = patchify::check(images, p)?;
    let expected = || format!("[B, {channels}, H, W], with at least one image");
    if images.dims()[0] == 0 || images.dims()[1] != channels {
        return Err(Error::shape("images", images.dims(), expected()));
    }
    if let Some(bias) = embed.bias {
        check::vector("bias", bias, width)?;
    }
    let tokens = match embed.prefix.map(Tensor::dims) {
        None => 0,
        Some(&[1, tokens, d]) if tokens > 0 && d == width => tokens,
        Some(dims) => {
            let expected = format!("[1, P, {width}] with P > 0");
            return Err(Error::shape("prefix", dims, expected));
        }
    };
    let count = patches.count();
    if count > u32::MAX as usize {
        return Err(Error::shape("images", images.dims(), "of less than 2^32 patches"));
    }
    let positions = match *embed.positions.dims() {
        [1, length, d] if length == count && d == width => 0,
        [1, length, d] if length == tokens + count && d == width => tokens,
        _ => {
            let with_prefix = match tokens {
                0 => String::new(),
                _ => format!(" or [1, {}, {width}]", tokens + count),
            };
            let expected = format!("[1, {count}, {width}]{with_prefix}");
            return Err(Error::shape("positions", embed.positions.dims(), expected));
        }
    };
    check::factor_dtype("weight", weight, "images", images)?;
    let named = [
        ("prefix", embed.prefix, "images", images),
        ("positions", Some(embed.positions), "images", images),
        ("bias", embed.bias, "weight", weight),
    ];
    for (name, param, other, like) in named {
        param.map_or(Ok(()), |param| check::same_dtype(name, param, other, like))?;
    }
    if let Some(keep) = keep {
        check_keep(keep, patches.batch(), count)?;
    }
    Ok((patches, Prefix { tokens, positions }))
}

/// [`patch_embed`] of candle's operations.
pub fn composition(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> Result<Tensor> {
    let patches = patchify::check(images, embed.weight.dim(2)?)?;
    let prefix = Prefix {
        tokens: embed.prefix.map_or(Ok(0), |prefix| prefix.dim(1))?,
        positions: embed.positions.dim(1)? - patches.count(),
    };
    compose(images, embed, patches, prefix, keep)
}

fn compose(
    images: &Tensor,
    embed: &PatchEmbed,
    patches: Patchify,
    prefix: Prefix,
    keep: Option<&[u32]>,
) -> Result<Tensor> {
    let (batch, count, width) = (patches.batch(), patches.count(), embed.weight.dim(0)?);
    let patches = patchify::routed(&images.to_dtype(embed.weight.dtype())?, patches)?;
    let tokens = linear::routed(&patches, &embed.weight.flatten_from(1)?, embed.bias)?;
    let tokens = tokens.to_dtype(embed.positions.dtype())?;
    let tokens = tokens.broadcast_add(&embed.positions.narrow(1, prefix.positions, count)?)?;
    let tokens = match keep {
        Some(keep) => gather(&tokens, [batch, count, width], keep, 0)?,
        None => tokens,
    };
    let Some(first) = embed.prefix else { return Ok(tokens) };
    let first = if prefix.positions > 0 {
        (first + embed.positions.narrow(1, 0, prefix.positions)?)?
    } else {
        first.clone()
    };
    Tensor::cat(&[&first.broadcast_as((batch, prefix.tokens, width))?, &tokens], 1)
}
