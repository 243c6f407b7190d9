//! Models, by what they offer to a sub-branch.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use candle_nn::ModuleT;

use crate::error::{unsupported_bf16, Error};
use crate::grid::Grid;
use crate::mask::{Mask, Sequences};
use crate::pass::Pass;

/// A model that is run as a whole: images (or whatever it takes) in, logits out. Several heads are
/// [`Outputs`](crate::Outputs), which the trait then names.
///
/// [`Plain`] makes one of any candle module. A model with dropout, drop path or batch norm of its own implements it to
/// take part in them through the [`Pass`]:
///
/// ```
/// use candle_core::{Result, Tensor};
/// use candle_nn::{Linear, Module};
/// use masksub::{Forward, Pass};
///
/// struct Mlp {
///     fc1: Linear,
///     fc2: Linear,
/// }
///
/// impl Forward for Mlp {
///     // `xs` [B, D]
///     fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
///         let hidden = pass.dropout(&self.fc1.forward(xs)?.relu()?, 0.1)?; // as it is, where the pass does not train
///         let branch = pass.drop_path(&self.fc2.forward(&hidden)?, 0.2)?;
///         xs + branch
///     }
/// }
/// ```
///
/// A candle module in [`Plain`] is one:
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{nn::Linear, DropSub, MaskSub, Plain};
/// # let net = Linear::new(Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?, None);
/// let model = MaskSub::unchecked(Plain(net), DropSub::new(0.1)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// and by itself is none:
///
/// ```compile_fail,E0277
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{nn::Linear, DropSub, MaskSub};
/// # let net = Linear::new(Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?, None);
/// let model = MaskSub::unchecked(net, DropSub::new(0.1)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model that a sub-branch can run as a whole",
    label = "does not implement `Forward`",
    note = "for a candle `Module`, `ModuleT` or closure, call `MaskSub::wrap(module, ..)` instead of `MaskSub::new(module, ..)`, \
            or put it into `Plain(module)`"
)]
pub trait Forward<O = Tensor> {
    /// The logits of `xs` `[B, ...]`: `[B, classes]`, or whatever the model has.
    ///
    /// # Errors
    /// The model's own.
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<O>;
}

/// A model whose token sequence can be cut short: a ViT, anyone's.
///
/// Tokens are P prefix tokens (class, distillation, register), which are never dropped, followed by one token for each
/// of the L positions of the grid. All that a ViT needs, less its blocks:
///
/// ```
/// use candle_core::{Result, Tensor};
/// use candle_nn::{Linear, Module};
/// use masksub::{ops, Grid, Mask, Pass, TokenModel};
///
/// struct BagOfPatches {
///     patch_embed: Linear,
///     pos_embed: Tensor, // [1, L, D]
///     head: Linear,
/// }
///
/// impl TokenModel for BagOfPatches {
///     fn grid(&self, images: &Tensor) -> Result<Grid> {
///         let (_, _, height, width) = images.dims4()?;
///         Ok(Grid::new(height / 4, width / 4))
///     }
///
///     fn num_prefix_tokens(&self) -> usize {
///         0
///     }
///
///     fn embed(&self, images: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
///         let tokens = self.patch_embed.forward(&ops::patchify(images, 4)?)?;
///         let tokens = tokens.broadcast_add(&self.pos_embed)?; // before any is dropped: each has its own position
///         match keep {
///             Some(mask) => Ok(mask.gather(&tokens, 0)?),
///             None => Ok(tokens),
///         }
///     }
///
///     fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
///         self.head.forward(&tokens.mean(1)?)
///     }
/// }
/// ```
///
/// A module that is run as a whole has blocks of its images to hide:
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{nn::Linear, MaskSub, PatchDrop, Plain, RandomMasking};
/// # let net = Linear::new(Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?, None);
/// let model = MaskSub::unchecked(Plain(net), PatchDrop::new(RandomMasking::new(0.5)?, 16)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// and no tokens to drop:
///
/// ```compile_fail,E0277
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{nn::Linear, DropToken, MaskSub, Plain, RandomMasking};
/// # let net = Linear::new(Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?, None);
/// let model = MaskSub::unchecked(Plain(net), DropToken::new(RandomMasking::new(0.5)?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model whose tokens can be dropped",
    label = "does not implement `TokenModel`",
    note = "`DropToken` needs a transformer that implements `TokenModel` (as `models::vit` does); for a ResNet or any other \
            module take `PatchDrop`, for a Swin `MaskToken`",
    note = "a model that implements it goes to `MaskSub::new` as it is, not through `MaskSub::wrap` or `Plain`"
)]
pub trait TokenModel<O = Tensor> {
    /// The positions of `xs` `[B, ...]`.
    ///
    /// # Errors
    /// When `xs` does not fit the model.
    fn grid(&self, xs: &Tensor) -> Result<Grid>;

