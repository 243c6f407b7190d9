//! Tensors that a pass cannot drop from or average.

use candle_core::{DType, Var};
use masksub::Pass;

use super::key;
use crate::common::{randn, CPU};

#[test]
fn on_odd_ranks() {
    for shape in [
        vec![],
        vec![0],
        vec![2, 0],
        vec![0, 3],
        vec![2, 0, 3],
        vec![4],
        vec![1, 2, 3, 4, 5],
    ] {
        let xs = randn(shape.clone(), "odd");
        let mut pass = Pass::train(key());
        for dropped in [pass.dropout(&xs, 0.5), pass.drop_path(&xs, 0.5)] {
            match dropped {
                Ok(dropped) => assert_eq!(dropped.dims(), shape),
                // A scalar has no samples.
                Err(error) => assert!(shape.is_empty(), "{shape:?}: {error}"),
            }
        }
    }
}

#[test]
fn on_a_running_average_of_another_shape() {
    let running = Var::zeros(3, DType::F32, &CPU).unwrap();
    let first = Var::zeros(2, DType::F32, &CPU).unwrap();
    let mut pass = Pass::train(key());
    pass.update_running(&first, &randn(2, "batch"), 0.1);
    pass.update_running(&running, &randn(4, "batch"), 0.1);
    assert!(pass.commit().is_err());
    // All or none.
    assert_eq!(first.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
}
