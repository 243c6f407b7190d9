//! What stands in the place of candle's operations that have no backward.

/// The line that replaces the call at which candle's backward stopped for this `reason`, if that is what it says.
pub(super) fn remedy(reason: &str) -> Option<&'static str> {
    let unsupported = ["backward not supported", "backward is not supported"];
    if !unsupported.iter().any(|words| reason.contains(words)) {
        // A gradient of another shape than what it belongs to: of candle's operations its convolution alone computes
        // such; one of somebody's own may.
        return reason.contains("shape mismatch in add").then_some(CONV2D);
    }
    let known = REMEDIES.iter().find(|(operation, _)| reason.contains(operation));
    Some(known.map_or(ANY, |&(_, remedy)| remedy))
}

/// By what candle calls the operation.
const REMEDIES: [(&str, &str); 5] = [
    (
        "maxpool2d",
        "Max pooling whose windows overlap has no backward in candle (and where it has one, gradients come out divided by \
         the window's size): call masksub::ops::max_pool2d(&xs, kernel, stride, 0) in its place, or take \
         masksub::models::resnet for a ResNet",
    ),
    (
        "avgpool2d",
        "Average pooling whose windows overlap has no backward in candle: call \
         masksub::ops::avg_pool2d(&xs, kernel, stride) in its place",
    ),
    (
        "upsample_bilinear2d",
        "Bilinear interpolation has no backward in candle: call masksub::ops::upsample_bilinear2d(&xs, h, w, align_corners) \
         in its place, or upsample_bilinear2d_with_scale",
    ),
    (
        "upscaling factors",
        "Nearest interpolation has a backward in candle only where both sides grow by the same whole number: call \
         masksub::ops::upsample_nearest2d(&xs, h, w) in its place, or upsample_nearest1d(&xs, size)",
    ),
    (
        "conv-transpose1d",
        "A transposed convolution of sequences has no backward in candle: take masksub::nn::ConvTranspose1d, or call \
         masksub::ops::conv_transpose1d(&xs, &weight, bias, config)",
    ),
];

const CONV2D: &str =
    "A backward gave a gradient of another shape than its input. candle's convolution does where the stride \
    leaves unlike remainders of the two sides: take masksub::nn::Conv2d, or call \
    masksub::ops::conv2d(&xs, &weight, bias, config). A custom operation whose bwd does is to be mended itself";

const ANY: &str = "candle has no backward for this operation: replace it by one that has, or detach what leads to it";

#[cfg(test)]
mod tests;
