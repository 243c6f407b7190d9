//! The kernels on the CPU, for the tests: compiled by a C++ compiler from the same source, launched by the same code.
//!
//! `emulator.h` is what stands in for CUDA. Where there is no C++ compiler the tests say so and check nothing, unless
//! `MASKSUB_KERNELS=check` asks for them, as `.ci/kernels` does.

use std::process::Command;
use std::sync::{Mutex, OnceLock};

use candle_core::{DType, Device, Tensor};

use super::launch::{Address, Element, Launch};
use super::source::source;

/// The compiled kernels, if there is a compiler. One launch at a time.
fn library() -> Option<&'static Mutex<libloading::Library>> {
    static LIBRARY: OnceLock<Option<Mutex<libloading::Library>>> = OnceLock::new();
    LIBRARY.get_or_init(|| compile().map(Mutex::new)).as_ref()
}

/// Whether kernels can be run here.
pub(super) fn is_here() -> bool {
    library().is_some()
}

fn compile() -> Option<libloading::Library> {
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let directory = tempfile::tempdir().unwrap();
    let [text, library] = ["kernels.cpp", "kernels.so"].map(|name| directory.path().join(name));
    std::fs::write(&text, [include_str!("emulator.h"), &source()].concat()).unwrap();
    let mut command = Command::new(&compiler);
    command.args([
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Werror",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-o",
    ]);
    match command.arg(&library).arg(&text).status() {
        Ok(status) => assert!(status.success(), "{compiler} has not compiled the kernels"),
        Err(error) => {
            let required = std::env::var("MASKSUB_KERNELS").is_ok_and(|value| value == "check");
            assert!(!required, "{compiler}: {error}");
            eprintln!("{compiler}: {error}: the kernels for CUDA are NOT CHECKED");
            return None;
        }
    }
    // SAFETY: nothing runs when it is loaded but the constructors of the C++ library.
    Some(unsafe { libloading::Library::new(&library) }.unwrap())
}

/// As in `emulator.h`.
#[repr(C)]
struct Grid {
    grid: [u32; 2],
    block: [u32; 2],
    order: u32,
}

/// Bytes around a tensor in which nobody writes, and from which nobody reads: as numbers they are NaN.
const GUARD: usize = 512;

/// A tensor in the emulator's memory.
pub(super) struct Buffer {
    words: Vec<u64>,
    bytes: usize,
    element: Element,
}

impl Buffer {
    /// Of undefined elements.
    pub(super) fn new(element: Element, len: usize) -> Self {
        let bytes = len * size_of(element);
        Self {
            words: vec![u64::MAX; (bytes + 2 * GUARD).div_ceil(8)],
            bytes,
            element,
        }
    }

    /// Of a tensor's elements, which the dtype holds.
    pub(super) fn of(element: Element, tensor: &Tensor) -> Self {
        let mut buffer = Self::new(element, tensor.elem_count());
        for (i, x) in values(tensor).iter().enumerate() {
            let bits = (*x as f32).to_bits();
            match element {
                Element::F32 => buffer.write(i * 4, &bits.to_ne_bytes()),
                Element::BF16 => buffer.write(i * 2, &((bits >> 16) as u16).to_ne_bytes()),
            }
        }
        buffer
    }

    /// Of whole numbers.
    pub(super) fn of_u32(numbers: &[u32]) -> Self {
        let mut buffer = Self::new(Element::F32, numbers.len());
        for (i, number) in numbers.iter().enumerate() {
            buffer.write(i * 4, &number.to_ne_bytes());
        }
        buffer
    }

    /// Of so many undefined `f64`, which [`f64_values`](Self::f64_values) reads.
    pub(super) fn of_f64(len: usize) -> Self {
        Self::new(Element::F32, 2 * len)
    }

