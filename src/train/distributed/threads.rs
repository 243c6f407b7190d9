//! Ranks that are threads of one process: for tests, and for several devices of a machine without MPI.
//!
//! What one gives lies in the memory of all, and nothing is sent. The first rank that ends, by an error, a panic or
//! otherwise, wakes those that wait for it.

use std::any::Any;
use std::fmt::Display;
use std::ops::AddAssign;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, ScopedJoinHandle};

use candle_core::{DType, Tensor, WithDType};

use super::agreement::other;
use super::{check_root, Communicator};
use crate::check;
use crate::error::{Error, Result};
use crate::ops;

/// Runs `rank` on so many threads, each with a communicator of its own, and returns what each ended with, in the order of
/// the ranks. It returns when all have ended.
///
/// # Errors
/// [`Error::InvalidArgument`] when `size` is not 1 to 2^20. A rank's panic is, in the list, its [`Error::OtherRank`], and so
/// is that the system has no thread for it.
pub fn run<T, E>(
    size: usize,
    rank: impl Fn(&Threads) -> std::result::Result<T, E> + Sync,
) -> Result<Vec<std::result::Result<T, E>>>
where
    T: Send,
    E: From<Error> + Display + Send,
{
    run_on(size, |_| Builder::new(), rank)
}

/// [`run`], on the thread that `builder` gives each rank.
fn run_on<T, E>(
    size: usize,
    builder: impl Fn(usize) -> Builder,
    rank: impl Fn(&Threads) -> std::result::Result<T, E> + Sync,
) -> Result<Vec<std::result::Result<T, E>>>
where
    T: Send,
    E: From<Error> + Display + Send,
{
    check::counts([("size", size)])?;
    let hub = Hub::new(size);
    let work = |number: usize| {
        let ranks = Threads {
            rank: number,
            hub: hub.clone(),
        };
        // Whatever the closure shares with others and leaves half-done when it panics, those see the panic, too: they end.
        let ended = catch_unwind(AssertUnwindSafe(|| rank(&ranks)));
        let why = match &ended {
            Ok(Ok(_)) => "it has ended while others waited for it".into(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => format!("it panicked: {}", text(&**panic)),
        };
        hub.leave(number, why.clone());
        ended.unwrap_or_else(|_| Err(other(number, why).into()))
    };
    let work = &work;
    std::thread::scope(|scope| {
        let start = |number: usize| {
            let started = builder(number).spawn_scoped(scope, move || work(number));
            started.map_err(|error| {
                let why = format!("the system has no thread for it: {error}");
                // Those that have started wait for it.
                hub.leave(number, why.clone());
                other(number, why)
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        let join = |(number, thread): (usize, Result<ScopedJoinHandle<_>>)| {
            let ended: std::thread::Result<_> = thread?.join();
            ended.unwrap_or_else(|_| Err(other(number, "it panicked").into()))
        };
        Ok(threads.into_iter().enumerate().map(join).collect())
    })
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// One of the threads that [`run`] started.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    hub: Arc<Hub>,
}

impl Threads {
    /// What each rank gives, in their order.
    fn exchange<T: Send + Sync + 'static>(&self, given: T) -> Result<Vec<Arc<T>>> {
        let all = self.hub.exchange(self.rank, Arc::new(given))?;
        let alike = all.iter().enumerate().map(|(rank, given)| {
            let given = given.clone().downcast::<T>();
            given.map_err(|_| other(rank, "it does not call the same operation"))
        });
        alike.collect()
    }

    /// Each rank sums its part of the values, in the order of the ranks.
    fn sum_of<T: WithDType + AddAssign + Send + Sync>(&self, values: &Tensor) -> Result<Tensor> {
        let all = self.exchange(values.to_vec1::<T>()?)?;
        let n = values.elem_count();
        if let Some(rank) = all.iter().position(|theirs| theirs.len() != n) {
            return Err(other(rank, format!("it gives {} values, not {n}", all[rank].len())));
        }
        let size = self.size();
        let range = self.rank * n / size..(self.rank + 1) * n / size;
        let mut part = all[0][range.clone()].to_vec();
        for theirs in &all[1..] {
            part.iter_mut()
                .zip(&theirs[range.clone()])
                .for_each(|(sum, &value)| *sum += value);
        }
        let parts = self.exchange(part)?;
        let parts: Vec<&[T]> = parts.iter().map(|part| &part[..]).collect();
        Ok(Tensor::from_vec(parts.concat(), n, values.device())?)
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.size
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        match values.dtype() {
            DType::F64 => self.sum_of::<f64>(values),
            _ => self.sum_of::<f32>(values),
        }
    }

    fn broadcast(&self, values: &Tensor, root: usize) -> Result<Tensor> {
        check_root(self, root)?;
        // A copy: what a rank does to its own afterwards is its own affair.
        let given = if self.rank == root {
            Some(ops::fresh(values)?)
        } else {
            None
        };
        let all = self.exchange(given)?;
        match all[root].as_ref() {
            Some(sent) if sent.dims() == values.dims() && sent.dtype() == values.dtype() => {
                Ok(sent.to_device(values.device())?)
            }
            _ => Err(other(root, "it sends other values than are waited for")),
        }
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = self.exchange(bytes.to_vec())?;
        Ok(all.iter().map(|bytes| bytes.to_vec()).collect())
    }
}

type Given = Arc<dyn Any + Send + Sync>;

/// Where the threads meet.
#[derive(Debug)]
struct Hub {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of the ranks that have come to this meeting.
    given: Vec<Option<Given>>,
    /// Once all have come, and until all have read it.
    all: Option<Arc<Vec<Given>>>,
    readers: usize,
    /// The first rank that left, and why.
    gone: Option<(usize, String)>,
}

impl Hub {
    fn new(size: usize) -> Arc<Self> {
        let state = State {
            given: vec![None; size],
            ..State::default()
        };
        Arc::new(Self {
            size,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn exchange(&self, rank: usize, given: Given) -> Result<Arc<Vec<Given>>> {
        let mut state = self.lock();
        // Somebody may still have to read what the last meeting had.
        while state.all.is_some() {
            state = self.wait(state);
        }
        state.given[rank] = Some(given);
        if state.given.iter().all(Option::is_some) {
            let all = state.given.iter_mut().filter_map(Option::take).collect();
            state.all = Some(Arc::new(all));
            state.readers = self.size;
            self.changed.notify_all();
        }
        loop {
            if let Some(all) = state.all.clone() {
                state.readers -= 1;
                if state.readers == 0 {
                    state.all = None;
                    self.changed.notify_all();
                }
                return Ok(all);
            }
            if let Some((gone, why)) = &state.gone {
                return Err(other(*gone, why));
            }
            state = self.wait(state);
        }
    }

    fn leave(&self, rank: usize, why: String) {
        let mut state = self.lock();
        state.gone.get_or_insert((rank, why));
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn one_that_gets_no_thread_ends_the_others() {
        // No address space has room for that stack.
        let stack = |rank| match rank {
            1 => Builder::new().stack_size(isize::MAX as usize / 2),
            _ => Builder::new(),
        };
        let sum = |ranks: &Threads| ranks.sum(&Tensor::ones(2, DType::F32, &Device::Cpu)?);
        for ended in run_on(3, stack, sum).unwrap() {
            let message = ended.unwrap_err().to_string();
            assert!(
                message.starts_with("rank 1: the system has no thread for it: "),
                "{message}"
            );
        }
    }
}