    /// P, the number of prefix tokens.
    fn num_prefix_tokens(&self) -> usize;

    /// The token sequence `[B, P+L, D]` with positions added, or `[B, P+K, D]` with only the positions that `keep` keeps:
    /// usually by [`Mask::gather`].
    ///
    /// # Errors
    /// The model's own.
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor>;

    /// The logits of a token sequence, as [`embed`](Self::embed) returned it under the same `keep`: `[B, classes]`, or
    /// whatever the model has; `[B, K, classes]` where each token has its own. `keep` is for models whose blocks take
    /// positions, too: rotary ones, or relative biases, must be those of the tokens that are kept. `pass` is the one that
    /// `embed` got.
    ///
    /// # Errors
    /// The model's own.
    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<O>;
}

/// A model of sequences in one dimension, whose samples may differ in length: text, audio, series.
///
/// Both branches run the same function, on all tokens and on those that are kept. A model of words:
///
/// ```
/// use candle_core::{DType, Result, Tensor};
/// use candle_nn::{Embedding, Linear, Module};
/// use masksub::{Mask, Pass, SequenceModel, Sequences};
///
/// struct BagOfWords {
///     words: Embedding,
///     head: Linear,
/// }
///
/// impl SequenceModel for BagOfWords {
///     // `ids` [B, L], in which 0 is padding.
///     fn sequences(&self, ids: &Tensor) -> Result<Sequences> {
///         Ok(Sequences::new(&ids.ne(0u32)?)?)
///     }
///
///     fn forward_kept(&self, ids: &Tensor, keep: &Mask, _: &mut Pass) -> Result<Tensor> {
///         // Positions would be added before tokens are dropped.
///         let tokens = keep.gather(&self.words.forward(ids)?, 0)?;
///         // What fills shorter samples up counts for nothing: here in a mean, elsewhere by `Mask::attention_bias`.
///         let is_token = keep.attention_mask(DType::F32, ids.device())?.unsqueeze(2)?;
///         let sum = tokens.broadcast_mul(&is_token)?.sum(1)?;
///         self.head.forward(&sum.broadcast_div(&is_token.sum(1)?)?)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model of sequences",
    label = "does not implement `SequenceModel`",
    note = "`SequenceDrop` needs an encoder that implements `SequenceModel`; for a ViT take `DropToken`, for any other module \
            `PatchDrop`"
)]
pub trait SequenceModel<O = Tensor> {
    /// The L positions of `xs` `[B, L, ..]`: tokens, those that must stay, padding.
    ///
    /// # Errors
    /// When `xs` does not fit the model.
    fn sequences(&self, xs: &Tensor) -> Result<Sequences>;

    /// The logits of the tokens of `xs` `[B, L, ..]` that `keep` keeps: `[B, classes]`, or whatever the model has;
    /// `[B, K, classes]` where each token has its own. Tokens have the positions they have in `xs`; where samples keep fewer
    /// than K, nothing may be read of what fills them up ([`Mask::attention_mask`]).
    ///
    /// # Errors
    /// The model's own.
    fn forward_kept(&self, xs: &Tensor, keep: &Mask, pass: &mut Pass) -> Result<O>;
}

