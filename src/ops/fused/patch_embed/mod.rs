//! The token sequence of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) as one operation.

use candle_core::{Result, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::{apply, Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::gather_rows::{check_keep, gather};
use crate::ops::linear::{self, add_rows_to};
use crate::ops::patchify::{self, Patchify};
use crate::ops::route::{in_f32, Route};

/// The parameters of [`patch_embed`].
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbed<'a> {
    /// The convolution's kernel, whose stride is its side p: [D, C, p, p].
    pub weight: &'a Tensor,
    /// Its bias, `[D]`, where there is one.
    pub bias: Option<&'a Tensor>,
    /// The token in front of the patches', [1, 1, D].
    pub class_token: &'a Tensor,
    /// Embedding that is added to each position: [1, L, D], or [1, 1 + L, D] if the class token has one, too.
    pub positions: &'a Tensor,
}

impl<'a> PatchEmbed<'a> {
    /// The bias last, which may be missing.
    fn params(&self) -> Vec<&'a Tensor> {
        let params = [self.weight, self.class_token, self.positions];
        params.into_iter().chain(self.bias).collect()
    }
}

/// The class token and the patches of images that are kept, each as a token, with positions added.
///
/// The same as to embed all patches and drop some of them, but those that are dropped cost nothing.
///
/// # Arguments
///
/// - `images`: [B, C, H, W]; pixels right and below of the last whole patch are ignored
/// - `embed`: the parameters
/// - `keep`: B * K indices below L = (H / p) (W / p), sample by sample, or none to keep all of them; on the host
///
/// Returns [B, 1 + K, D].
///
/// # PyTorch
///
/// ```text
/// tokens = F.conv2d(images, weight, bias, stride=p).flatten(2).transpose(1, 2) + positions[:, 1:]
/// tokens = tokens.gather(1, keep.view(B, K, 1).expand(B, K, D))
/// torch.cat([(class_token + positions[:, :1]).expand(B, 1, D), tokens], dim=1)
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
///     class_token: &Tensor::new(&[[[7f32]]], &Device::Cpu)?,
///     positions: &Tensor::new(&[[[10f32], [20.], [30.], [40.]]], &Device::Cpu)?,
/// };
/// let tokens = patch_embed(&images, &embed, Some(&[3, 1]))?;
/// assert_eq!(tokens.flatten_all()?.to_vec1::<f32>()?, [7., 43., 21.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn patch_embed(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> Result<Tensor> {
    let (patches, class_position) = check(images, embed, keep)?;
    routed(images, embed, patches, class_position, keep)
}

/// [`patch_embed`] of arguments that fit.
fn routed(
    images: &Tensor,
    embed: &PatchEmbed,
    patches: Patchify,
    class_position: bool,
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
                class_position,
            };
            apply(op, images, &params)
        }
        Route::InF32 => in_f32(&tensors, |t| {
            let embed = PatchEmbed {
                weight: &t[1],
                class_token: &t[2],
                positions: &t[3],
                bias: t.get(4),
            };
            routed(&t[0], &embed, patches, class_position, keep)
        }),
        Route::Composition => compose(images, embed, patches, class_position, keep),
    }
}

