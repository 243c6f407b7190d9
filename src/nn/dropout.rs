//! Dropout that can be repeated.

use candle_core::{ModuleT, Result, Tensor};

use crate::check;
use crate::error::Error;
use crate::pass::with_current;

/// Dropout (Srivastava et al. 2014): in training, each element is 0 with probability `drop_p` and is otherwise scaled
/// by 1 / (1 - `drop_p`). [`candle_nn::Dropout`], which draws from a generator that cannot be seeded on the CPU, with
/// draws that depend on seed and step alone.
///
/// Its signature has no key to draw from, so it takes part in the [`Pass`](crate::Pass) that runs the model on this
/// thread: that of [`MaskSub::wrap`](crate::MaskSub::wrap) or [`Plain`](crate::Plain), or of
/// [`Pass::scope`](crate::Pass::scope) elsewhere. Main and sub-branch draw apart, a run resumes at any step, and
/// [`DropSub`](crate::DropSub) sets the rate. Outside training, or with a rate of 0, no pass is needed. In a pass of
/// evaluation nothing is dropped, whatever flag it is called with.
///
/// PyTorch's `torch.nn.Dropout(drop_p)`.
#[derive(Clone, Debug)]
pub struct Dropout {
    drop_p: f32,
}

impl Dropout {
    /// With a probability in [0, 1), which is checked when it is used, in evaluation too.
    pub fn new(drop_p: f32) -> Self {
        Self { drop_p }
    }

    /// Some of the elements of `xs` [B, ..], or all if not in training.
    ///
    /// # Errors
    ///
    /// [`Error::DrawsWithoutKey`] in training outside of a pass; [`Error::InvalidArgument`] for a probability outside
    /// [0, 1).
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if train {
            return dropout(xs, self.drop_p);
        }
        check::rate("drop_p", f64::from(self.drop_p))?;
        Ok(xs.clone())
    }
}

impl ModuleT for Dropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(xs, train)
    }
}

/// Dropout as [`Dropout`] does it in training, and in a pass of evaluation nothing: [`candle_nn::ops::dropout`],
/// repeatable.
///
/// # Errors
///
/// As [`Dropout::forward`].
pub fn dropout(xs: &Tensor, drop_p: f32) -> Result<Tensor> {
    let rate = check::rate("drop_p", f64::from(drop_p))?;
    match with_current(|pass| pass.dropout(xs, rate)) {
        Some(dropped) => dropped,
        None if drop_p == 0.0 => Ok(xs.clone()),
        None => Err(Error::DrawsWithoutKey { what: "dropout" }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DropSub, Forward as _, MaskSub, Pass, Plain, Seed};
    use candle_core::{DType, Device, Var};

    fn ones() -> Tensor {
        Tensor::ones((4, 64), DType::F32, &Device::Cpu).unwrap()
    }

    fn values(xs: &Tensor) -> Vec<f32> {
        xs.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn draws_depend_on_seed_and_step_alone() {
        let model = Plain(Dropout::new(0.3));
        let draw = |mut pass: Pass| values(&model.forward_pass(&ones(), &mut pass).unwrap());
        let key = Seed::new(5).at(2);
        let dropped = draw(Pass::train(key));
        assert_eq!(dropped, draw(Pass::train(key)));
        assert_eq!(
            dropped,
            values(&Pass::train(key).dropout(&ones(), f64::from(0.3f32)).unwrap())
        );
        assert_ne!(dropped, draw(Pass::train_sub(key)));
        assert_ne!(dropped, draw(Pass::train(Seed::new(5).at(3))));
        assert_eq!(draw(Pass::eval()), values(&ones()));
    }

    #[test]
    fn needs_a_pass_in_training_alone() {
        let layer = Dropout::new(0.5);
        let error = Error::from(layer.forward_t(&ones(), true).unwrap_err());
        assert!(matches!(error, Error::DrawsWithoutKey { what: "dropout" }));
        let error = Pass::without_key(true).scope(|train| layer.forward_t(&ones(), train).unwrap_err());
        assert!(matches!(Error::from(error), Error::DrawsWithoutKey { what: "dropout" }));
        assert_eq!(values(&layer.forward_t(&ones(), false).unwrap()), values(&ones()));
        assert_eq!(
            values(&Dropout::new(0.0).forward(&ones(), true).unwrap()),
            values(&ones())
        );
        let evaluated = Pass::eval().scope(|_| layer.forward_t(&ones(), true).unwrap());
        assert_eq!(values(&evaluated), values(&ones()));
    }

    #[test]
    fn a_rate_out_of_range_is_refused_wherever_it_is_used() {
        for rate in [1.0, -0.1, f32::NAN] {
            let layer = Dropout::new(rate);
            for refused in [
                Pass::train(Seed::new(0).at(0)).scope(|_| dropout(&ones(), rate)),
                Pass::eval().scope(|train| layer.forward_t(&ones(), train)),
                layer.forward(&ones(), true),
                layer.forward(&ones(), false),
            ] {
                let error = Error::from(refused.unwrap_err());
                assert!(
                    matches!(error, Error::InvalidArgument { argument: "drop_p", .. }),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_sub_branch_sets_its_rate() {
        let weight = Var::from_tensor(&ones()).unwrap();
        let layer = Dropout::new(0.0);
        let net = {
            let weight = weight.clone();
            candle_nn::func_t(move |xs, train| layer.forward(&(xs * weight.as_tensor())?, train))
        };
        let params = crate::Params::new([("weight".to_string(), weight)]);
        let model = MaskSub::wrap(net, DropSub::new(0.5).unwrap(), params);
        let both = model.forward_pair(&ones(), Seed::new(0).at(0)).unwrap();
        assert_eq!(values(&both.main), values(&ones()));
        let kept = values(&both.sub).iter().filter(|&&y| y == 2.0).count();
        assert!((96..160).contains(&kept), "{kept}");
    }
}