/// A model that needs every position (windows, a pyramid), so that hidden ones become a learned token.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use candle_nn::{Linear, Module};
/// use masksub::{ops, Grid, MaskTokenModel, Pass};
///
/// /// Merges patches of 4 x 4 pixels two by two, as a pyramid does.
/// struct Merged {
///     patch_embed: Linear,
///     mask_token: Tensor, // [D], a variable
///     merge: Linear,      // from 4 D
///     head: Linear,
/// }
///
/// impl MaskTokenModel for Merged {
///     fn mask_token(&self) -> &Tensor {
///         &self.mask_token
///     }
///
///     fn embed(&self, images: &Tensor, _: &mut Pass) -> Result<(Tensor, Grid)> {
///         let (_, _, height, width) = images.dims4()?;
///         let tokens = self.patch_embed.forward(&ops::patchify(images, 4)?)?;
///         Ok((tokens, Grid::new(height / 4, width / 4)))
///     }
///
///     fn classify(&self, tokens: &Tensor, grid: Grid, _: &mut Pass) -> Result<Tensor> {
///         let merged = self.merge.forward(&ops::merge_neighbours(tokens, grid)?)?.relu()?;
///         self.head.forward(&merged.mean(1)?)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model whose positions can be hidden behind a mask token",
    label = "does not implement `MaskTokenModel`",
    note = "`MaskToken` needs a model that implements `MaskTokenModel` (as `models::swin` does); for any other module take \
            `PatchDrop`, for a ViT `DropToken`"
)]
pub trait MaskTokenModel<O = Tensor> {
    /// The learned token, D numbers in any shape.
    fn mask_token(&self) -> &Tensor;

    /// The token sequence `[B, L, D]` and the grid of its positions.
    ///
    /// # Errors
    /// When `xs` does not fit the model, and the model's own.
    fn embed(&self, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Grid)>;

    /// The logits of a token sequence `[B, L, D]`: `[B, classes]`, or whatever the model has.
    ///
    /// # Errors
    /// The model's own.
    fn classify(&self, tokens: &Tensor, grid: Grid, pass: &mut Pass) -> Result<O>;
}

/// Any candle module as a [`Forward`] model: a `Module`, a `ModuleT`, a closure `|xs: &Tensor| ...` (or one in
/// `candle_nn::func_t`, where it needs to know whether it trains).
///
/// Its [`nn::Dropout`](crate::nn::Dropout) and [`nn::BatchNorm`](crate::nn::BatchNorm) take part in the [`Pass`]. Of
/// candle-nn's own, dropout draws from a generator that cannot be seeded on the CPU, and batch norm writes its running
/// statistics in every forward pass of training.
#[derive(Clone, Debug)]
pub struct Plain<M>(pub M);

impl<M: ModuleT> Forward for Plain<M> {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let logits = pass.scope(|train| self.0.forward_t(xs, train));
        logits.map_err(|error| match unsupported_bf16(&error) {
            Some(op) if xs.dtype() == DType::BF16 && xs.device().is_cpu() => {
                let expected = format!(
                    "f32 on the CPU, where candle has no {op} of bf16, on which its convolutions and linear layers run \
                     (masksub::ops and masksub::models compute bf16 there)"
                );
                let (argument, got) = ("xs", xs.dtype());
                Error::DType {
                    argument,
                    got,
                    expected,
                }
                .into()
            }
            _ => error,
        })
    }
}

macro_rules! through_pointers {
    ($($pointer:ty),*) => {$(
        impl<O, M: Forward<O> + ?Sized> Forward<O> for $pointer {
            fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<O> {
                (**self).forward_pass(xs, pass)
            }
        }

        impl<O, M: TokenModel<O> + ?Sized> TokenModel<O> for $pointer {
            fn grid(&self, xs: &Tensor) -> Result<Grid> {
                (**self).grid(xs)
            }
            fn num_prefix_tokens(&self) -> usize {
                (**self).num_prefix_tokens()
            }
            fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
                (**self).embed(xs, keep, pass)
            }
            fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<O> {
                (**self).classify(tokens, keep, pass)
            }
        }

        impl<O, M: SequenceModel<O> + ?Sized> SequenceModel<O> for $pointer {
            fn sequences(&self, xs: &Tensor) -> Result<Sequences> {
                (**self).sequences(xs)
            }
            fn forward_kept(&self, xs: &Tensor, keep: &Mask, pass: &mut Pass) -> Result<O> {
                (**self).forward_kept(xs, keep, pass)
            }
        }

        impl<O, M: MaskTokenModel<O> + ?Sized> MaskTokenModel<O> for $pointer {
            fn mask_token(&self) -> &Tensor {
                (**self).mask_token()
            }
            fn embed(&self, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Grid)> {
                (**self).embed(xs, pass)
            }
            fn classify(&self, tokens: &Tensor, grid: Grid, pass: &mut Pass) -> Result<O> {
                (**self).classify(tokens, grid, pass)
            }
        }
    )*};
}

through_pointers!(&M, Box<M>, Arc<M>);
