//! Gradients find their parameters, also of passes at the same time, within one another, and of those that fail.

use candle_core::{CustomOp1, Var};

use super::accumulator::{accumulate, Gradients};
use super::*;

/// Its gradient by parameter i is i, for each of three elements.
struct Weighted(TrackedParams);

impl CustomOp1 for Weighted {
    fn name(&self) -> &'static str {
        "weighted"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, edge: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.to_scalar::<f32>()?;
        let gradients = (0..self.0.tensors().len())
            .map(|i| {
                if self.0.wants(i) {
                    Ok(Some(Tensor::new(&[i as f32 * grad; 3], &Device::Cpu)?))
                } else {
                    Ok(None)
                }
            })
            .collect::<Result<_>>()?;
        assert!(edge.track_op());
        self.0.leave(gradients).map(Some)
    }
}

fn var() -> Var {
    Var::zeros(3, DType::F32, &Device::Cpu).unwrap()
}

fn gradient(loss: &Tensor, var: &Var) -> Option<Vec<f32>> {
    let grads = loss.backward().unwrap();
    grads.get(var).map(|grad| grad.to_vec1().unwrap())
}

#[test]
fn each_parameter_gets_its_own_and_nothing_waits_after_it() {
    let vars = [var(), var(), var()];
    let frozen = vars[1].as_detached_tensor();
    let params = [vars[0].as_tensor(), &frozen, vars[2].as_tensor()];
    let (edge, params) = TrackedParams::new(&params).unwrap();
    let pending = params.pending.clone();
    let loss = edge.apply_op1(Weighted(params)).unwrap().affine(7.0, 0.0).unwrap();
    for _ in 0..2 {
        assert_eq!(gradient(&loss, &vars[0]), Some(vec![0.0; 3]));
        assert_eq!(gradient(&loss, &vars[1]), None);
        assert_eq!(gradient(&loss, &vars[2]), Some(vec![14.0; 3]));
        assert!(lock(&pending).passes.is_empty());
    }
}

#[test]
fn gradients_accumulate_where_that_is_asked_for() {
    let (a, b) = (var(), var());
    let computed = b.affine(1.0, 0.0).unwrap();
    let (edge, params) = TrackedParams::new(&[&computed, a.as_tensor()]).unwrap();
    let loss = edge.apply_op1(Weighted(params)).unwrap();
    let (grads, sums) = accumulate(&loss, Gradients::new(), || loss.backward().unwrap());
    // What is no variable must go on through candle's backward.
    assert!(grads.get(&a).is_none() && grads.get(&b).is_some());
    assert_eq!(sums.len(), 1);
    assert_eq!(sums[&a.id()].to_vec1::<f32>().unwrap(), [1.0; 3]);
    // On top of what is there.
    let (_, sums) = accumulate(&loss, sums, || loss.backward().unwrap());
    assert_eq!(sums[&a.id()].to_vec1::<f32>().unwrap(), [2.0; 3]);
    // Another graph's backward in the midst of this one keeps its own, and so does what comes after a panic.
    let (edge, params) = TrackedParams::new(&[b.as_tensor(), a.as_tensor()]).unwrap();
    let other = edge.apply_op1(Weighted(params)).unwrap();
    let (nested, sums) = accumulate(&loss, Gradients::new(), || gradient(&other, &a));
    assert_eq!((nested, sums.len()), (Some(vec![1.0; 3]), 0));
    let panicking = || accumulate(&loss, Gradients::new(), || -> () { panic!("in a backward") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
    assert_eq!(gradient(&loss, &a), Some(vec![1.0; 3]));
}

/// Its gradient by the parameter is 1 for each element, written or added; notes which.
struct Written(TrackedParams, Arc<Mutex<Vec<Write>>>);

impl CustomOp1 for Written {
    fn name(&self) -> &'static str {
        "written"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, _: &Tensor, node: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.0.gradient(0, node, |out, write| {
            self.1.lock().unwrap().push(write);
            for out in out {
                *out = 1.0 + if write == Write::Add { *out } else { 0.0 };
            }
        })?;
        self.0.leave(vec![gradient]).map(Some)
    }
}

#[test]
fn a_gradient_is_added_to_an_earlier_one_of_the_same_variable_and_to_nothing_else() {
    let a = var();
    let writes = Arc::new(Mutex::new(vec![]));
    let graph = |param: &Tensor| {
        let (edge, params) = TrackedParams::new(&[param]).unwrap();
        edge.apply_op1(Written(params, writes.clone())).unwrap()
    };
    let values = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap();
    let (loss, other) = (graph(&a), graph(&a));
    let (_, sums) = accumulate(&loss, Gradients::new(), || loss.backward().unwrap());
    let (_, sums) = accumulate(&loss, sums, || loss.backward().unwrap());
    assert_eq!(values(&sums[&a.id()]), [2.0; 3]);
    // A backward through another graph meanwhile takes nothing from this one's.
    let (nested, sums) = accumulate(&loss, sums, || gradient(&other, &a));
    assert_eq!((nested, values(&sums[&a.id()])), (Some(vec![1.0; 3]), vec![2.0; 3]));
    // Nor is anything taken for what is no variable.
    let computed = a.affine(3.0, 0.0).unwrap();
    let loss = graph(&computed);
    let (grads, sums) = accumulate(&loss, sums, || loss.backward().unwrap());
    assert_eq!(
        (values(grads.get(&a).unwrap()), values(&sums[&a.id()])),
        (vec![3.0; 3], vec![2.0; 3])
    );
    // What lies there in another form is added to by candle.
    let strided = Tensor::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
    let sums = Gradients::from([(a.id(), strided.narrow(1, 0, 1).unwrap().squeeze(1).unwrap())]);
    let loss = graph(&a);
    let (_, sums) = accumulate(&loss, sums, || loss.backward().unwrap());
    assert_eq!(values(&sums[&a.id()]), [2.0; 3]);
    let (add, replace) = (Write::Add, Write::Replace);
    assert_eq!(*writes.lock().unwrap(), [replace, add, replace, replace, replace]);
}

/// A thread of rayon's that waits for others takes up whatever there is to do.
#[test]
fn steps_within_steps_do_not_mix() {
    use rayon::prelude::*;
    let many = 1 << 18;
    let step = |i: usize| {
        let var = Var::zeros(many, DType::F32, &Device::Cpu).unwrap();
        let params = [var.as_tensor(), var.as_tensor()];
        let (edge, params) = TrackedParams::new(&params).unwrap();
        let loss = edge.apply_op1(Many(params, many)).unwrap();
        let sum = |grad: &Tensor| grad.sum_all().unwrap().to_scalar::<f32>().unwrap();
        let expected = 2.0 * many as f32;
        match i % 2 {
            0 => {
                let (_, sums) = accumulate(&loss, Gradients::new(), || loss.backward().unwrap());
                assert_eq!(sum(&sums[&var.id()]), expected);
            }
            _ => assert_eq!(sum(loss.backward().unwrap().get(&var).unwrap()), expected),
        }
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| (0..64).into_par_iter().for_each(step));
}

/// Its gradient by each of two parameters is as many ones.
struct Many(TrackedParams, usize);

impl CustomOp1 for Many {
    fn name(&self) -> &'static str {
        "many"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let ones = || Tensor::ones(self.1, DType::F32, &Device::Cpu)?.copy().map(Some);
        self.0.leave(vec![ones()?, ones()?]).map(Some)
    }
}

