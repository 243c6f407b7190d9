//! How one operation delivers the gradients of any number of parameters.
//!
//! candle's custom operations take three tensors at most. Here the parameters stand outside: each is the input of a
//! small operation that turns it into a ticket, a single number that is handed on from one parameter to the next and at
//! last to the operation proper. Backwards, that one computes all gradients at once, leaves them at the counter under a
//! fresh number, and gives the number as the ticket's gradient; one after the other the parameters' operations then ask
//! for theirs. So every gradient arrives in candle's `GradStore` as any other does.
//!
//! There candle adds it to zeros: three passes over as many numbers as the model has. Who calls backward and can take
//! gradients without that asks for them [`aside`].

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, TensorId};

use super::accumulate::{accumulate, write_over};
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;
use crate::ops::route;

thread_local! {
    /// Where this thread's backward is to lay gradients aside, if it is.
    static ASIDE: RefCell<Option<Aside>> = const { RefCell::new(None) };
}

/// Gradients of variables, which nobody else has.
pub(crate) type Gradients = HashMap<TensorId, Tensor>;

struct Aside {
    /// The graph whose backward this is. A thread that waits for others may be given another step to do meanwhile.
    nodes: HashSet<TensorId>,
    gradients: Gradients,
}

/// Puts back, also when a backward panics, what was there before it.
struct Restore(Option<Aside>);

impl Drop for Restore {
    fn drop(&mut self) {
        ASIDE.set(self.0.take());
    }
}

/// Calls `backward`, which goes through the graph of `loss`, so that gradients of variables are added to `gradients`, in
/// their memory, as soon as they are there, instead of going into candle's store; returns both. Sums are those of a joint
/// backward up to rounding. After an error the gradients are incomplete: one may have been taken out to be added to.
pub(crate) fn aside<T>(loss: &Tensor, gradients: Gradients, backward: impl FnOnce() -> T) -> (T, Gradients) {
    let nodes = loss.sorted_nodes().iter().map(|node| node.id()).collect();
    let restore = Restore(ASIDE.replace(Some(Aside { nodes, gradients })));
    let result = backward();
    let gradients = ASIDE.take().map(|aside| aside.gradients);
    drop(restore);
    (result, gradients.unwrap_or_default())
}

/// Lays the gradient that `node` has of `param` aside, or gives it back where none are to be.
fn lay_aside(param: &Tensor, node: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    let id = param.id();
    let asked = ASIDE.with_borrow(|aside| aside.as_ref().is_some_and(|aside| aside.nodes.contains(&node.id())));
    if !asked || !param.is_variable() {
        return Ok(Some(gradient));
    }
    let with_aside = |f: &mut dyn FnMut(&mut Gradients) -> Option<Tensor>| {
        ASIDE.with_borrow_mut(|aside| aside.as_mut().and_then(|aside| f(&mut aside.gradients)))
    };
    // Nothing is borrowed during the sum, for which other threads may be waited for.
    let sum = match with_aside(&mut |gradients| gradients.remove(&id)) {
        Some(earlier) => accumulate(earlier, &gradient)?,
        None => gradient,
    };
    with_aside(&mut |gradients| gradients.insert(id, sum.clone()));
    Ok(None)
}

/// Takes back what was laid aside of `param`, for `node` to add to it.
fn take_laid(param: &Tensor, node: &Tensor) -> Option<Tensor> {
    ASIDE.with_borrow_mut(|aside| {
        let aside = aside.as_mut().filter(|aside| aside.nodes.contains(&node.id()))?;
        let laid = aside.gradients.get(&param.id())?;
        let fits = laid.is_contiguous() && laid.dims() == param.dims() && route::on_cpu_f32(&[laid]);
        fits.then(|| aside.gradients.remove(&param.id())).flatten()
    })
}

/// Adds a gradient that nobody else has.
pub(crate) fn add_to(gradients: &mut Gradients, id: TensorId, gradient: Tensor) -> Result<()> {
    let sum = match gradients.remove(&id) {
        Some(earlier) => accumulate(earlier, &gradient)?,
        None => gradient,
    };
    gradients.insert(id, sum);
    Ok(())
}

/// Where gradients wait, under the number of the backward that has computed them: of two backward passes through the
/// same graph, be it at the same time, each finds its own.
#[derive(Default)]
struct Counter {
    /// Numbers given out. A ticket is an `f32`, which counts exactly to 2^24.
    last: u32,
    /// The oldest first.
    waiting: VecDeque<Waiting>,
}

/// The gradients of one backward, by the parameters' indices.
struct Waiting {
    number: u32,
    /// A backward is one thread's from beginning to end.
    thread: ThreadId,
    gradients: HashMap<usize, Tensor>,
}

