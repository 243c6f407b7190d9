//! Errors of the user's closures, models and generators, which come back as they are.

use candle_core::{Result, Tensor};
use masksub::models::vit::Config;
use masksub::{
    Criterion, DropToken, Error, Forward, Grid, Mask, MaskGenerator, MaskSub, Pass, PatchDrop, RandomMasking, StepKey,
};

use super::{drop_token, half, key};
use crate::common::{images, labels, tiny, vit};

/// An error type of the user's own.
#[derive(Debug)]
struct OutOfCoffee;

impl std::fmt::Display for OutOfCoffee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("out of coffee")
    }
}

impl std::error::Error for OutOfCoffee {}

struct Broken;

impl Forward for Broken {
    fn forward_pass(&self, _: &Tensor, _: &mut Pass) -> Result<Tensor> {
        Err(candle_core::Error::wrap(OutOfCoffee))
    }
}

impl MaskGenerator for Broken {
    fn generate(&self, _: usize, _: Grid, _: StepKey) -> Result<Mask> {
        Err(candle_core::Error::Io(std::io::Error::other(OutOfCoffee)))
    }
}

fn ours() -> candle_core::Error {
    candle_core::Error::from(RandomMasking::new(2.0).unwrap_err())
}

#[test]
fn come_back_from_closures() {
    let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
    let model = MaskSub::unchecked(&vit, drop_token());
    let xs = images(2, "errors");
    let error = model
        .backward(&xs, key(), |_| Err(candle_core::Error::wrap(OutOfCoffee)))
        .unwrap_err();
    assert_eq!(error.to_string(), "out of coffee");
    let error = model.backward(&xs, key(), |_| Err(ours())).unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidArgument {
                argument: "mask_ratio",
                ..
            }
        ),
        "{error}"
    );
    let error = model
        .backward(&xs, key(), |_| Err(ours().context("in the loss").bt()))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidArgument {
                argument: "mask_ratio",
                ..
            }
        ),
        "{error}"
    );
    // A loss of ours on targets that do not fit.
    let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(3, 5));
    let error = model.backward(&xs, key(), loss).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Shape {
                argument: "targets",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn come_back_from_models_and_generators() {
    let xs = images(2, "errors");
    let error = MaskSub::unchecked(Broken, PatchDrop::new(half(), 4).unwrap())
        .forward_pair(&xs, key())
        .unwrap_err();
    assert_eq!(error.to_string(), "out of coffee");
    let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
    let error = MaskSub::unchecked(&vit, DropToken::new(Broken))
        .forward_pair(&xs, key())
        .unwrap_err();
    assert_eq!(error.to_string(), "out of coffee");
    // With its type.
    let Error::Candle(masksub::CandleError(candle_core::Error::Io(io))) = error else {
        panic!("{error}");
    };
    assert!(io.downcast::<OutOfCoffee>().is_ok());
}
