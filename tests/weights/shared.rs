//! Weights that several layers, threads or builders ask for.

use candle_core::DType;
use candle_nn::Init;
use masksub::{Error, Seed, Weights};

use super::{seeded, Stored, NORMAL};
use crate::common::{randn, CPU};

#[test]
fn weights_are_one_variable() {
    for (_, vb) in [seeded(0), Stored::linear().load()] {
        let first = vb.get_with_hints((2, 4), "fc.weight", NORMAL).unwrap();
        let second = vb.pp("fc").get_with_hints((2, 4), "weight", Init::Const(9.0)).unwrap();
        assert_eq!(first.id(), second.id());
        let error = Error::from(vb.get((4, 2), "fc.weight").unwrap_err());
        assert!(
            matches!(&error, Error::MisshapenWeight { path, got, expected, .. }
                if path == "fc.weight" && *got == [2, 4] && *expected == [4, 2]),
            "{error}"
        );
    }
}

// Large enough for the others to arrive while the first is copied.
#[test]
fn weights_are_one_variable_for_threads_that_ask_at_once() {
    let tensor = randn(1 << 20, "w");
    for _ in 0..20 {
        let stored = Weights::from_tensors([("w".to_string(), tensor.clone())]);
        for weights in [stored, Weights::seeded(Seed::new(0))] {
            let barrier = std::sync::Barrier::new(4);
            let ask = || {
                let vb = weights.var_builder(DType::F32, &CPU);
                barrier.wait();
                vb.get_with_hints(1 << 20, "w", NORMAL).unwrap().id()
            };
            let ids = std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(ask));
                threads.map(|thread| thread.join().unwrap())
            });
            let kept = weights.varmap().all_vars()[0].as_tensor().id();
            assert_eq!(ids, [kept; 4]);
        }
    }
}

#[test]
fn builders_of_one_source_share() {
    let weights = Weights::seeded(Seed::new(0));
    let [a, b] = [(); 2].map(|()| {
        weights
            .var_builder(DType::F32, &CPU)
            .get_with_hints(3, "w", NORMAL)
            .unwrap()
    });
    assert_eq!(a.id(), b.id());
    assert_eq!(weights.varmap().all_vars().len(), 1);
    let wide = weights.var_builder(DType::F64, &CPU).get_with_hints(3, "w", NORMAL);
    let error = Error::from(wide.unwrap_err()).to_string();
    assert_eq!(
        error,
        "dtype and device is F64 on Cpu for weight w, but must be F32 on Cpu, as in the layer that shares it"
    );
}
