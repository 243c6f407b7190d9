//! Updates that rounding swallows.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::optimizer::GroupOptimizer;
use super::rule::Rule;
use crate::check;
use crate::error::Result;
use crate::ops;
use crate::params::Params;

/// What a step has left of parameters as it was although it had a gradient, by name: the share of such elements among
/// those whose gradient is not 0, within [0, 1]. It prints as a report, the largest shares first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LostUpdates {
    shares: BTreeMap<String, f64>,
}

impl LostUpdates {
    /// Names and shares, sorted by name, of all parameters with a gradient that is not 0 throughout.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.shares.iter().map(|(name, &share)| (name.as_str(), share))
    }

    /// The share of one parameter.
    pub fn share(&self, name: &str) -> Option<f64> {
        self.shares.get(name).copied()
    }

    /// Whether each element moved.
    pub fn is_empty(&self) -> bool {
        self.shares.values().all(|&share| share == 0.0)
    }

    fn of<'a>(values: impl IntoIterator<Item = (&'a str, [Tensor; 3])>) -> Result<Self> {
        let mut shares = BTreeMap::new();
        for (name, [before, after, grad]) in values {
            if let Some(share) = share_of(&after.eq(&before)?, &grad)? {
                shares.insert(name.to_string(), share);
            }
        }
        Ok(Self { shares })
    }
}

impl fmt::Display for LostUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lost: Vec<_> = self.iter().filter(|&(_, share)| share > 0.0).collect();
        lost.sort_by(|a, b| b.1.total_cmp(&a.1));
        write!(
            f,
            "{} of {} parameters lost updates to rounding",
            lost.len(),
            self.shares.len()
        )?;
        for (i, (name, share)) in lost.into_iter().enumerate() {
            let separator = if i == 0 { ": " } else { ", " };
            write!(f, "{separator}{name} {:.1} %", 100.0 * share)?;
        }
        Ok(())
    }
}

/// Makes `step`, of any optimizer by `grads`, and tells which updates of `params` rounding has swallowed: in bf16 a weight
/// of 1 does not move by 0.001, however often. It copies all weights, so it is for a look now and then, at a learning rate
/// above 0.
///
/// A weight in half precision with a master copy seems to stay where the copy moves on: of these
/// [`GroupOptimizer::audit_step`] tells.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) when a gradient's shape is not its parameter's; those of `step`.
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use candle_nn::Optimizer;
/// use masksub::{train::optim::audit_step, Params};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let var = Var::ones(8, DType::BF16, &Device::Cpu)?;
/// let params = Params::new([("norm.weight".to_string(), var.clone())]);
/// let grads = var.sum_all()?.backward()?;
/// let mut sgd = candle_nn::SGD::new(params.vars(), 1e-3)?;
/// let lost = audit_step(&params, &grads, || Ok(sgd.step(&grads)?))?;
/// assert_eq!(
///     lost.to_string(),
///     "1 of 1 parameters lost updates to rounding: norm.weight 100.0 %"
/// );
/// # Ok(()) }
/// ```
pub fn audit_step(params: &Params, grads: &GradStore, step: impl FnOnce() -> Result<()>) -> Result<LostUpdates> {
    let mut due = vec![];
    for (name, var) in params.iter() {
        if let Some(grad) = super::groups::gradient(grads, name, var)? {
            // Copies: the step may write to the memory of the weights, and a gradient may share it.
            due.push((name, var, ops::fresh(var)?, ops::fresh(&grad)?));
        }
    }
    step()?;
    LostUpdates::of(
        due.into_iter()
            .map(|(name, var, before, grad)| (name, [before, var.as_detached_tensor(), grad])),
    )
}

