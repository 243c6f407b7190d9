//! Copies that nobody else has.

use candle_core::{Result, Tensor};

/// The numbers of a tensor in memory of its own, one after the other, whatever the layout that they had: candle's
/// `copy` keeps that, were it one number for many elements, and an empty tensor's may lie outside its storage. No
/// gradient flows through it.
pub(crate) fn fresh(tensor: &Tensor) -> Result<Tensor> {
    if tensor.elem_count() == 0 {
        return tensor.zeros_like();
    }
    tensor.detach().force_contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn has_a_layout_of_its_own() {
        let numbers = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let repeated = numbers.get(1).unwrap().broadcast_as((2, 3)).unwrap();
        for (tensor, expected) in [
            (numbers.clone(), [[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]]),
            (repeated, [[4.0, 5.0, 6.0]; 2]),
        ] {
            let copy = fresh(&tensor).unwrap();
            assert_eq!(copy.to_vec2::<f32>().unwrap(), expected);
            assert!(copy.is_contiguous() && copy.layout().start_offset() == 0 && !copy.layout().has_internal_overlap());
        }
        let empty = Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap();
        let behind = empty.pad_with_zeros(1, 1, 1).unwrap().narrow(1, 2, 0).unwrap();
        assert_eq!(
            fresh(&behind).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [0f32; 0]
        );
    }
}
