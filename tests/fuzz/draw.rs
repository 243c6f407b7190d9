//! What a case draws: numbers that nobody would give, beside those that somebody would.

use candle_core::{DType, Device, Tensor};
use rand::seq::IndexedRandom;
use rand::Rng;

/// A count: small for the most part, and sometimes beyond all measure.
pub fn count(rng: &mut impl Rng) -> usize {
    const BEYOND: [usize; 14] = [
        0,
        1000,
        (1 << 20) + 1,
        1 << 24,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        1 << 40,
        1 << 53,
        1 << 62,
        usize::MAX / 2,
        usize::MAX / 2 + 1,
        usize::MAX - 1,
        usize::MAX,
    ];
    if rng.random_bool(0.2) {
        pick(rng, &BEYOND)
    } else {
        rng.random_range(0..17)
    }
}

/// A count that fits in most places.
pub fn small(rng: &mut impl Rng) -> usize {
    rng.random_range(1..9)
}

/// A number: within [0, 1] for the most part, and sometimes none at all.
pub fn float(rng: &mut impl Rng) -> f64 {
    const BEYOND: [f64; 18] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -0.5,
        1e-9,
        1e6,
        -1e6,
        1e30,
        1e38,
        1e39,
        f64::MAX,
        f64::MIN,
        5e-324,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ];
    if rng.random_bool(0.25) {
        pick(rng, &BEYOND)
    } else {
        rng.random()
    }
}

pub fn pick<T: Clone>(rng: &mut impl Rng, from: &[T]) -> T {
    from.choose(rng).expect("something to choose from").clone()
}

pub fn dtype(rng: &mut impl Rng) -> DType {
    const OTHERS: [DType; 7] = [
        DType::F64,
        DType::BF16,
        DType::F16,
        DType::U8,
        DType::U32,
        DType::I64,
        DType::F64,
    ];
    if rng.random_bool(0.97) {
        DType::F32
    } else {
        pick(rng, &OTHERS)
    }
}

/// Numbers of any size, some of them none, in one of several layouts.
pub fn tensor_of(rng: &mut impl Rng, shape: &[usize], dtype: DType) -> candle_core::Result<Tensor> {
    let elements: usize = shape.iter().product();
    let scale = if rng.random_bool(0.03) { 1e30 } else { 1.0 };
    let mut values: Vec<f32> = (0..elements)
        .map(|_| (rng.random::<f32>() * 4.0 - 2.0) * scale)
        .collect();
    if rng.random_bool(0.03) {
        for _ in 0..elements.min(3) {
            let at = rng.random_range(0..elements);
            values[at] = pick(rng, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0]);
        }
    }
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
    layout(rng, tensor)
}

/// The same numbers, lying otherwise.
fn layout(rng: &mut impl Rng, tensor: Tensor) -> candle_core::Result<Tensor> {
    let rank = tensor.rank();
    match rng.random_range(0..6) {
        0 if rank >= 2 => tensor
            .transpose(rank - 1, rank - 2)?
            .contiguous()?
            .transpose(rank - 1, rank - 2),
        1 if rank >= 1 => {
            let dim = rng.random_range(0..rank);
            tensor.pad_with_zeros(dim, 1, 2)?.narrow(dim, 1, tensor.dims()[dim])
        }
        2 if rank >= 1 && tensor.dims()[0] > 0 => tensor.narrow(0, 0, 1)?.broadcast_as(tensor.shape()),
        _ => Ok(tensor),
    }
}

/// A tensor of a shape that is as wanted for the most part, and of that dtype.
pub fn tensor(rng: &mut impl Rng, wanted: &[usize]) -> candle_core::Result<Tensor> {
    let shape = match rng.random_range(0..80) {
        0 => (0..rng.random_range(0..6)).map(|_| rng.random_range(0..7)).collect(),
        1 if !wanted.is_empty() => {
            let mut shape = wanted.to_vec();
            let at = rng.random_range(0..shape.len());
            shape[at] = rng.random_range(0..9);
            shape
        }
        2 => wanted.iter().skip(1).copied().collect(),
        _ => wanted.to_vec(),
    };
    let dtype = dtype(rng);
    tensor_of(rng, &shape, dtype)
}

/// Text of letters, dots, slashes, and whatever else.
pub fn text(rng: &mut impl Rng) -> String {
    const CHARS: [char; 12] = ['a', 'b', '.', '/', '0', '9', ' ', '\n', '\0', 'é', '"', '-'];
    (0..rng.random_range(0..12)).map(|_| pick(rng, &CHARS)).collect()
}
