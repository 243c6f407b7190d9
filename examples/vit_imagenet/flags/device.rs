//! The `--device` flag, and `--tf32`.

use anyhow::{ensure, Result};
use candle_core::{Device, Error};

/// The device of that name: `cpu`, `cuda`, `cuda:N` or `metal`.
///
/// # Errors
/// A sentence, when there is no such device or the examples were built without its feature.
pub fn parse(name: &str) -> Result<Device, String> {
    let no_device = || format!("{name} is no device, but must be cpu, cuda, cuda:N with the number of a GPU, or metal");
    let device = match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("cuda", ordinal) => Device::new_cuda(ordinal.parse().map_err(|_| no_device())?),
        ("metal", "0") => Device::new_metal(0),
        _ => return Err(no_device()),
    };
    device.map_err(|error| match error {
        Error::NotCompiledWithCudaSupport => format!("{name} needs the feature cuda: cargo run --features cuda …"),
        Error::NotCompiledWithMetalSupport => format!("{name} needs the feature metal: cargo run --features metal …"),
        error => format!("{name} cannot be used: {}", masksub::Error::from(error)),
    })
}

/// Has all products of f32 on CUDA devices round their factors to TF32.
pub fn allow_tf32(device: &Device) -> Result<()> {
    ensure!(
        device.is_cuda(),
        "--tf32 is for --device cuda: the products of other devices have no TF32"
    );
    candle_core::cuda::set_gemm_reduced_precision_f32(true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{allow_tf32, parse};

    #[test]
    fn tf32_is_for_cuda() {
        let error = allow_tf32(&parse("cpu").unwrap()).unwrap_err().to_string();
        assert!(error.contains("--tf32 is for --device cuda"), "{error}");
    }

    #[test]
    fn knows_its_names_and_says_what_is_missing() {
        assert!(parse("cpu").unwrap().is_cpu());
        for name in ["gpu", "cpu:1", "cuda:x", "cuda:-1", ""] {
            assert!(parse(name).unwrap_err().contains("must be cpu"), "{name}");
        }
        if !cfg!(feature = "cuda") {
            assert!(parse("cuda:1").unwrap_err().contains("--features cuda"));
        }
        if !cfg!(feature = "metal") {
            assert!(parse("metal").unwrap_err().contains("--features metal"));
        }
    }
}
