//! Operations with any number of parameters in candle's backward, which knows operations of three tensors at most.
//!
//! An operation implements [`Operation`] on slices; [`apply`] makes it a node of candle's graph. Its parameters are
//! inputs of nodes of their own ([`params`]), and where a step is made of two backward passes, the gradients of the
//! second are added to those of the first in their memory ([`accumulator`]).

pub(crate) mod accumulator;
mod in_place;
mod operation;
mod params;

pub(crate) use operation::{apply, Backward, Operation, ParamGrads};