/// Backward passes of one thread through the same graph whose gradients may wait at the same time. What is left of
/// others was never asked for: their passes failed, or candle's does not visit a parameter (one that is rounded, say).
/// How many passes other threads make meanwhile does not matter: this one's may have to wait for the processor.
const MOST_WAITING: usize = 64;

/// The parameters of an operation, and where it leaves their gradients.
pub(crate) struct Deliveries {
    params: Vec<Tensor>,
    counter: Arc<Mutex<Counter>>,
}

impl Deliveries {
    /// The ticket, to be made an input of the operation, and its other end, to be kept in it. `params` are on the CPU.
    pub(crate) fn new(params: &[&Tensor]) -> Result<(Tensor, Self)> {
        let counter = Arc::new(Mutex::new(Counter::default()));
        let mut ticket = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        for (index, param) in params.iter().enumerate().filter(|(_, param)| param.track_op()) {
            let counter = counter.clone();
            ticket = param.apply_op2(&ticket, Ticket { index, counter })?;
        }
        let params = params.iter().map(|param| param.contiguous()).collect::<Result<_>>()?;
        Ok((ticket, Self { params, counter }))
    }

    /// The parameters, contiguous, in the order in which they were given.
    pub(crate) fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Whether there is such a parameter, and its gradient is asked for.
    pub(crate) fn wanted(&self, index: usize) -> bool {
        self.params.get(index).is_some_and(Tensor::track_op)
    }

    /// The gradient of a parameter, where it is asked for. `write` writes it to fresh memory; or, where the backward that
    /// goes through `node` lays gradients [`aside`] and has one of this parameter, adds it to that.
    pub(crate) fn gradient(
        &self,
        index: usize,
        node: &Tensor,
        write: impl FnOnce(&mut [f32], Write),
    ) -> Result<Option<Tensor>> {
        let Some(param) = self.params.get(index).filter(|param| param.track_op()) else {
            return Ok(None);
        };
        if let Some(earlier) = take_laid(param, node) {
            write_over(&earlier, |elements| write(elements, Write::Add))?;
            return Ok(Some(earlier));
        }
        let mut elements = vec![0f32; param.elem_count()];
        write(&mut elements, Write::Replace);
        Ok(Some(kernel::tensor(elements, param.dims())?))
    }

    /// What an operation on `xs` and the ticket gives back in its backward: the gradient `dx` of `xs`, where it is asked for,
    /// and that of the ticket, once those of the parameters are left to be delivered.
    pub(crate) fn give(
        &self,
        ticket: &Tensor,
        gradients: Vec<Option<Tensor>>,
        dx: Vec<f32>,
        xs: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = match xs.track_op() {
            true => Some(kernel::tensor(dx, xs.dims())?),
            false => None,
        };
        match ticket.track_op() {
            true => Ok((dx, Some(self.deliver(gradients)?))),
            false => Ok((dx, None)),
        }
    }

    /// Leaves the gradients of a backward, in the order of the parameters, and returns the gradient of the ticket. Those
    /// that nobody waits for are dropped.
    fn deliver(&self, gradients: Vec<Option<Tensor>>) -> Result<Tensor> {
        let wanted = gradients
            .into_iter()
            .enumerate()
            .filter(|&(index, _)| self.wanted(index));
        let wanted = wanted
            .filter_map(|(index, gradient)| Some((index, gradient?)))
            .collect();
        Tensor::new(lock(&self.counter).keep(wanted) as f32, &Device::Cpu)
    }
}

impl Counter {
    /// Keeps the gradients of a backward until they are asked for; returns its number.
    fn keep(&mut self, gradients: HashMap<usize, Tensor>) -> u32 {
        self.last = (self.last + 1) % (1 << 24);
        let thread = thread::current().id();
        let mut of_thread = (0..self.waiting.len()).filter(|&i| self.waiting[i].thread == thread);
        if let (Some(oldest), true) = (of_thread.next(), of_thread.count() + 1 >= MOST_WAITING) {
            self.waiting.remove(oldest);
        }
        let number = self.last;
        // Left there by a pass of 2^24 passes ago.
        self.waiting.retain(|earlier| earlier.number != number);
        self.waiting.push_back(Waiting {
            number,
            thread,
            gradients,
        });
        number
    }

    fn take(&mut self, number: u32, index: usize) -> Option<Tensor> {
        let place = self.waiting.iter().position(|waiting| waiting.number == number)?;
        let gradients = &mut self.waiting.get_mut(place)?.gradients;
        let gradient = gradients.remove(&index);
        if gradients.is_empty() {
            self.waiting.remove(place);
        }
        gradient
    }
}

fn lock(counter: &Mutex<Counter>) -> MutexGuard<'_, Counter> {
    // Nothing panics while it holds the lock.
    counter.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One parameter's place.
struct Ticket {
    index: usize,
    counter: Arc<Mutex<Counter>>,
}