/// The share of the numbers in `update`, of those that are not 0, that `xs` + `update` in the dtype of `xs` does not show:
/// how much of a residual branch its stream loses. 0 where all are 0.
///
/// # Errors
/// [`Error::DType`](crate::Error::DType) when one is no floating-point tensor; when shapes differ.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::train::optim::lost_in_sum;
/// let (tokens, branch) = (Tensor::new(&[1f32, 1., 1., 1.], &Device::Cpu)?, Tensor::new(&[1e-3f32, 0., 0.1, -1e-3], &Device::Cpu)?);
/// assert_eq!(lost_in_sum(&tokens, &branch)?, 0.0);
/// assert_eq!(lost_in_sum(&tokens.to_dtype(DType::BF16)?, &branch)?, 2.0 / 3.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lost_in_sum(xs: &Tensor, update: &Tensor) -> Result<f64> {
    check::float("xs", xs)?;
    check::float("update", update)?;
    let (xs, update) = (xs.detach(), update.detach());
    let wide = if update.dtype() == DType::F64 || xs.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let sum = (xs.to_dtype(wide)? + update.to_dtype(wide)?)?.to_dtype(xs.dtype())?;
    Ok(share_of(&sum.eq(&xs)?, &update)?.unwrap_or_default())
}

/// How many of the elements whose `update` is not 0 have `unmoved`; `None` where there is none.
fn share_of(unmoved: &Tensor, update: &Tensor) -> Result<Option<f64>> {
    let count = |flags: Tensor| -> Result<usize> {
        let flags: Vec<u8> = flags.flatten_all()?.to_vec1()?;
        Ok(flags.into_iter().filter(|&flag| flag != 0).count())
    };
    let due = update.ne(0.0)?;
    let lost = count((unmoved * &due)?)?;
    Ok(match count(due)? {
        0 => None,
        due => Some(lost as f64 / due as f64),
    })
}

impl<R: Rule> GroupOptimizer<R> {
    /// A [`step`](Self::step), and which updates rounding has swallowed in it: as [`audit_step`](audit_step()) tells it, but
    /// of the master copies where there are such.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    ///
    /// ```
    /// use candle_core::{DType, Device, Var};
    /// use masksub::train::optim::{ParamGroups, Sgd, SgdConfig};
    /// use masksub::Params;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let var = Var::ones(8, DType::BF16, &Device::Cpu)?;
    /// let params = Params::new([("norm.weight".to_string(), var.clone())]);
    /// let mut sgd = Sgd::new(&params, SgdConfig { lr: 1e-3, ..Default::default() })?;
    /// let lost = sgd.audit_step(&var.sum_all()?.backward()?)?;
    /// assert!(lost.is_empty()); // the copy in f32 has it
    /// # Ok(()) }
    /// ```
    pub fn audit_step(&mut self, grads: &GradStore) -> Result<LostUpdates> {
        let mut before = vec![];
        for slot in self.slots().iter().filter(|slot| slot.lr_scale > 0.0) {
            if let Some(grad) = super::groups::gradient(grads, &slot.name, &slot.var)? {
                before.push((ops::fresh(slot.weights())?, ops::fresh(&grad)?));
            }
        }
        self.step(grads)?;
        let due = self.slots().iter().filter(|slot| slot.lr_scale > 0.0);
        let due = due.filter(|slot| grads.get_id(slot.var.id()).is_some()).zip(before);
        LostUpdates::of(due.map(|(slot, (before, grad))| (slot.name.as_str(), [before, slot.weights().detach(), grad])))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AdamW, AdamWConfig, Sgd, SgdConfig};
    use super::*;
    use candle_core::{Device, Var};
    use candle_nn::Optimizer as _;

    /// Ones, of which the last quarter has no gradient, and their gradients: ones.
    fn ones(dtype: DType) -> (Params, GradStore) {
        let var = Var::ones(16, dtype, &Device::Cpu).unwrap();
        let params = Params::new([("w".to_string(), var.clone())]);
        let loss = var.narrow(0, 0, 12).unwrap().sum_all().unwrap();
        (params, loss.backward().unwrap())
    }