/// The patches, and whether the class token has a position, once everything fits.
fn check(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> OurResult<(Patchify, bool)> {
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
    if embed.class_token.dims() != [1, 1, width] {
        let expected = format!("[1, 1, {width}]");
        return Err(Error::shape("class_token", embed.class_token.dims(), expected));
    }
    let count = patches.count();
    if count > u32::MAX as usize {
        return Err(Error::shape("images", images.dims(), "of less than 2^32 patches"));
    }
    let class_position = embed.positions.dims() == [1, 1 + count, width];
    if !class_position && embed.positions.dims() != [1, count, width] {
        let expected = format!("[1, {count}, {width}] or [1, {}, {width}]", 1 + count);
        return Err(Error::shape("positions", embed.positions.dims(), expected));
    }
    let names = ["weight", "class_token", "positions", "bias"];
    for (name, param) in names.into_iter().zip(embed.params()) {
        check::same_dtype(name, param, "images", images)?;
    }
    if let Some(keep) = keep {
        check_keep(keep, patches.batch(), count)?;
    }
    Ok((patches, class_position))
}

/// [`patch_embed`] of candle's operations.
pub fn composition(images: &Tensor, embed: &PatchEmbed, keep: Option<&[u32]>) -> Result<Tensor> {
    let patches = patchify::check(images, embed.weight.dim(2)?)?;
    let class_position = embed.positions.dim(1)? > patches.count();
    compose(images, embed, patches, class_position, keep)
}

fn compose(
    images: &Tensor,
    embed: &PatchEmbed,
    patches: Patchify,
    class_position: bool,
    keep: Option<&[u32]>,
) -> Result<Tensor> {
    let (batch, count, width) = (patches.batch(), patches.count(), embed.weight.dim(0)?);
    let patches = patchify::routed(images, patches)?;
    let tokens = linear::routed(&patches, &embed.weight.flatten_from(1)?, embed.bias)?;
    let (class_token, positions) = if class_position {
        let of_class = embed.positions.narrow(1, 0, 1)?;
        let of_patches = embed.positions.narrow(1, 1, count)?;
        ((embed.class_token + of_class)?, of_patches)
    } else {
        (embed.class_token.clone(), embed.positions.clone())
    };
    let tokens = tokens.broadcast_add(&positions)?;
    let tokens = match keep {
        Some(keep) => gather(&tokens, [batch, count, width], keep, 0)?,
        None => tokens,
    };
    Tensor::cat(&[&class_token.broadcast_as((batch, 1, width))?, &tokens], 1)
}

/// Where the parameters stand.
const WEIGHT: usize = 0;
const CLASS_TOKEN: usize = 1;
const POSITIONS: usize = 2;
const BIAS: usize = 3;

struct Op {
    patches: Patchify,
    /// D
    width: usize,
    /// The positions of each sample's tokens, but for the class token.
    keep: Vec<u32>,
    class_position: bool,
}

impl Op {
    /// Tokens of a sample, with the class token.
    fn tokens(&self) -> usize {
        1 + self.keep.len() / self.patches.batch()
    }

    /// The position of the token in row `row` of all samples', or none for a class token's.
    fn position(&self, row: usize) -> Option<usize> {
        let tokens = self.tokens();
        let place = (row % tokens).checked_sub(1)?;
        Some(self.keep[row / tokens * (tokens - 1) + place] as usize)
    }

    /// The patches as rows, [B (1 + K), C p p], with zeros in the place of class tokens: so all of them are one matrix.
    fn rows(&self, images: &[f32]) -> Buffer {
        let (tokens, len) = (self.tokens(), self.patches.patch());
        let mut rows = Buffer::new(self.patches.batch() * tokens * len);
        kernel::for_rows(&mut rows, len, |first, rows| {
            for (row, patch) in (first..).zip(rows.chunks_exact_mut(len)) {
                match self.position(row) {
                    Some(position) => self.patches.copy_patch(images, row / tokens, position, patch),
                    None => patch.fill(0.),
                }
            }
        });
        rows
    }

    fn embed(&self, images: &[f32], params: &[&[f32]]) -> Vec<f32> {
        let (weight, class_token, positions) = (params[WEIGHT], params[CLASS_TOKEN], params[POSITIONS]);
        let bias = params.get(BIAS);
        let (d, len) = (self.width, self.patches.patch());
        let rows = self.patches.batch() * self.tokens();
        let offset = usize::from(self.class_position);
        let mut ys = vec![0f32; rows * d];
        // What the product is then added to.
        kernel::for_rows(&mut ys, d, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_exact_mut(d)) {
                match self.position(row) {
                    Some(position) => {
                        y.copy_from_slice(&positions[(offset + position) * d..][..d]);
                        if let Some(bias) = bias {
                            add_rows_to(bias, y);
                        }
                    }
                    None => {
                        y.copy_from_slice(class_token);
                        if self.class_position {
                            add_rows_to(&positions[..d], y);
                        }
                    }
                }
            }
        });
        matrix::matmul(
            &mut MatMut::rows(&mut ys, rows, d, d),
            Write::Add,
            1.,
            Mat::rows(&self.rows(images), rows, len, len),
            Mat::rows(weight, d, len, len).t(),
            Parallelism::Rayon(0),
        );
        ys
    }

    /// The gradients of class token, positions and bias.
    fn gradients_of_sums(&self, grads: &[f32]) -> [Vec<f32>; 3] {
        let (d, tokens) = (self.width, self.tokens());
        let mut class_token = vec![0f32; d];
        for sample in grads.chunks_exact(tokens * d) {
            add_rows_to(&sample[..d], &mut class_token);
        }
        let (count, offset) = (self.patches.count(), usize::from(self.class_position));
        // The rows of each position: those of sample after sample.
        let mut rows_of = vec![Vec::new(); count];
        for row in 0..grads.len() / d {
            if let Some(position) = self.position(row) {
                rows_of[position].push(row);
            }
        }
        let mut positions = vec![0f32; (offset + count) * d];
        let (of_class, of_patches) = positions.split_at_mut(offset * d);
        if self.class_position {
            of_class.copy_from_slice(&class_token);
        }
        kernel::for_rows(of_patches, d, |first, sums| {
            for (rows, sum) in rows_of[first..].iter().zip(sums.chunks_exact_mut(d)) {
                for row in rows {
                    add_rows_to(&grads[row * d..][..d], sum);
                }
            }
        });
        let mut bias = vec![0f32; d];
        add_rows_to(of_patches, &mut bias);
        [class_token, positions, bias]
    }

    fn gradient_of_images(&self, weight: &[f32], grads: &[f32]) -> Vec<f32> {
        let (d, len, tokens) = (self.width, self.patches.patch(), self.tokens());
        let rows = self.patches.batch() * tokens;
        let mut patches = Buffer::new(rows * len);
        matrix::matmul(
            &mut MatMut::rows(&mut patches, rows, len, len),
            Write::Replace,
            1.,
            Mat::rows(grads, rows, d, d),
            Mat::rows(weight, d, len, len),
            Parallelism::Rayon(0),
        );
        let patches: &[f32] = &patches;
        let mut dimages = vec![0f32; self.patches.batch() * self.patches.image()];
        let images = dimages.par_chunks_exact_mut(self.patches.image());
        images.enumerate().for_each(|(sample, image)| {
            for row in sample * tokens..(sample + 1) * tokens {
                if let Some(position) = self.position(row) {
                    self.patches.add_patch(&patches[row * len..][..len], position, image);
                }
            }
        });
        dimages
    }
}