#[test]
fn a_parameter_that_candle_does_not_visit_leaves_nothing_for_long() {
    let (a, b) = (var(), var());
    let rounded = a.round().unwrap();
    let (edge, params) = TrackedParams::new(&[&rounded, b.as_tensor()]).unwrap();
    let pending = params.pending.clone();
    let loss = edge.apply_op1(Weighted(params)).unwrap();
    for _ in 0..3 * MOST_PENDING {
        assert_eq!(gradient(&loss, &b), Some(vec![1.0; 3]));
    }
    assert!(lock(&pending).passes.len() <= MOST_PENDING);
}

#[test]
fn a_pass_may_wait_for_as_many_of_other_threads_as_there_are() {
    let (a, b) = (var(), var());
    let rounded = a.round().unwrap();
    let (edge, params) = TrackedParams::new(&[&rounded, b.as_tensor()]).unwrap();
    let pending = params.pending.clone();
    let held = Tensor::new(5f32, &Device::Cpu).unwrap();
    let number = lock(&pending).leave(HashMap::from([(1, held)]));
    let loss = edge.apply_op1(Weighted(params)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each leaves something that nobody asks for.
            for _ in 0..3 * MOST_PENDING {
                assert_eq!(gradient(&loss, &b), Some(vec![1.0; 3]));
            }
        });
    });
    let held = lock(&pending)
        .take(number, 1)
        .map(|held| held.to_scalar::<f32>().unwrap());
    assert_eq!(held, Some(5.0));
}

#[test]
fn without_trained_parameters_there_is_no_edge_to_track() {
    let frozen = var().as_detached_tensor();
    assert!(!TrackedParams::new(&[&frozen]).unwrap().0.track_op());
}

#[test]
fn backward_passes_at_the_same_time_do_not_mix() {
    let (a, b) = (var(), var());
    let (edge, params) = TrackedParams::new(&[a.as_tensor(), b.as_tensor()]).unwrap();
    let ys = edge.apply_op1(Weighted(params)).unwrap();
    std::thread::scope(|scope| {
        for scale in 1..=4u8 {
            let loss = ys.affine(f64::from(scale), 0.0).unwrap();
            let b = &b;
            scope.spawn(move || {
                for _ in 0..200 {
                    assert_eq!(gradient(&loss, b), Some(vec![f32::from(scale); 3]));
                }
            });
        }
    });
}
