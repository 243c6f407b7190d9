//! The kernels' source, one text.

/// What all kernels need first, then each of them.
const FILES: [&str; 8] = [
    include_str!("kernels/common.cu"),
    include_str!("kernels/columns.cu"),
    include_str!("kernels/layer_norm.cu"),
    include_str!("kernels/softmax.cu"),
    include_str!("kernels/activation.cu"),
    include_str!("kernels/residual.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/optimizer.cu"),
];

pub(super) fn source() -> String {
    FILES.concat()
}
