//! One forward pass: its mode, its random draws, and the statistics it leaves behind.

mod scope;

use candle_core::{Tensor, Var};
use rand::{Rng, RngCore};
use rayon::prelude::*;

use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::{Purpose, StepKey};

pub(crate) use scope::with_current;

/// The state of one forward pass, which a model is handed beside its input: training or evaluation, the key of its random
/// draws, the dropout and drop-path rates that a sub-branch imposes, and the updates of running statistics that wait until
/// the step is accepted.
///
/// A model that takes part calls [`dropout`](Self::dropout) and [`drop_path`](Self::drop_path) with the rates of its
/// recipe wherever they belong, and hands the running averages of its batch norms to
/// [`update_running`](Self::update_running). It calls them in the same order in every pass. A model that has none of these
/// ignores its pass ([`Forward`](crate::Forward) shows one that does not).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::{Pass, Seed};
/// let xs = Tensor::ones((4, 8), candle_core::DType::F32, &Device::Cpu)?;
/// let mut pass = Pass::train(Seed::new(0).at(0));
/// let dropped = pass.dropout(&xs, 0.5)?;
/// let same = Pass::eval().dropout(&xs, 0.5)?;
/// assert_eq!(same.sum_all()?.to_scalar::<f32>()?, 32.);
/// assert_ne!(dropped.sum_all()?.to_scalar::<f32>()?, 32.);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Pass {
    train: bool,
    key: Option<StepKey>,
    /// Keeps the draws of a sub pass apart from those of the main pass.
    stream: u32,
    dropout: Imposed,
    drop_path: Imposed,
    running: Vec<RunningUpdate>,
    /// Positions of the images that a model has made tokens of.
    grid: Option<Grid>,
}

/// A rate that a sub-branch sets in the place of the model's own, and how often the model asked for one.
#[derive(Debug, Default)]
struct Imposed {
    rate: Option<f64>,
    sites: u32,
}

impl Imposed {
    /// The imposed rate, which was checked when it was, or the recipe's.
    fn or(&self, recipe: f64, argument: &'static str) -> Result<f64> {
        self.rate.map_or_else(|| check::rate(argument, recipe), Ok)
    }

    fn next(&mut self, recipe: f64, argument: &'static str) -> Result<(f64, u32)> {
        let site = self.sites;
        self.sites += 1;
        Ok((self.or(recipe, argument)?, site))
    }
}

/// `running = (1 - momentum) * running + momentum * batch`, not done yet.
#[derive(Debug)]
struct RunningUpdate {
    running: Var,
    batch: Tensor,
    momentum: f64,
}

impl Pass {
    /// A pass in evaluation mode: nothing is dropped, no statistics change.
    pub fn eval() -> Self {
        Self::new(false, None)
    }

    /// A pass in training mode that draws from `key`.
    pub fn train(key: StepKey) -> Self {
        Self::new(true, Some(key))
    }

    /// A pass for [`candle_nn::ModuleT::forward_t`], which has a flag but no key: in training mode, everything that
    /// needs a draw is an [`Error::DrawsWithoutKey`].
    pub fn without_key(train: bool) -> Self {
        Self::new(train, None)
    }

    // Not inlined, or rustc up to 1.96 takes two equal passes in one function for one value, and hands the second out as
    // the first has left it (https://github.com/rust-lang/rust/issues/155241: GVN and arguments that were moved).
    #[inline(never)]
    fn new(train: bool, key: Option<StepKey>) -> Self {
        Self {
            train,
            key,
            stream: 0,
            dropout: Imposed::default(),
            drop_path: Imposed::default(),
            running: Vec::new(),
            grid: None,
        }
    }

    /// Keeps the positions of images for the blocks, which see their tokens alone.
    pub(crate) fn set_grid(&mut self, grid: Grid) {
        self.grid = Some(grid);
    }

    /// Positions of the images that went through this pass last, where their model has told.
    pub(crate) fn grid(&self) -> Option<Grid> {
        self.grid
    }

