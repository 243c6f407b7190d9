//! Batch norms that cannot be, and batches that have no statistics.

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::{nn, Error, Seed, Weights};

use super::error_of;
use crate::common::CPU;

#[test]
fn a_batch_norm_names_what_it_cannot_be() {
    let refused = |config: nn::BatchNormConfig| {
        let weights = Weights::seeded(Seed::new(0));
        match error_of(nn::batch_norm(4, config, weights.var_builder(DType::F32, &CPU))) {
            Error::InvalidArgument { argument, .. } => argument,
            other => panic!("{other}"),
        }
    };
    let config = nn::BatchNormConfig::default;
    assert_eq!(refused(nn::BatchNormConfig { eps: -1.0, ..config() }), "eps");
    assert_eq!(
        refused(nn::BatchNormConfig {
            eps: f64::NAN,
            ..config()
        }),
        "eps"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            momentum: 1.1,
            ..config()
        }),
        "momentum"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            momentum: f64::NAN,
            ..config()
        }),
        "momentum"
    );
    let weights = Weights::seeded(Seed::new(0));
    let norm = nn::batch_norm(4, 1e-3, weights.var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!((norm.eps(), norm.momentum()), (1e-3, 0.1));
    // One value per channel has no variance, and the wrong channels have no statistics.
    for shape in [[1, 4, 1, 1], [2, 3, 5, 5]] {
        let xs = Tensor::zeros(&shape, DType::F32, &CPU).unwrap();
        assert!(matches!(
            norm.forward_t(&xs, true).map_err(Error::from),
            Err(Error::Shape { .. })
        ));
    }
}
