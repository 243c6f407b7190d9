//! How one operation delivers the gradients of any number of parameters.
//!
//! candle's custom operations take three tensors at most. Here the parameters stand outside: each is the input of a
//! small operation that turns it into a ticket, a single number that is handed on from one parameter to the next and at
//! last to the operation proper. Backwards, that one computes all gradients at once, leaves them at the counter under a
//! fresh number, and gives the number as the ticket's gradient; one after the other the parameters' operations then ask
//! for theirs. So every gradient arrives in candle's `GradStore` as any other does, and none is copied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

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

    fn bwd(&self, _: &Tensor, rest: &Tensor, _: &Tensor, number: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
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
        Ok((Some(gradient), rest.track_op().then(|| number.clone())))
    }
}