impl CustomOp2 for Ticket {
    fn name(&self) -> &'static str {
        "ticket"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.]), ().into()))
    }

    fn bwd(
        &self,
        param: &Tensor,
        rest: &Tensor,
        node: &Tensor,
        number: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(gradient) = lock(&self.counter).take(number.to_scalar::<f32>()? as u32, self.index) else {
            candle_core::bail!("a gradient of one of masksub's operations was asked for before it was computed");
        };
        let rest = rest.track_op().then(|| number.clone());
        Ok((lay_aside(param, node, gradient)?, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{CustomOp1, DType, Var};

    /// Its gradient by parameter i is i, for each of three elements.
    struct Weighted(Deliveries);

    impl CustomOp1 for Weighted {
        fn name(&self) -> &'static str {
            "weighted"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            Ok((CpuStorage::F32(vec![0.]), ().into()))
        }

        fn bwd(&self, ticket: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            let grad = grad.to_scalar::<f32>()?;
            let gradients = (0..self.0.params().len())
                .map(|i| match self.0.wanted(i) {
                    true => Ok(Some(Tensor::new(&[i as f32 * grad; 3], &Device::Cpu)?)),
                    false => Ok(None),
                })
                .collect::<Result<_>>()?;
            assert!(ticket.track_op());
            self.0.deliver(gradients).map(Some)
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
        let (ticket, deliveries) = Deliveries::new(&params).unwrap();
        let counter = deliveries.counter.clone();
        let loss = ticket.apply_op1(Weighted(deliveries)).unwrap().affine(7., 0.).unwrap();
        for _ in 0..2 {
            assert_eq!(gradient(&loss, &vars[0]), Some(vec![0.; 3]));
            assert_eq!(gradient(&loss, &vars[1]), None);
            assert_eq!(gradient(&loss, &vars[2]), Some(vec![14.; 3]));
            assert!(lock(&counter).waiting.is_empty());
        }
    }

    #[test]
    fn gradients_are_laid_aside_where_that_is_asked_for() {
        let (a, b) = (var(), var());
        let computed = b.affine(1., 0.).unwrap();
        let (ticket, deliveries) = Deliveries::new(&[&computed, a.as_tensor()]).unwrap();
        let loss = ticket.apply_op1(Weighted(deliveries)).unwrap();
        let (grads, laid) = aside(&loss, Gradients::new(), || loss.backward().unwrap());
        // What is no variable must go on through candle's backward.
        assert!(grads.get(&a).is_none() && grads.get(&b).is_some());
        assert_eq!(laid.len(), 1);
        assert_eq!(laid[&a.id()].to_vec1::<f32>().unwrap(), [1.; 3]);
        // On top of what is there.
        let (_, laid) = aside(&loss, laid, || loss.backward().unwrap());
        assert_eq!(laid[&a.id()].to_vec1::<f32>().unwrap(), [2.; 3]);
        // Another graph's backward in the midst of this one keeps its own, and so does what comes after a panic.
        let (ticket, deliveries) = Deliveries::new(&[b.as_tensor(), a.as_tensor()]).unwrap();
        let other = ticket.apply_op1(Weighted(deliveries)).unwrap();
        let (nested, laid) = aside(&loss, Gradients::new(), || gradient(&other, &a));
        assert_eq!((nested, laid.len()), (Some(vec![1.; 3]), 0));
        let panicking = || aside(&loss, Gradients::new(), || -> () { panic!("in a backward") });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
        assert_eq!(gradient(&loss, &a), Some(vec![1.; 3]));
    }

    /// Its gradient by the parameter is 1 for each element, written or added; notes which.
    struct Written(Deliveries, Arc<Mutex<Vec<Write>>>);

    impl CustomOp1 for Written {
        fn name(&self) -> &'static str {
            "written"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            Ok((CpuStorage::F32(vec![0.]), ().into()))
        }

        fn bwd(&self, _: &Tensor, node: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
            let gradient = self.0.gradient(0, node, |out, write| {
                self.1.lock().unwrap().push(write);
                for out in out {
                    *out = 1. + if write == Write::Add { *out } else { 0. };
                }
            })?;
            self.0.deliver(vec![gradient]).map(Some)
        }
    }

    #[test]
    fn a_gradient_is_added_to_what_was_laid_aside_of_it_and_to_nothing_else() {
        let a = var();
        let writes = Arc::new(Mutex::new(vec![]));
        let graph = |param: &Tensor| {
            let (ticket, deliveries) = Deliveries::new(&[param]).unwrap();
            ticket.apply_op1(Written(deliveries, writes.clone())).unwrap()
        };
        let values = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap();
        let (loss, other) = (graph(&a), graph(&a));
        let (_, laid) = aside(&loss, Gradients::new(), || loss.backward().unwrap());
        let (_, laid) = aside(&loss, laid, || loss.backward().unwrap());
        assert_eq!(values(&laid[&a.id()]), [2.; 3]);
        // A backward through another graph meanwhile takes nothing from this one's.
        let (nested, laid) = aside(&loss, laid, || gradient(&other, &a));
        assert_eq!((nested, values(&laid[&a.id()])), (Some(vec![1.; 3]), vec![2.; 3]));
        // Nor is anything taken for what is no variable.
        let computed = a.affine(3., 0.).unwrap();
        let loss = graph(&computed);
        let (grads, laid) = aside(&loss, laid, || loss.backward().unwrap());
        assert_eq!(
            (values(grads.get(&a).unwrap()), values(&laid[&a.id()])),
            (vec![3.; 3], vec![2.; 3])
        );
        // What lies there in another form is added to by candle.
        let strided = Tensor::ones((3, 2), DType::F32, &Device::Cpu).unwrap();
        let laid = Gradients::from([(a.id(), strided.narrow(1, 0, 1).unwrap().squeeze(1).unwrap())]);
        let loss = graph(&a);
        let (_, laid) = aside(&loss, laid, || loss.backward().unwrap());
        assert_eq!(values(&laid[&a.id()]), [2.; 3]);
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
            let (ticket, deliveries) = Deliveries::new(&params).unwrap();
            let loss = ticket.apply_op1(Many(deliveries, many)).unwrap();
            let sum = |grad: &Tensor| grad.sum_all().unwrap().to_scalar::<f32>().unwrap();
            let expected = 2. * many as f32;
            match i % 2 {
                0 => {
                    let (_, laid) = aside(&loss, Gradients::new(), || loss.backward().unwrap());
                    assert_eq!(sum(&laid[&var.id()]), expected);
                }
                _ => assert_eq!(sum(loss.backward().unwrap().get(&var).unwrap()), expected),
            }
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| (0..64).into_par_iter().for_each(step));
    }

    /// Its gradient by each of two parameters is as many ones.
    struct Many(Deliveries, usize);

    impl CustomOp1 for Many {
        fn name(&self) -> &'static str {
            "many"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            Ok((CpuStorage::F32(vec![0.]), ().into()))
        }

        fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
            let ones = || Tensor::ones(self.1, DType::F32, &Device::Cpu)?.copy().map(Some);
            self.0.deliver(vec![ones()?, ones()?]).map(Some)
        }
    }

    #[test]
    fn a_parameter_that_candle_does_not_visit_leaves_nothing_for_long() {
        let (a, b) = (var(), var());
        let rounded = a.round().unwrap();
        let (ticket, deliveries) = Deliveries::new(&[&rounded, b.as_tensor()]).unwrap();
        let counter = deliveries.counter.clone();
        let loss = ticket.apply_op1(Weighted(deliveries)).unwrap();
        for _ in 0..3 * MOST_WAITING {
            assert_eq!(gradient(&loss, &b), Some(vec![1.; 3]));
        }
        assert!(lock(&counter).waiting.len() <= MOST_WAITING);
    }

    #[test]
    fn a_pass_may_wait_for_as_many_of_other_threads_as_there_are() {
        let (a, b) = (var(), var());
        let rounded = a.round().unwrap();
        let (ticket, deliveries) = Deliveries::new(&[&rounded, b.as_tensor()]).unwrap();
        let counter = deliveries.counter.clone();
        let held = Tensor::new(5f32, &Device::Cpu).unwrap();
        let number = lock(&counter).keep(HashMap::from([(1, held)]));
        let loss = ticket.apply_op1(Weighted(deliveries)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Each leaves something that nobody asks for.
                for _ in 0..3 * MOST_WAITING {
                    assert_eq!(gradient(&loss, &b), Some(vec![1.; 3]));
                }
            });
        });
        let held = lock(&counter)
            .take(number, 1)
            .map(|held| held.to_scalar::<f32>().unwrap());
        assert_eq!(held, Some(5.));
    }

    #[test]
    fn without_trained_parameters_there_is_no_ticket_to_track() {
        let frozen = var().as_detached_tensor();
        assert!(!Deliveries::new(&[&frozen]).unwrap().0.track_op());
    }

    #[test]
    fn backward_passes_at_the_same_time_do_not_mix() {
        let (a, b) = (var(), var());
        let (ticket, deliveries) = Deliveries::new(&[a.as_tensor(), b.as_tensor()]).unwrap();
        let ys = ticket.apply_op1(Weighted(deliveries)).unwrap();
        std::thread::scope(|scope| {
            for scale in 1..=4u8 {
                let loss = ys.affine(f64::from(scale), 0.).unwrap();
                let b = &b;
                scope.spawn(move || {
                    for _ in 0..200 {
                        assert_eq!(gradient(&loss, b), Some(vec![f32::from(scale); 3]));
                    }
                });
            }
        });
    }
}
