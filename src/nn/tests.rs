//! What is candle-nn's own here, and is said to train: its derivatives are right.

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;

use super::{ops, Embedding, GRUConfig, LSTMConfig, PReLU, GRU, LSTM, RNN};
use crate::ops::testing::check_derivative;

#[test]
fn activations_and_rearrangements() {
    check_derivative(
        &|t| PReLU::new(t[1].clone(), true).forward(&t[0]),
        &[&[2, 3, 4], &[1]],
        1,
    );
    check_derivative(
        &|t| PReLU::new(t[1].clone(), false).forward(&t[0]),
        &[&[2, 3, 4], &[3]],
        2,
    );
    check_derivative(&|t| ops::leaky_relu(&t[0], 0.1), &[&[5, 4]], 3);
    check_derivative(&|t| ops::log_softmax(&t[0], 1), &[&[3, 4, 2]], 4);
    check_derivative(&|t| ops::pixel_shuffle(&t[0], 2), &[&[2, 8, 2, 3]], 5);
    check_derivative(&|t| ops::pixel_unshuffle(&t[0], 2), &[&[2, 2, 4, 6]], 6);
    check_derivative(&|t| ops::replication_pad2d(&t[0], 1), &[&[2, 3, 4, 2]], 7);
    let ids = Tensor::new(&[[0u32, 2], [2, 1]], &Device::Cpu).unwrap();
    check_derivative(&|t| Embedding::new(t[0].clone(), 4).forward(&ids), &[&[3, 4]], 8);
}

/// A builder of these tensors, which are not copied.
fn builder(names: &[&str], tensors: &[Tensor]) -> VarBuilder<'static> {
    let named = names.iter().map(|name| name.to_string()).zip(tensors.iter().cloned());
    VarBuilder::from_tensors(named.collect::<HashMap<_, _>>(), DType::F64, &Device::Cpu)
}

/// All states of a sequence of three steps, through which gradients flow back.
#[test]
fn recurrent_layers() {
    const NAMES: [&str; 4] = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"];
    let lstm = |t: &[Tensor]| {
        let lstm = LSTM::new(4, 2, LSTMConfig::default(), builder(&NAMES, &t[1..]))?;
        lstm.states_to_tensor(&lstm.seq(&t[0])?)
    };
    check_derivative(&lstm, &[&[2, 3, 4], &[8, 4], &[8, 2], &[8], &[8]], 1);
    let gru = |t: &[Tensor]| {
        let gru = GRU::new(4, 2, GRUConfig::default(), builder(&NAMES, &t[1..]))?;
        gru.states_to_tensor(&gru.seq(&t[0])?)
    };
    check_derivative(&gru, &[&[2, 3, 4], &[6, 4], &[6, 2], &[6], &[6]], 2);
}