    /// The pass of a sub-branch in training mode: from the same key as the main pass it draws dropout and drop path of
    /// its own.
    pub fn train_sub(key: StepKey) -> Self {
        Self {
            stream: 1,
            ..Self::train(key)
        }
    }

    /// Imposes a dropout rate at every place where the model calls [`dropout`](Self::dropout), also where its recipe
    /// has 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1).
    pub fn impose_dropout(&mut self, rate: f64) -> Result<()> {
        self.dropout.rate = Some(check::rate("rate", rate)?);
        Ok(())
    }

    /// Imposes a drop-path rate on every residual branch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1).
    pub fn impose_drop_path(&mut self, rate: f64) -> Result<()> {
        self.drop_path.rate = Some(check::rate("rate", rate)?);
        Ok(())
    }

    /// Tells whether this is a training pass.
    pub fn is_train(&self) -> bool {
        self.train
    }

    /// The key that the pass draws from.
    pub fn key(&self) -> Option<StepKey> {
        self.key
    }

    /// Number of times that the model has asked for dropout.
    pub fn dropout_sites(&self) -> usize {
        self.dropout.sites as usize
    }

    /// Number of times that the model has asked for drop path.
    pub fn drop_path_sites(&self) -> usize {
        self.drop_path.sites as usize
    }

    /// The key, for a draw of `what`.
    ///
    /// # Errors
    /// [`Error::DrawsWithoutKey`] when the pass has none.
    pub fn require_key(&self, what: &'static str) -> Result<StepKey> {
        self.key.ok_or(Error::DrawsWithoutKey { what })
    }

    /// Sets each element of `xs` `[B, ...]` to 0 with probability `rate` and scales the others by 1 / (1 - rate), as
    /// `torch.nn.Dropout` does; in evaluation mode `xs` as it is.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1); [`Error::DrawsWithoutKey`] when it is above 0
    /// in training mode and the pass has no key.
    pub fn dropout(&mut self, xs: &Tensor, rate: f64) -> candle_core::Result<Tensor> {
        let (rate, site) = self.dropout.next(rate, "dropout")?;
        if !self.train || rate == 0.0 {
            return Ok(xs.clone());
        }
        let key = self.require_key("dropout")?;
        let batch = xs.dim(0)?;
        if xs.elem_count() == 0 {
            return Ok(xs.clone());
        }
        let purpose = Purpose::dropout(self.stream, site);
        let (scale, threshold) = (1.0 / (1.0 - rate), threshold(rate));
        let mut factors = vec![0f32; xs.elem_count()];
        factors
            .par_chunks_mut(xs.elem_count() / batch)
            .enumerate()
            .for_each(|(sample, factors)| {
                let mut rng = key.rng(sample, purpose);
                factors.fill_with(|| if rng.next_u32() < threshold { 0.0 } else { scale as f32 });
            });
        xs * Tensor::from_vec(factors, xs.shape(), xs.device())?.to_dtype(xs.dtype())?
    }

    /// Passes the next `sites` places where a model would call [`dropout`](Self::dropout) with `rate`, if nothing is
    /// dropped there; returns whether it has.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1).
    pub(crate) fn skip_dropout(&mut self, rate: f64, sites: u32) -> candle_core::Result<bool> {
        let off = !self.train || self.dropout.or(rate, "dropout")? == 0.0;
        if off {
            self.dropout.sites += sites;
        }
        Ok(off)
    }

    /// Stochastic depth (arXiv 1603.09382): sets the whole residual branch `xs` `[B, ...]` of a sample to 0 with
    /// probability `rate` and scales it by 1 / (1 - rate) otherwise, as timm's `DropPath` does; in evaluation mode `xs`
    /// as it is.
    ///
    /// # Errors
    /// As [`dropout`](Self::dropout).
    pub fn drop_path(&mut self, xs: &Tensor, rate: f64) -> candle_core::Result<Tensor> {
        let batch = xs.dims().first().copied().unwrap_or(1);
        let Some(factors) = self.drop_path_factors(batch, rate)? else {
            return Ok(xs.clone());
        };
        let mut shape = vec![1; xs.rank()];
        if let Some(first) = shape.first_mut() {
            *first = batch;
        }
        let factors = Tensor::from_vec(factors, shape, xs.device())?.to_dtype(xs.dtype())?;
        xs.broadcast_mul(&factors)
    }