impl Operation for Op {
    const NAME: &'static str = "patch-embed";

    type Kept = ();

    fn result_dims(&self) -> Vec<usize> {
        vec![self.patches.batch(), self.tokens(), self.width]
    }

    fn forward(&self, images: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, ())> {
        Ok((self.embed(images, params), ()))
    }

    fn recompute(&self, _: &[f32], _: &[&[f32]]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, of: Backward, _: (), param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        param_grads.write(WEIGHT, |out, write| {
            let rows = self.rows(of.xs);
            linear::weight_gradient(out, write, of.grads, self.width, &rows, self.patches.patch());
        })?;
        let sums = [CLASS_TOKEN, POSITIONS, BIAS];
        if sums.iter().any(|&index| param_grads.wants(index)) {
            for (index, gradient) in sums.into_iter().zip(self.gradients_of_sums(of.grads)) {
                param_grads.set(index, gradient)?;
            }
        }
        Ok(if of.wants_dxs {
            self.gradient_of_images(of.params[WEIGHT], of.grads)
        } else {
            vec![]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};
    use candle_core::DType;

    fn embed(params: &[Tensor]) -> PatchEmbed<'_> {
        PatchEmbed {
            weight: &params[0],
            class_token: &params[1],
            positions: &params[2],
            bias: params.get(3),
        }
    }

    /// Of images, weight, class token, positions and bias.
    fn shapes(images: [usize; 4], d: usize, p: usize, class_position: bool) -> [Vec<usize>; 5] {
        let count = images[2] / p * (images[3] / p);
        [
            images.to_vec(),
            vec![d, images[1], p, p],
            vec![1, 1, d],
            vec![1, count + usize::from(class_position), d],
            vec![d],
        ]
    }

    fn check_one(images: [usize; 4], d: usize, p: usize, keep: Option<&[u32]>, seed: u64) {
        for class_position in [false, true] {
            let shapes = shapes(images, d, p, class_position);
            let shapes = shapes.each_ref().map(Vec::as_slice);
            let kernel = |args: &[Tensor]| patch_embed(&args[0], &embed(&args[1..]), keep);
            let reference = |args: &[Tensor]| composition(&args[0], &embed(&args[1..]), keep);
            check(&kernel, &reference, &shapes, seed);
            check(&kernel, &reference, &shapes[..4], seed);
        }
    }

    #[test]
    fn equals_its_composition() {
        check_one([2, 3, 8, 12], 5, 4, None, 0);
        check_one([2, 3, 8, 12], 5, 4, Some(&[0, 5, 3, 4, 2, 1]), 1);
        // One sample; one patch, and a rest that is ignored; an index twice; none at all.
        check_one([1, 1, 5, 4], 3, 3, None, 2);
        check_one([2, 2, 4, 4], 7, 2, Some(&[3, 3, 0, 2]), 3);
        check_one([2, 1, 2, 4], 3, 2, Some(&[]), 4);
        // Many pieces of work.
        check_one([5, 3, 64, 48], 33, 8, None, 5);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for (class_position, seed) in [(false, 0), (true, 1)] {
            let shapes = shapes([2, 1, 4, 4], 3, 2, class_position);
            let shapes = shapes.each_ref().map(Vec::as_slice);
            let reference = |args: &[Tensor]| composition(&args[0], &embed(&args[1..]), Some(&[3, 1, 0, 2]));
            check_derivative(&reference, &shapes, seed);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |at: usize, shape: &[usize], keep: Option<&[u32]>| {
            let shapes = shapes([2, 3, 4, 4], 5, 2, true);
            let mut args: Vec<_> = shapes
                .iter()
                .map(|shape| random(shape, 0).to_dtype(DType::F32).unwrap())
                .collect();
            args[at] = random(shape, 0).to_dtype(DType::F32).unwrap();
            patch_embed(&args[0], &embed(&args[1..]), keep).unwrap_err().to_string()
        };
        assert_eq!(
            message(0, &[2, 1, 4, 4], None),
            "images has shape [2, 1, 4, 4], but must be [B, 3, H, W], with at least one image"
        );
        assert_eq!(
            message(0, &[2, 3, 1, 4], None),
            "images has shape [2, 3, 1, 4], but must be [B, C, H, W] with sides of at least one patch, 2 pixels"
        );
        assert_eq!(
            message(1, &[5, 3, 2, 1], None),
            "weight has shape [5, 3, 2, 1], but must be [D, C, p, p]"
        );
        assert_eq!(
            message(1, &[5, 3, 0, 0], None),
            "weight has shape [5, 3, 0, 0], but must be [D, C, p, p], not empty"
        );
        assert_eq!(
            message(2, &[1, 5], None),
            "class_token has shape [1, 5], but must be [1, 1, 5]"
        );
        assert_eq!(
            message(3, &[1, 3, 5], None),
            "positions has shape [1, 3, 5], but must be [1, 4, 5] or [1, 5, 5]"
        );
        assert_eq!(message(4, &[4], None), "bias has shape [4], but must be [5]");
        assert_eq!(
            message(4, &[5], Some(&[0, 1, 2])),
            "keep is 3 indices, but must be as many indices for each of 2 samples"
        );
        assert_eq!(message(4, &[5], Some(&[0, 4])), "keep is 4, but must be below L = 4");
        let wide = random(&[5], 0);
        let args = shapes([2, 3, 4, 4], 5, 2, true).map(|shape| random(&shape, 0).to_dtype(DType::F32).unwrap());
        let with_wide = PatchEmbed {
            bias: Some(&wide),
            ..embed(&args[1..])
        };
        assert_eq!(
            patch_embed(&args[0], &with_wide, None).unwrap_err().to_string(),
            "bias has dtype F64, but must be F32 like images"
        );
    }
}
