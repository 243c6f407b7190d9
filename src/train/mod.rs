//! The pieces of a training recipe: optimizers, schedules, averaging, mixing, accumulation. There is no loop: a trainer
//! owns its own and takes what it needs.

pub mod accumulate;
pub mod checkpoint;
pub mod ema;
pub mod mix;
pub mod optim;
pub mod schedule;
