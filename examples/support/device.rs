//! The `--device` flag.

use candle_core::Device;

/// The device of that name: `cpu`, `cuda`, `cuda:N` or `metal`.
///
/// # Errors
/// A sentence, when there is no such device or the examples were built without its feature.
pub fn parse(name: &str) -> Result<Device, String> {
    let device = match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("cuda", ordinal) => {
            let ordinal = ordinal
                .parse()
                .map_err(|_| format!("{name} is no device: N in cuda:N is a number"))?;
            Device::new_cuda(ordinal)
        }
        ("metal", "0") => Device::new_metal(0),
        _ => return Err(format!("{name} is no device, but must be cpu, cuda, cuda:N or metal")),
    };
    device.map_err(|error| format!("{name} cannot be used: {error}"))
}
