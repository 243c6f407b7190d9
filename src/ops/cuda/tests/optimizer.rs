//! Steps over many parameters at once.

use super::super::emulator::{assert_close, launch, values, Buffer};
use super::super::launch::Element;
use super::super::optimizer::{Adam, Parameter, Settings, Table};
use super::{in_every_order, inputs};
use candle_core::Tensor;

/// Of one chunk, of several, not of whole ones, of one element.
const LENGTHS: [usize; 5] = [1, 300, 16_384, 40_001, 77];

const ADAM: Adam = Adam {
    grad_scale: 0.5,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-3,
};

/// Weights, gradient and moments of each parameter.
fn parameters() -> Vec<Vec<Tensor>> {
    let tensors = (0..).zip(LENGTHS).map(|(seed, len)| {
        let mut tensors = inputs(Element::F32, &[&[len][..]; 4], seed);
        tensors[3] = tensors[3].sqr().unwrap();
        tensors
    });
    tensors.collect()
}

/// Of the parameter with that number: the middle one does not decay.
fn settings(number: usize) -> Settings {
    Settings {
        lr: 0.25,
        weight_decay: [0.5, 0.125, 0.0][number % 3],
        m_scale: 2.0,
        root_scale: 3.0 + number as f32,
    }
}

/// What kernels leave of weights and moments, and what else they write.
fn run(
    order: u32,
    columns: usize,
    kernels: impl Fn(&Table, u64, [u64; 2]) -> Vec<super::super::launch::Launch>,
) -> Vec<Vec<f64>> {
    let all = parameters();
    let mut buffers: Vec<Vec<_>> = all
        .iter()
        .map(|tensors| tensors.iter().map(|tensor| Buffer::of(Element::F32, tensor)).collect())
        .collect();
    let table = buffers.iter_mut().enumerate().map(|(number, tensors)| Parameter {
        addresses: [0, 1, 2, 3].map(|i: usize| tensors[i].address()),
        len: LENGTHS[number],
        settings: settings(number),
    });
    let table = Table::new(&table.collect::<Vec<_>>()).unwrap();
    let mut scratch = table.scratch(columns).map(Buffer::of_f64);
    let at = scratch.each_mut().map(Buffer::address);
    launch(order, &kernels(&table, table.words.as_ptr() as u64, at));
    let totals = scratch[1].f64_values();
    let mut results: Vec<_> = buffers
        .iter_mut()
        .flat_map(|tensors| [0, 2, 3].map(|i: usize| tensors[i].values()))
        .collect();
    results.push(totals);
    results
}

/// The moments and the direction of Adam's step, in f64.
fn adam(tensors: &[Tensor], at: &Settings) -> [Tensor; 3] {
    let (m_scale, root_scale) = (f64::from(at.m_scale), f64::from(at.root_scale));
    let g = (&tensors[1] * ADAM.grad_scale).unwrap();
    let m = ((&tensors[2] * ADAM.beta1).unwrap() + (&g * (1.0 - ADAM.beta1)).unwrap()).unwrap();
    let v = ((&tensors[3] * ADAM.beta2).unwrap() + (g.sqr().unwrap() * (1.0 - ADAM.beta2)).unwrap()).unwrap();
    let root = ((v.sqrt().unwrap() * root_scale).unwrap() + ADAM.eps).unwrap();
    let direction = ((&m * m_scale).unwrap() / root).unwrap();
    [m, v, direction]
}

fn assert_steps(results: &[Vec<f64>], exact: impl Fn(&[Tensor], &Settings) -> [Tensor; 3]) {
    for (number, tensors) in parameters().iter().enumerate() {
        let exact = exact(tensors, &settings(number));
        for (i, what) in ["weights", "exp_avg", "exp_avg_sq"].iter().enumerate() {
            let what = format!("{what} of parameter {number}");
            assert_close(Element::F32, &what, &results[3 * number + i], &exact[i], 1e-6);
        }
    }
}

#[test]
fn adamw_is_its_formula() {
    let kernels = |table: &Table, at, _: [u64; 2]| vec![table.adamw(at, &ADAM)];
    let Some(results) = in_every_order(|order| run(order, 1, kernels)) else {
        return;
    };
    assert_steps(&results, |tensors, at| {
        let [m, v, direction] = adam(tensors, at);
        let (lr, decay) = (f64::from(at.lr), f64::from(at.weight_decay));
        let weights = ((&tensors[0] * (1.0 - lr * decay)).unwrap() - (direction * lr).unwrap()).unwrap();
        [weights, m, v]
    });
}

#[test]
fn lamb_is_its_formula() {
    let kernels = |table: &Table, at, scratch| table.lamb(at, scratch, &ADAM).to_vec();
    let Some(results) = in_every_order(|order| run(order, 2, kernels)) else {
        return;
    };
    assert_steps(&results, |tensors, at| {
        let [m, v, direction] = adam(tensors, at);
        let (lr, decay) = (f64::from(at.lr), f64::from(at.weight_decay));
        let direction = (direction + (&tensors[0] * decay).unwrap()).unwrap();
        let norm = |tensor: &Tensor| values(tensor).iter().map(|x| x * x).sum::<f64>().sqrt();
        let trust = if decay > 0.0 {
            norm(&tensors[0]) / norm(&direction)
        } else {
            1.0
        };
        [(&tensors[0] - (direction * (lr * trust)).unwrap()).unwrap(), m, v]
    });
}

#[test]
fn averages_move_towards_weights() {
    let kernels = |table: &Table, at, _: [u64; 2]| vec![table.lerp(at)];
    let Some(results) = in_every_order(|order| run(order, 1, kernels)) else {
        return;
    };
    assert_steps(&results, |tensors, at| {
        let way = ((&tensors[1] - &tensors[0]).unwrap() * f64::from(at.lr)).unwrap();
        [(&tensors[0] + way).unwrap(), tensors[2].clone(), tensors[3].clone()]
    });
}

#[test]
fn sums_of_squares_are_of_each_tensor() {
    let kernels = |table: &Table, at, scratch| table.squares(at, scratch).to_vec();
    let Some(results) = in_every_order(|order| run(order, 1, kernels)) else {
        return;
    };
    let totals = results.last().unwrap();
    assert_eq!(totals.len(), LENGTHS.len());
    for (total, tensors) in totals.iter().zip(parameters()) {
        let exact: f64 = values(&tensors[1]).iter().map(|x| x * x).sum();
        assert!((total / exact - 1.0).abs() < 1e-12, "{total} is not {exact}");
    }
}