    /// Factors that [`drop_path`](Self::drop_path) would multiply `batch` samples by, each 0 or 1 / (1 - rate), for
    /// operations that do it themselves ([`ops::mlp_branch`](crate::ops::mlp_branch())); none where nothing is dropped.
    ///
    /// # Errors
    /// As [`dropout`](Self::dropout).
    pub fn drop_path_factors(&mut self, batch: usize, rate: f64) -> candle_core::Result<Option<Vec<f32>>> {
        let (rate, site) = self.drop_path.next(rate, "drop_path")?;
        if !self.train || rate == 0.0 {
            return Ok(None);
        }
        let key = self.require_key("drop path")?;
        let purpose = Purpose::drop_path(self.stream, site);
        let scale = 1.0 / (1.0 - rate) as f32;
        let factor = |draw: u32| if draw < threshold(rate) { 0.0 } else { scale };
        let draws = (0..batch).map(|sample| key.rng(sample, purpose).random::<u32>());
        Ok(Some(draws.map(factor).collect()))
    }

    /// Notes that a running average is to become `(1 - momentum) * running + momentum * batch`. It stays as it is until
    /// the pass is [committed](Self::commit): a step that is rejected leaves no trace. Without effect in evaluation.
    pub fn update_running(&mut self, running: &Var, batch: &Tensor, momentum: f64) {
        if self.train {
            self.running.push(RunningUpdate {
                running: running.clone(),
                batch: batch.detach(),
                momentum,
            });
        }
    }

    /// Forgets the running averages noted so far, for a sub pass that is to leave batch statistics alone.
    pub fn forget_running(&mut self) {
        self.running.clear();
    }

    /// Accepts the pass: its updates of running averages are carried out, in the order in which they were noted.
    ///
    /// # Errors
    /// When an average and its update differ in shape, dtype or device; no average has changed then.
    pub fn commit(self) -> Result<()> {
        Self::commit_all([self])
    }

    /// [`commit`](Self::commit) of several passes in their order, all or none.
    pub(crate) fn commit_all(passes: impl IntoIterator<Item = Self>) -> Result<()> {
        let mut averages: Vec<(Var, Tensor)> = Vec::new();
        for update in passes.into_iter().flat_map(|pass| pass.running) {
            let earlier = averages.iter().position(|(var, _)| var.id() == update.running.id());
            let running = match earlier {
                Some(i) => averages[i].1.clone(),
                None => update.running.as_detached_tensor(),
            };
            let updated = ((running * (1.0 - update.momentum))? + (update.batch * update.momentum)?)?;
            match earlier {
                Some(i) => averages[i].1 = updated,
                None => averages.push((update.running, updated)),
            }
        }
        averages.iter().try_for_each(|(var, updated)| Ok(var.set(updated)?))
    }
}

