//! The pass in which layers take part that have none in their signatures.

use std::cell::RefCell;
use std::mem;

use super::Pass;

thread_local! {
    /// The pass of the innermost scope that this thread is in.
    static CURRENT: RefCell<Option<Pass>> = const { RefCell::new(None) };
}

impl Pass {
    /// Calls `f` with whether this is a training pass. What it runs on this thread takes part in the pass:
    /// [`nn::Dropout`](crate::nn::Dropout), which has candle-nn's signature and so no key, draws as
    /// [`dropout`](Self::dropout) does, and [`nn::BatchNorm`](crate::nn::BatchNorm) leaves its running statistics to the pass.
    ///
    /// [`Plain`](crate::Plain), and so [`MaskSub::wrap`](crate::MaskSub::wrap), runs its module so. A
    /// [`TokenModel`](crate::TokenModel) whose blocks are candle modules does it itself.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use masksub::{nn::Dropout, Pass, Seed};
    /// let (dropout, xs) = (Dropout::new(0.5), Tensor::ones((4, 8), DType::F32, &Device::Cpu)?);
    /// let draw = |step| Pass::train(Seed::new(0).at(step)).scope(|train| dropout.forward(&xs, train)?.to_vec2::<f32>());
    /// assert_eq!(draw(3)?, draw(3)?);
    /// assert_ne!(draw(3)?, draw(4)?);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn scope<T>(&mut self, f: impl FnOnce(bool) -> T) -> T {
        let train = self.is_train();
        let inner = mem::replace(self, Self::eval());
        let _scope = Scope {
            outer: CURRENT.replace(Some(inner)),
            pass: self,
        };
        f(train)
    }
}

/// Gives the pass back at its end, also when there is a panic.
struct Scope<'a> {
    pass: &'a mut Pass,
    outer: Option<Pass>,
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        if let Some(inner) = CURRENT.replace(self.outer.take()) {
            *self.pass = inner;
        }
    }
}

/// What `f` gives of the pass whose scope this thread is in, if it is in one.
pub(crate) fn with_current<T>(f: impl FnOnce(&mut Pass) -> T) -> Option<T> {
    // Not borrowed meanwhile: `f` may wait for other threads, and be given work that enters a scope.
    let mut lent = Lent(CURRENT.take());
    lent.0.as_mut().map(f)
}

/// Puts the current pass back at its end, also when there is a panic.
struct Lent(Option<Pass>);

impl Drop for Lent {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Seed;
    use candle_core::{DType, Device, Tensor};

    fn draw() -> Option<Vec<f32>> {
        let ones = Tensor::ones((1, 64), DType::F32, &Device::Cpu).unwrap();
        with_current(|pass| {
            pass.dropout(&ones, 0.5)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        })
    }

    fn pass(step: usize) -> Pass {
        Pass::train(Seed::new(1).at(step))
    }

    #[test]
    fn draws_are_those_of_the_pass() {
        let ones = Tensor::ones((1, 64), DType::F32, &Device::Cpu).unwrap();
        let mut by_hand = pass(0);
        let mut drop_by_hand = || {
            let dropped = by_hand.dropout(&ones, 0.5).unwrap();
            dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let expected = [drop_by_hand(), drop_by_hand(), drop_by_hand()];
        let mut scoped = pass(0);
        let first = scoped.scope(|train| [train.then(draw).flatten().unwrap(), draw().unwrap()]);
        // The pass goes on where the scope has left it.
        let last = scoped.scope(|_| draw().unwrap());
        assert_eq!(expected, [&first[..], &[last]].concat()[..]);
        assert_eq!(scoped.dropout_sites(), 3);
        assert!(draw().is_none());
    }

    #[test]
    fn scopes_nest() {
        let (mut outer, mut inner) = (pass(0), pass(1));
        let alone = [pass(0).scope(|_| [draw(), draw()]), pass(1).scope(|_| [draw(), draw()])];
        let nested = outer.scope(|_| [draw(), inner.scope(|_| draw()), draw()]);
        assert_eq!(nested, [alone[0][0].clone(), alone[1][0].clone(), alone[0][1].clone()]);
        assert_eq!((outer.dropout_sites(), inner.dropout_sites()), (2, 1));
    }

    #[test]
    fn a_panic_gives_the_pass_back() {
        let mut pass = pass(0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pass.scope(|_| {
                draw();
                panic!("on purpose");
            })
        }));
        assert!(caught.is_err() && draw().is_none());
        assert!(pass.is_train() && pass.dropout_sites() == 1);
    }

    #[test]
    fn a_panic_of_a_layer_leaves_the_pass_in_its_scope() {
        let mut pass = pass(0);
        let then = pass.scope(|_| {
            let caught = std::panic::catch_unwind(|| {
                with_current(|pass| {
                    pass.skip_dropout(0.0, 1).unwrap();
                    panic!("on purpose");
                })
            });
            assert!(caught.is_err());
            draw()
        });
        assert!(then.is_some() && pass.is_train() && pass.dropout_sites() == 2);
    }

    #[test]
    fn evaluation_stays_evaluation() {
        let kept = Pass::eval().scope(|train| {
            assert!(!train);
            draw().unwrap()
        });
        assert_eq!(kept, [1.0; 64]);
    }
}
