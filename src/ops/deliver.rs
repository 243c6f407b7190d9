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
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, TensorId};

use super::accumulate::accumulate;

thread_local! {
    /// Where this thread's backward is to lay gradients aside, if it is.
    static ASIDE: RefCell<Option<Gradients>> = const { RefCell::new(None) };
}

/// Gradients of variables, which nobody else has.
pub(crate) type Gradients = HashMap<TensorId, Tensor>;

/// Calls `backward` so that gradients of variables are added to `gradients`, in their memory, as soon as they are there,
/// instead of going into candle's store; returns both.
pub(crate) fn aside<T>(gradients: Gradients, backward: impl FnOnce() -> T) -> (T, Gradients) {
    let outer = ASIDE.replace(Some(gradients));
    let result = backward();
    (result, ASIDE.replace(outer).unwrap_or_default())
}

/// Lays a gradient aside, or gives it back where none are to be.
fn lay_aside(param: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    ASIDE.with_borrow_mut(|aside| match aside {
        Some(aside) if param.is_variable() => {
            add_to(aside, param.id(), gradient)?;
            Ok(None)
        }
        _ => Ok(Some(gradient)),
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
    waiting: HashMap<u32, Vec<Option<Tensor>>>,
}

/// The parameters of an operation, and where it leaves their gradients.
pub(super) struct Deliveries {
    params: Vec<Tensor>,
    counter: Arc<Mutex<Counter>>,
}

impl Deliveries {
    /// The ticket, to be made an input of the operation, and its other end, to be kept in it. `params` are on the CPU.
    pub(super) fn new(params: &[&Tensor]) -> Result<(Tensor, Self)> {
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
    pub(super) fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Whether there is such a parameter, and its gradient is asked for.
    pub(super) fn wanted(&self, index: usize) -> bool {
        self.params.get(index).is_some_and(Tensor::track_op)
    }

    /// Leaves the gradients of a backward, in the order of the parameters, and returns the gradient of the ticket. One
    /// that nobody waits for may be `None`.
    pub(super) fn deliver(&self, gradients: Vec<Option<Tensor>>) -> Result<Tensor> {
        let mut counter = lock(&self.counter);
        counter.last = (counter.last + 1) % (1 << 24);
        let number = counter.last;
        counter.waiting.insert(number, gradients);
        Tensor::new(number as f32, &Device::Cpu)
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
        _: &Tensor,
        number: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let key = number.to_scalar::<f32>()? as u32;
        let mut counter = lock(&self.counter);
        let gradient = counter.waiting.get_mut(&key).and_then(|all| all[self.index].take());
        let Some(gradient) = gradient else {
            candle_core::bail!("a gradient of one of masksub's operations was asked for before it was computed");
        };
        // The first parameter is the last to ask.
        if !rest.track_op() {
            counter.waiting.remove(&key);
        }
        Ok((lay_aside(param, gradient)?, rest.track_op().then(|| number.clone())))
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
        let (grads, laid) = aside(Gradients::new(), || loss.backward().unwrap());
        // What is no variable must go on through candle's backward.
        assert!(grads.get(&a).is_none() && grads.get(&b).is_some());
        assert_eq!(laid.len(), 1);
        assert_eq!(laid[&a.id()].to_vec1::<f32>().unwrap(), [1.; 3]);
        // On top of what is there.
        let (_, laid) = aside(laid, || loss.backward().unwrap());
        assert_eq!(laid[&a.id()].to_vec1::<f32>().unwrap(), [2.; 3]);
        // And as ever after that.
        assert_eq!(gradient(&loss, &a), Some(vec![1.; 3]));
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
