//! Sources of the values that a file or another model gives weights, and what models tell them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::VarBuilder;

use crate::error::Result;
use crate::grid::Grid;

/// A source of the values that are not drawn.
pub(crate) trait Source: Send {
    /// The value of a weight, in `shape` where one is asked for and the source can give it, and in `dtype` where that
    /// costs nothing; `None` where it has none.
    fn find(&mut self, name: &str, shape: Option<&Shape>, dtype: DType) -> Result<Option<Value>>;

    /// Tells whether there is a value of that name.
    fn has(&self, name: &str) -> bool;

    /// The variable that `find` gave the value for is there: a run would keep two of each.
    fn taken(&mut self, name: &str);

    /// Names of what was not taken, sorted.
    fn left_over(&self) -> Vec<String>;

    /// Tells whether a weight may be drawn without the user's leave.
    fn may_lack(&self, name: &str) -> bool;

    /// Tells whether one of `left_over` may stay there without the user's leave.
    fn may_leave(&self, name: &str) -> bool;

    /// A model has told how the positions of a weight lie, before it asks for it.
    fn tell_positions(&mut self, _name: &str, _positions: PositionRows) {}

    /// Lines that say what was done to the values.
    fn notes(&self) -> Vec<String>;
}

/// A value that a source has for a weight.
pub(crate) enum Value {
    /// Somebody may have it, too: the weight is a copy.
    Shared(Tensor),
    /// Made for the weight, which takes its memory.
    Own(Var),
}

impl Value {
    pub(super) fn shape(&self) -> &Shape {
        match self {
            Self::Shared(tensor) => tensor.shape(),
            Self::Own(var) => var.shape(),
        }
    }

    pub(super) fn into_var(self, dtype: DType, device: &Device) -> Result<Var> {
        let tensor = match self {
            Self::Own(var) if var.dtype() == dtype && var.device().same_device(device) => return Ok(var),
            Self::Own(var) => var.into_inner(),
            Self::Shared(tensor) => tensor,
        };
        // Detached, it is copied: a variable of the caller's would be taken as it is.
        Ok(Var::from_tensor(&tensor.detach().to_dtype(dtype)?.to_device(device)?)?)
    }
}

/// Rows of a weight of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PositionRows {
    /// Those of tokens in front of the patches'.
    pub(crate) prefix: usize,
    /// Those of the patches, behind them.
    pub(crate) grid: Grid,
}

/// Stands between a weight's name and what is told of it: names have no such character.
const TOLD: char = '\0';

/// Tells how the positions of weight `name` of `vb` lie, which their number does not tell.
///
/// A builder passes on nothing but names and shapes, so that it goes as a question about a tensor that there cannot be:
/// [`Weights`](super::Weights) understands it, any other source says no.
pub(crate) fn tell_positions(vb: &VarBuilder, name: &str, positions: PositionRows) {
    let PositionRows { prefix, grid } = positions;
    vb.contains_tensor(&format!("{name}{TOLD}{prefix} {} {}", grid.height, grid.width));
}

/// What [`tell_positions`] has told.
pub(super) fn told(question: &str) -> Option<(&str, PositionRows)> {
    let (name, rows) = question.split_once(TOLD)?;
    let mut rows = rows.split(' ').map(|count| count.parse().ok());
    let mut next = || rows.next().flatten();
    let (prefix, grid) = (next()?, Grid::new(next()?, next()?));
    Some((name, PositionRows { prefix, grid }))
}

/// Tensors in memory, under the model's own names.
impl Source for BTreeMap<String, Tensor> {
    fn find(&mut self, name: &str, _: Option<&Shape>, _: DType) -> Result<Option<Value>> {
        Ok(self.get(name).cloned().map(Value::Shared))
    }
    fn has(&self, name: &str) -> bool {
        self.contains_key(name)
    }
    fn taken(&mut self, name: &str) {
        self.remove(name);
    }
    fn left_over(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
    fn may_lack(&self, _: &str) -> bool {
        false
    }
    fn may_leave(&self, name: &str) -> bool {
        is_buffer(name)
    }
    fn notes(&self) -> Vec<String> {
        vec![]
    }
}

/// Tells whether a tensor is one that PyTorch modules save though it can be computed: batch norm's count of steps
/// (torch), the indices and masks of windows (Swin).
pub(crate) fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next();
    matches!(
        last,
        Some("num_batches_tracked" | "relative_position_index" | "attn_mask")
    )
}
