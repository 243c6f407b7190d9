use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::Duration;

use candle_core::{DType, Device, Var};

use super::super::in_place::write_into;
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

/// So many parts of a weight that to lock them takes longer than a writer tries before it waits.
fn parts(weight: &Tensor) -> Vec<Tensor> {
    (0..4096).map(|i| weight.narrow(0, i % 8, 1).unwrap()).collect()
}

/// Runs `read` again and again while another thread writes to `weight`; false if nothing moves any more.
fn goes_on(weight: &Tensor, read: impl Fn() + Send + 'static) -> bool {
    let done = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (weight, done) = (weight.clone(), done.clone());
        move || {
            while !done.load(Relaxed) {
                write_into(&weight, |elements| elements.fill(3.0)).unwrap();
            }
        }
    });
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        (0..300).for_each(|_| read());
        sender.send(()).unwrap();
    });
    // Threads that wait for each other are left where they are.
    let goes_on = receiver.recv_timeout(Duration::from_secs(60)).is_ok();
    done.store(true, Relaxed);
    goes_on && writer.join().is_ok()
}

// A lock that is taken again by who holds it is never given where another thread waits in between to write.
#[test]
fn a_weight_that_is_several_parameters_is_locked_once() {
    let weight = Tensor::new(&[3f32; 8], &Device::Cpu).unwrap();
    let parts = parts(&weight);
    let xs = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
    assert!(goes_on(&weight, move || {
        let parts: Vec<_> = parts.iter().collect();
        let ys = apply(Scaled(Arc::default()), &xs, &parts).unwrap();
        assert_eq!(values(Some(&ys)), Some(vec![9.0]));
    }));
}

#[test]
fn an_input_that_is_a_part_of_a_weight_is_locked_once() {
    let weight = Tensor::new(&[3f32; 8], &Device::Cpu).unwrap();
    let parts = parts(&weight);
    assert!(goes_on(&weight, move || {
        let parts: Vec<_> = parts.iter().collect();
        let ys = apply(Scaled(Arc::default()), parts[1], &parts[2..]).unwrap();
        assert_eq!(values(Some(&ys)), Some(vec![9.0]));
    }));
}

#[test]
fn a_shared_weight_has_the_gradients_of_all_its_parts() {
    let weight = var(&[3.0, 5.0]);
    let [first, second] = [0, 1].map(|i| weight.narrow(0, i, 1).unwrap());
    let ys = apply(Scaled(Arc::default()), &second, &[&first, &second]).unwrap();
    assert_eq!(values(Some(&ys)), Some(vec![15.0]));
    let grads = ys.backward().unwrap();
    // That of the first is the sum of the input, that of the second the first and, as a parameter, 7.
    assert_eq!(values(grads.get(&weight)), Some(vec![5.0, 10.0]));
}