    #[test]
    fn bf16_loses_a_thousandth_of_1_and_f32_does_not() {
        for (dtype, lr, share) in [
            (DType::BF16, 1e-3, 1.0),
            (DType::BF16, 1e-2, 0.0),
            (DType::F16, 1e-3, 0.0),
            (DType::F16, 1e-4, 1.0),
            (DType::F32, 1e-3, 0.0),
            (DType::F64, 1e-9, 0.0),
        ] {
            let (params, grads) = ones(dtype);
            let mut sgd = candle_nn::SGD::new(params.vars(), lr).unwrap();
            let lost = audit_step(&params, &grads, || Ok(sgd.step(&grads)?)).unwrap();
            assert_eq!(lost.share("w"), Some(share), "{dtype:?} at {lr}");
            assert_eq!(lost.is_empty(), share == 0.0);
        }
    }

    #[test]
    fn a_master_copy_loses_nothing_where_the_weights_seem_to_stay() {
        let config = AdamWConfig {
            lr: 1e-3,
            ..Default::default()
        };
        for (dtype, seems) in [(DType::BF16, 1.0), (DType::F32, 0.0)] {
            let (params, grads) = ones(dtype);
            let mut adamw = AdamW::new(&params, config.clone()).unwrap();
            let seen = audit_step(&params, &grads, || adamw.step(&grads)).unwrap();
            assert_eq!(seen.share("w"), Some(seems), "{dtype:?}");
            let (params, grads) = ones(dtype);
            let mut adamw = AdamW::new(&params, config.clone()).unwrap();
            assert_eq!(adamw.audit_step(&grads).unwrap().share("w"), Some(0.0), "{dtype:?}");
        }
        // The copy itself: what is less than 2^25 by one is not there in f32.
        let var = Var::new(&[33_554_432f32, 1.0], &Device::Cpu).unwrap();
        let grads = var.sum_all().unwrap().backward().unwrap();
        let params = Params::new([("w".to_string(), var)]);
        let config = SgdConfig {
            lr: 0.5,
            ..Default::default()
        };
        let lost = Sgd::new(&params, config).unwrap().audit_step(&grads).unwrap();
        assert_eq!(lost.share("w"), Some(0.5));
    }

    #[test]
    fn a_report_begins_with_the_largest_share() {
        let lost = LostUpdates {
            shares: [("a", 0.25), ("b", 0.0), ("c", 1.0)]
                .map(|(name, share)| (name.into(), share))
                .into(),
        };
        assert_eq!(
            lost.to_string(),
            "2 of 3 parameters lost updates to rounding: c 100.0 %, a 25.0 %"
        );
        assert_eq!(
            LostUpdates::default().to_string(),
            "0 of 0 parameters lost updates to rounding"
        );
    }

    #[test]
    fn a_stream_in_bf16_loses_what_is_below_its_spacing() {
        let xs = Tensor::full(1f32, (2, 3), &Device::Cpu).unwrap();
        let branch = Tensor::new(&[[1e-3f32, -1e-3, 0.0], [4e-3, -2.1e-3, 1e-4]], &Device::Cpu).unwrap();
        assert_eq!(lost_in_sum(&xs, &branch).unwrap(), 0.0);
        let half = xs.to_dtype(DType::BF16).unwrap();
        // From 1 on numbers are 2^-7 apart, below it 2^-8: half of that shows.
        assert_eq!(lost_in_sum(&half, &branch).unwrap(), 3.0 / 5.0);
        assert_eq!(lost_in_sum(&half, &branch.zeros_like().unwrap()).unwrap(), 0.0);
        let error = lost_in_sum(&xs.to_dtype(DType::U32).unwrap(), &branch).unwrap_err();
        assert!(error.to_string().starts_with("xs has dtype U32"), "{error}");
        lost_in_sum(&xs, &branch.narrow(0, 0, 1).unwrap()).unwrap_err();
    }
}
