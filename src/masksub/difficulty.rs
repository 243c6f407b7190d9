//! How hard the sub-branch's task is beside the main branch's, as a step shows it.

use candle_core::{Tensor, D};

use crate::error::Result;
use crate::ops::{self, Gradients};
use crate::outputs::Outputs;

/// Difficulty of the sub-branch's task beside the main branch's, in one step: [`MaskSub::with_difficulty`] asks for it.
///
/// Norms and cosine are over all trained variables together. The paper (arXiv 2306.11339) explains by gradients why masks
/// hurt in a main branch and help in a sub-branch: this is what such an analysis is made of.
///
/// ```
/// use candle_core::Tensor;
/// use candle_nn::loss::cross_entropy;
/// use masksub::{MaskSub, Seed, SubBranch};
/// # fn of<M, S: SubBranch<M>>(model: MaskSub<M, S>, images: &Tensor, labels: &Tensor) -> masksub::Result<()> {
/// let model = model.with_difficulty(true);
/// let step = model.backward(images, Seed::new(0).at(0), |logits| cross_entropy(logits, labels))?;
/// if let Some(difficulty) = step.difficulty {
///     println!("|main| {:.2} |sub| {:.2} cosine {:.2}", difficulty.main_norm, difficulty.sub_norm, difficulty.cosine);
/// }
/// # Ok(()) }
/// ```
///
/// [`MaskSub::with_difficulty`]: crate::MaskSub::with_difficulty
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difficulty {
    /// The 2-norm of the main loss's gradient, unweighted as the loss is.
    pub main_norm: f64,
    /// The 2-norm of the sub-branch's loss's gradient, unweighted.
    pub sub_norm: f64,
    /// The cosine between the two gradients, -1 to 1; NaN where one of them is zero or not finite.
    pub cosine: f64,
    /// The share of predictions, 0 to 1, in which both branches' largest logits are of the same class; none where the
    /// branches' logits differ in shape or have no classes to choose from.
    pub agreement: Option<f64>,
}

impl Difficulty {
    /// Adds the gradients of both halves, weighted by 1 - `weight` and `weight`, above 0 and below 1, and compares them.
    pub(super) fn of(
        mut main: Gradients,
        sub: Gradients,
        weight: f64,
        agreement: Option<f64>,
    ) -> Result<(Gradients, Self)> {
        let (main_square, sub_square) = (square(&main)?, square(&sub)?);
        for (id, gradient) in sub {
            ops::add_to(&mut main, id, gradient)?;
        }
        // |a + b|^2 = |a|^2 + |b|^2 + 2 ab, of which the sum is needed anyway.
        let product = (square(&main)? - main_square - sub_square) / 2.0;
        let difficulty = Self {
            main_norm: main_square.sqrt() / (1.0 - weight),
            sub_norm: sub_square.sqrt() / weight,
            cosine: (product / (main_square * sub_square).sqrt()).clamp(-1.0, 1.0),
            agreement,
        };
        Ok((main, difficulty))
    }
}

/// The square of the global norm. The map has no order, so the terms are sorted: the sum is the same in every run.
fn square(gradients: &Gradients) -> Result<f64> {
    let mut squares = ops::sums_of_squares(&gradients.values().collect::<Vec<_>>())?;
    squares.sort_by(f64::total_cmp);
    Ok(squares.iter().sum())
}

/// The share of rows whose largest logit is of the same class in `main` and in `sub`.
pub(super) fn agreement<O: Outputs>(main: &O, sub: &O) -> Result<Option<f64>> {
    let (main, sub) = (main.tensors(), sub.tensors());
    let comparable = |(main, sub): (&&Tensor, &&Tensor)| main.dims() == sub.dims() && main.rank() > 1;
    if main.len() != sub.len() || !main.iter().zip(&sub).all(comparable) {
        return Ok(None);
    }
    let (mut same, mut rows) = (0.0, 0);
    for (main, sub) in main.iter().zip(&sub) {
        if main.dim(D::Minus1)? < 2 {
            return Ok(None);
        }
        let equal = main.argmax(D::Minus1)?.eq(&sub.detach().argmax(D::Minus1)?)?;
        rows += equal.elem_count();
        same += ops::on_host(&equal)?.iter().sum::<f64>();
    }
    Ok((rows > 0).then(|| same / rows as f64))
}