    pub(super) fn f64_values(&mut self) -> Vec<f64> {
        self.values();
        let len = self.bytes;
        let bytes = &bytes_of(&mut self.words)[GUARD..][..len];
        let numbers = bytes
            .chunks_exact(8)
            .map(|bytes| f64::from_ne_bytes(bytes.try_into().unwrap()));
        numbers.collect()
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let target = bytes_of(&mut self.words);
        target[GUARD + at..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes / size_of(self.element)
    }

    pub(super) fn address(&mut self) -> Address {
        self.words.as_mut_ptr() as Address + GUARD as Address
    }

    /// The elements, once nobody has written around them.
    pub(super) fn values(&mut self) -> Vec<f64> {
        let (size, element, len) = (size_of(self.element), self.element, self.bytes);
        let bytes = bytes_of(&mut self.words);
        let around = bytes[..GUARD].iter().chain(&bytes[GUARD + len..]);
        assert!(
            around.copied().all(|byte| byte == u8::MAX),
            "a kernel wrote beside a tensor"
        );
        let elements = bytes[GUARD..][..len].chunks_exact(size);
        let elements = elements.map(|bytes| match element {
            Element::F32 => f32::from_ne_bytes(bytes.try_into().unwrap()),
            Element::BF16 => f32::from_bits(u32::from(u16::from_ne_bytes(bytes.try_into().unwrap())) << 16),
        });
        elements.map(f64::from).collect()
    }
}

fn size_of(element: Element) -> usize {
    match element {
        Element::F32 => 4,
        Element::BF16 => 2,
    }
}

fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: the same memory, and any byte is one.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// In which order threads run: theirs, the last first, and at random.
pub(super) const ORDERS: [u32; 3] = [0, 1, 7];

/// Runs kernels one after the other.
pub(super) fn launch<'a>(order: u32, launches: impl IntoIterator<Item = &'a Launch>) {
    type Kernel = unsafe extern "C" fn(*const u64, *const Grid) -> i32;
    let library = library()
        .unwrap()
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for launch in launches {
        let &Launch { grid, block, .. } = launch;
        let grid = Grid { grid, block, order };
        // SAFETY: all of them are of this type; the addresses are the tests' buffers'.
        let status = unsafe {
            let kernel: libloading::Symbol<Kernel> = library.get(launch.kernel.as_bytes()).unwrap();
            kernel(launch.args.as_ptr(), &grid)
        };
        match status {
            0 => {}
            1 => panic!("{}: threads wait for each other", launch.kernel),
            _ => panic!("{}: a block of {block:?} threads", launch.kernel),
        }
    }
}

/// All elements.
pub(super) fn values(tensor: &Tensor) -> Vec<f64> {
    let wide = tensor.to_dtype(DType::F64).unwrap();
    wide.flatten_all().unwrap().to_vec1().unwrap()
}

/// The elements rounded to the dtype, in `f64`.
pub(super) fn rounded(element: Element, tensor: &Tensor) -> Tensor {
    let dtype = match element {
        Element::F32 => DType::F32,
        Element::BF16 => DType::BF16,
    };
    // By way of f32: candle's f64 to bf16 on the CPU rounds to nearest, too.
    let tensor = tensor.to_dtype(DType::F32).unwrap().to_dtype(dtype).unwrap();
    tensor.to_dtype(DType::F64).unwrap().to_device(&Device::Cpu).unwrap()
}

/// An error unless a kernel's result is the exact one but for `f32` arithmetic and one rounding to the dtype.
pub(super) fn assert_close(element: Element, what: &str, result: &[f64], exact: &Tensor, tolerance: f64) {
    let exact = values(exact);
    assert_eq!(result.len(), exact.len(), "{what}");
    let scale = exact.iter().fold(0f64, |scale, x| scale.max(x.abs()));
    for (i, (&result, &exact)) in result.iter().zip(&exact).enumerate() {
        let rounding = match element {
            Element::F32 => 0.0,
            // Half a unit in the last place, of 8 bits.
            Element::BF16 => exact.abs() * 2f64.powi(-8),
        };
        let error = (result - exact).abs();
        let allowed = rounding + tolerance * scale;
        assert!(
            error <= allowed,
            "{what}, {element:?}: element {i} is {result:e}, not {exact:e} ({error:e})"
        );
    }
}
