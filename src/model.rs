//! Models, by what they offer to a sub-branch.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::ModuleT;

use crate::grid::Grid;
use crate::mask::Mask;
use crate::pass::Pass;

/// A model that is run as a whole: images (or whatever it takes) in, logits out.
///
/// [`Plain`] makes one of any candle module. A model with dropout, drop path or batch norm of its own implements it to
/// take part in them through the [`Pass`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model that a sub-branch can run as a whole",
    label = "does not implement `Forward`",
    note = "for a candle `Module`, `ModuleT` or closure, call `MaskSub::wrap(module, ..)` instead of `MaskSub::new(module, ..)`, \
            or put it into `Plain(module)`"
)]
pub trait Forward {
    /// The logits [B, classes] of `xs` [B, ...].
    ///
    /// # Errors
    /// The model's own.
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor>;
}

/// A model whose token sequence can be cut short: a ViT, anyone's.
///
/// Tokens are P prefix tokens (class, distillation, register), which are never dropped, followed by one token for each
/// of the L positions of the grid.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model whose tokens can be dropped",
    label = "does not implement `TokenModel`",
    note = "`DropToken` needs a transformer that implements `TokenModel` (as `models::vit` does); for a ResNet or any other \
            module take `PatchDrop`, for a Swin `MaskToken`"
)]
pub trait TokenModel {
    /// The positions of `xs` [B, ...].
    ///
    /// # Errors
    /// When `xs` does not fit the model.
    fn grid(&self, xs: &Tensor) -> Result<Grid>;

    /// P, the number of prefix tokens.
    fn num_prefix_tokens(&self) -> usize;

    /// The token sequence [B, P+L, D] with positions added, or [B, P+K, D] with only the positions that `keep` keeps:
    /// usually by [`Mask::gather`].
    ///
    /// # Errors
    /// The model's own.
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor>;

    /// The logits [B, classes] of a token sequence.
    ///
    /// # Errors
    /// The model's own.
    fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor>;
}

/// A model that needs every position (windows, a pyramid), so that hidden ones become a learned token.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no model whose positions can be hidden behind a mask token",
    label = "does not implement `MaskTokenModel`",
    note = "`MaskToken` needs a model that implements `MaskTokenModel` (as `models::swin` does); for any other module take \
            `PatchDrop`, for a ViT `DropToken`"
)]
pub trait MaskTokenModel {
    /// The learned token, D numbers in any shape.
    fn mask_token(&self) -> &Tensor;

    /// The token sequence [B, L, D] and the grid of its positions.
    ///
    /// # Errors
    /// When `xs` does not fit the model, and the model's own.
    fn embed(&self, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Grid)>;

    /// The logits [B, classes] of a token sequence [B, L, D].
    ///
    /// # Errors
    /// The model's own.
    fn classify(&self, tokens: &Tensor, grid: Grid, pass: &mut Pass) -> Result<Tensor>;
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
        pass.scope(|train| self.0.forward_t(xs, train))
    }
}

macro_rules! through_pointers {
    ($($pointer:ty),*) => {$(
        impl<M: Forward + ?Sized> Forward for $pointer {
            fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
                (**self).forward_pass(xs, pass)
            }
        }

        impl<M: TokenModel + ?Sized> TokenModel for $pointer {
            fn grid(&self, xs: &Tensor) -> Result<Grid> {
                (**self).grid(xs)
            }
            fn num_prefix_tokens(&self) -> usize {
                (**self).num_prefix_tokens()
            }
            fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
                (**self).embed(xs, keep, pass)
            }
            fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor> {
                (**self).classify(tokens, pass)
            }
        }

        impl<M: MaskTokenModel + ?Sized> MaskTokenModel for $pointer {
            fn mask_token(&self) -> &Tensor {
                (**self).mask_token()
            }
            fn embed(&self, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Grid)> {
                (**self).embed(xs, pass)
            }
            fn classify(&self, tokens: &Tensor, grid: Grid, pass: &mut Pass) -> Result<Tensor> {
                (**self).classify(tokens, grid, pass)
            }
        }
    )*};
}

through_pointers!(&M, Box<M>, Arc<M>);
