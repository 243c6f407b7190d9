use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use candle_core::{DType, Device, Var};

use super::*;

/// y = w Σ x, of which the sum is kept. Counts the sums that are alive, those computed again, and forwards told to keep
/// one.
struct Scaled(Arc<Counts>);

#[derive(Default)]
struct Counts {
    alive: AtomicUsize,
    recomputed: AtomicUsize,
    to_keep: AtomicUsize,
}

struct Sum(f32, Arc<Counts>);

impl Sum {
    fn of(xs: &[f32], counts: &Arc<Counts>) -> Self {
        counts.alive.fetch_add(1, Relaxed);
        Self(xs.iter().sum(), counts.clone())
    }
}

impl Drop for Sum {
    fn drop(&mut self) {
        self.1.alive.fetch_sub(1, Relaxed);
    }
}

impl Operation for Scaled {
    const NAME: &'static str = "scaled";

    type Kept = Sum;

    fn result_dims(&self) -> Vec<usize> {
        vec![1]
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Sum)> {
        self.0.to_keep.fetch_add(usize::from(keep), Relaxed);
        let sum = Sum::of(xs, &self.0);
        Ok((vec![params[0][0] * sum.0], sum))
    }

    fn recompute(&self, xs: &[f32], _: &[&[f32]]) -> Result<Sum> {
        self.0.recomputed.fetch_add(1, Relaxed);
        Ok(Sum::of(xs, &self.0))
    }

    fn backward(&self, of: Backward, kept: Sum, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        assert_eq!(of.ys, [of.params[0][0] * kept.0]);
        param_grads.set(0, vec![of.grads[0] * kept.0])?;
        param_grads.write(1, |out, write| match write {
            Write::Replace => out.fill(7.0),
            Write::Add => out.iter_mut().for_each(|out| *out += 7.0),
        })?;
        Ok(if of.wants_dxs {
            vec![of.grads[0] * of.params[0][0]; of.xs.len()]
        } else {
            vec![]
        })
    }
}

fn var(values: &[f32]) -> Var {
    Var::new(values, &Device::Cpu).unwrap()
}

fn values(tensor: Option<&Tensor>) -> Option<Vec<f32>> {
    tensor.map(|tensor| tensor.to_vec1().unwrap())
}

#[test]
fn the_first_backward_lets_go_what_was_kept_and_a_second_one_recomputes_it() {
    let counts = Arc::new(Counts::default());
    let (xs, weight, other) = (var(&[1.0, 2.0]), var(&[3.0]), var(&[0.0; 2]));
    let ys = apply(Scaled(counts.clone()), &xs, &[&weight, &other]).unwrap();
    assert_eq!(values(Some(&ys)), Some(vec![9.0]));
    assert_eq!(counts.alive.load(Relaxed), 1);
    for pass in 0..2 {
        let grads = ys.backward().unwrap();
        assert_eq!(values(grads.get(&xs)), Some(vec![3.0; 2]));
        assert_eq!(values(grads.get(&weight)), Some(vec![3.0]));
        assert_eq!(values(grads.get(&other)), Some(vec![7.0; 2]));
        assert_eq!(counts.alive.load(Relaxed), 0);
        assert_eq!(counts.recomputed.load(Relaxed), pass);
    }
}

#[test]
fn a_forward_is_told_to_keep_only_where_there_can_be_a_backward() {
    let counts = Arc::new(Counts::default());
    let (xs, weight, other) = (var(&[1.0]), var(&[3.0]), var(&[0.0]));
    let frozen = [&xs, &weight, &other].map(|var| var.as_detached_tensor());
    let [x, w, o] = frozen.each_ref();
    for (keeps, [x, w, o]) in [
        (0, [x, w, o]),
        (1, [&xs, w, o]),
        (2, [x, &weight, o]),
        (3, [x, w, &other]),
    ] {
        apply(Scaled(counts.clone()), x, &[w, o]).unwrap();
        assert_eq!(counts.to_keep.load(Relaxed), keeps);
    }
}

#[test]
fn only_gradients_that_are_asked_for_are_there() {
    let counts = Arc::new(Counts::default());
    let (xs, weight, other) = (var(&[1.0, 2.0]), var(&[3.0]), var(&[0.0; 2]));
    let frozen = [xs.as_detached_tensor(), weight.as_detached_tensor()];
    let ys = apply(Scaled(counts), &frozen[0], &[&frozen[1], &other]).unwrap();
    let grads = ys.backward().unwrap();
    assert_eq!(values(grads.get(&other)), Some(vec![7.0; 2]));
    assert!(frozen.iter().all(|tensor| grads.get(tensor).is_none()));
}

#[test]
fn an_input_that_is_not_contiguous_has_its_gradient_in_place() {
    let xs = Var::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    let part = xs.narrow(1, 1, 2).unwrap();
    let (weight, other) = (var(&[3.0]), var(&[0.0]));
    let ys = apply(Scaled(Arc::default()), &part, &[&weight, &other]).unwrap();
    let grad = ys.backward().unwrap().get(&xs).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(grad, [[0.0, 3.0, 3.0]; 2]);
}