/// Of 2^32 equally likely draws, how many drop.
fn threshold(rate: f64) -> u32 {
    (rate * 4_294_967_296.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Seed;
    use candle_core::{DType, Device};

    fn ones(batch: usize, width: usize) -> Tensor {
        Tensor::ones((batch, width), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn dropout_keeps_the_mean_and_the_rate() {
        let mut pass = Pass::train(Seed::new(1).at(0));
        let ys = pass.dropout(&ones(64, 1000), 0.3).unwrap().to_vec2::<f32>().unwrap();
        let dropped = ys.iter().flatten().filter(|&&y| y == 0.0).count() as f64 / 64_000.0;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!(ys.iter().flatten().all(|&y| y == 0.0 || (y - 1.0 / 0.7).abs() < 1e-6));
    }

    #[test]
    fn drop_path_drops_whole_samples() {
        let mut pass = Pass::train(Seed::new(1).at(0));
        let ys = pass.drop_path(&ones(4000, 3), 0.25).unwrap().to_vec2::<f32>().unwrap();
        assert!(ys.iter().all(|row| row.iter().all(|y| y == &row[0])));
        let dropped = ys.iter().filter(|row| row[0] == 0.0).count() as f64 / 4000.0;
        assert!((dropped - 0.25).abs() < 0.03, "{dropped}");
    }

    #[test]
    fn sites_and_branches_draw_apart_and_repeat() {
        let key = Seed::new(3).at(1);
        let draw = |pass: &mut Pass| {
            let first = pass.dropout(&ones(2, 64), 0.5).unwrap().to_vec2::<f32>().unwrap();
            let second = pass.dropout(&ones(2, 64), 0.5).unwrap().to_vec2::<f32>().unwrap();
            (first, second)
        };
        let main = draw(&mut Pass::train(key));
        let sub = draw(&mut Pass::train_sub(key));
        assert_ne!(main.0, main.1);
        assert_ne!(main.0[0], main.0[1]);
        assert_ne!(main.0, sub.0);
        assert_eq!(main, draw(&mut Pass::train(key)));
        let second_half = draw(&mut Pass::train(key.with_first_sample(1)));
        assert_eq!(second_half.0[0], main.0[1]);
    }

    #[test]
    fn sites_count_and_draw_the_same_by_either_way() {
        let key = Seed::new(3).at(1);
        let (mut called, mut skipped) = (Pass::train(key), Pass::train(key));
        for _ in 0..2 {
            called.dropout(&ones(2, 64), 0.0).unwrap();
        }
        assert!(skipped.skip_dropout(0.0, 2).unwrap());
        assert!(!skipped.skip_dropout(0.5, 2).unwrap());
        let draw = |pass: &mut Pass| pass.dropout(&ones(2, 64), 0.5).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(draw(&mut called), draw(&mut skipped));
        assert_eq!((called.dropout_sites(), skipped.dropout_sites()), (3, 3));
        assert!(Pass::eval().skip_dropout(0.5, 1).unwrap());

        let factors = Pass::train(key).drop_path_factors(50, 0.5).unwrap().unwrap();
        let dropped = Pass::train(key).drop_path(&ones(50, 1), 0.5).unwrap();
        assert_eq!(dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap(), factors);
        assert_eq!(Pass::eval().drop_path_factors(50, 0.5).unwrap(), None);
    }

    #[test]
    fn without_a_key_draws_are_refused_by_type() {
        let mut pass = Pass::without_key(true);
        assert!(pass.dropout(&ones(2, 2), 0.0).is_ok());
        let error = pass.drop_path(&ones(2, 2), 0.1).unwrap_err();
        assert!(matches!(
            Error::from(error),
            Error::DrawsWithoutKey { what: "drop path" }
        ));
        let error = pass.dropout(&ones(2, 2), 1.0).unwrap_err();
        assert!(matches!(
            Error::from(error),
            Error::InvalidArgument {
                argument: "dropout",
                ..
            }
        ));
    }

    #[test]
    fn running_averages_move_on_commit_only() {
        let running = Var::from_tensor(&ones(1, 2)).unwrap();
        let batch = (ones(1, 2) * 3.0).unwrap();
        let key = Seed::new(0).at(0);
        let value = || running.to_vec2::<f32>().unwrap()[0][0];

        let mut rejected = Pass::train(key);
        rejected.update_running(&running, &batch, 0.5);
        drop(rejected);
        assert_eq!(value(), 1.0);

        let mut accepted = Pass::train(key);
        accepted.update_running(&running, &batch, 0.5);
        accepted.update_running(&running, &batch, 0.5);
        assert_eq!(value(), 1.0);
        accepted.commit().unwrap();
        assert_eq!(value(), 2.5);
    }
}
