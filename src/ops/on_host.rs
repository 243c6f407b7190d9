//! The numbers of a tensor, wherever it is.

use candle_core::{DType, Device, Result, Tensor};

/// All elements in their order, as f64.
pub(crate) fn on_host(tensor: &Tensor) -> Result<Vec<f64>> {
    // An empty tensor may lie outside its storage.
    if tensor.elem_count() == 0 {
        return Ok(vec![]);
    }
    // First to the host, then wider: Metal has no f64.
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    tensor.flatten_all()?.to_vec1()
}
