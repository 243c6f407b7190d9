//! Gradients of one backward pass added to those of an earlier one in their memory.
//!
//! candle adds each gradient to zeros in its `GradStore`: three passes over as many numbers as the model has, and one
//! more to add two stores. Who calls backward and can take gradients without a store calls [`accumulate`].

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId};

use super::in_place::add_assign;
use crate::ops::route;

thread_local! {
    /// Where this thread's backward accumulates gradients, if it does.
    static ACCUMULATOR: RefCell<Option<Accumulator>> = const { RefCell::new(None) };
}

/// Gradients of variables, which nobody else has.
pub(crate) type Gradients = HashMap<TensorId, Tensor>;

struct Accumulator {
    /// The graph whose backward this is. A thread that waits for others may be given another step to do meanwhile.
    nodes: HashSet<TensorId>,
    gradients: Gradients,
}

/// Puts back, also when a backward panics, what was there before it.
struct Restore(Option<Accumulator>);

impl Drop for Restore {
    fn drop(&mut self) {
        ACCUMULATOR.set(self.0.take());
    }
}

/// Calls `backward`, which goes through the graph of `loss`, so that gradients of variables are added to `gradients`,
/// in their memory, as soon as they are there, instead of going into candle's store; returns both. Sums are those of a
/// joint backward up to rounding. After an error the gradients are incomplete: one may have been taken out to be added
/// to.
pub(crate) fn accumulate<T>(loss: &Tensor, gradients: Gradients, backward: impl FnOnce() -> T) -> (T, Gradients) {
    let nodes = loss.sorted_nodes().iter().map(|node| node.id()).collect();
    let restore = Restore(ACCUMULATOR.replace(Some(Accumulator { nodes, gradients })));
    let result = backward();
    let gradients = ACCUMULATOR.take().map(|accumulator| accumulator.gradients);
    drop(restore);
    (result, gradients.unwrap_or_default())
}

/// Adds a gradient that nobody else has.
pub(crate) fn add_to(gradients: &mut Gradients, id: TensorId, gradient: Tensor) -> Result<()> {
    let sum = sum(gradients.remove(&id), gradient)?;
    gradients.insert(id, sum);
    Ok(())
}

/// A gradient, added to the `earlier` one in its memory, where there is one.
fn sum(earlier: Option<Tensor>, gradient: Tensor) -> Result<Tensor> {
    match earlier {
        Some(earlier) => add_assign(earlier, &gradient),
        None => Ok(gradient),
    }
}

/// Accumulates the gradient that `node` has of `param`, or gives it back where this backward does not.
pub(super) fn push(param: &Tensor, node: &Tensor, gradient: Tensor) -> Result<Option<Tensor>> {
    let id = param.id();
    let asked =
        ACCUMULATOR.with_borrow(|accumulator| accumulator.as_ref().is_some_and(|a| a.nodes.contains(&node.id())));
    if !asked || !param.is_variable() {
        return Ok(Some(gradient));
    }
    let with_gradients = |f: &mut dyn FnMut(&mut Gradients) -> Option<Tensor>| {
        ACCUMULATOR.with_borrow_mut(|accumulator| accumulator.as_mut().and_then(|a| f(&mut a.gradients)))
    };
    // Nothing is borrowed during the sum, for which other threads may be waited for.
    let sum = sum(with_gradients(&mut |gradients| gradients.remove(&id)), gradient)?;
    with_gradients(&mut |gradients| gradients.insert(id, sum.clone()));
    Ok(None)
}

/// Takes what has been accumulated of `param` out, for `node` to add to it in its memory, where it can.
pub(super) fn take(param: &Tensor, node: &Tensor) -> Option<Tensor> {
    ACCUMULATOR.with_borrow_mut(|accumulator| {
        let accumulator = accumulator.as_mut().filter(|a| a.nodes.contains(&node.id()))?;
        let earlier = accumulator.gradients.get(&param.id())?;
        let fits = route::is_f32_slice(earlier) && earlier.dims() == param.dims();
        fits.then(|| accumulator.gradients.remove(&param.id())).flatten()
    })
}
