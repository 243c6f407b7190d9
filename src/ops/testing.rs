//! What the tests of the operations share: one function that puts an operation through everything it must withstand.

use candle_core::{DType, Device, Result, Tensor, Var, D};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::autograd::accumulator::{accumulate, Gradients};
use super::cpu::kernel::SCALAR_ONLY;

pub(crate) fn pool(threads: usize, scalar: bool) -> ThreadPool {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(move |_| SCALAR_ONLY.set(scalar))
        .build()
        .unwrap()
}

/// An operation on some tensors, as a kernel or as a composition.
pub(crate) type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// How the tensor that an operation is given lies in a variable.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Placed {
    /// It is the variable.
    Whole,
    /// It is computed from the variable: tracked, but no variable itself.
    Computed,
    /// Its last two dimensions are swapped there.
    Transposed,
    /// It is a part of the variable's last dimension.
    Narrowed,
    /// It is no variable's: frozen.
    Detached,
}

impl Placed {
    fn var(self, data: &Tensor) -> Result<Var> {
        let data = match self {
            Self::Transposed if data.rank() >= 2 => data.transpose(D::Minus1, D::Minus2)?.contiguous()?,
            Self::Narrowed => data.pad_with_zeros(D::Minus1, 1, 2)?,
            _ => data.clone(),
        };
        Var::from_tensor(&data)
    }

    fn of(self, var: &Var, data: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole => Ok(var.as_tensor().clone()),
            Self::Computed => var.affine(1.0, 0.0),
            Self::Transposed if data.rank() >= 2 => var.transpose(D::Minus1, D::Minus2),
            Self::Transposed => var.affine(1.0, 0.0),
            Self::Narrowed => var.narrow(D::Minus1, 1, data.dim(D::Minus1)?),
            Self::Detached => Ok(var.as_detached_tensor()),
        }
    }
}

/// The result, and the gradients of Σ result * upstream by the variables, each of which must have one unless detached.
fn run(op: Op, inputs: &[Tensor], placed: &[Placed], seed: u64) -> Result<Vec<Tensor>> {
    let vars = inputs
        .iter()
        .zip(placed)
        .map(|(t, p)| p.var(t))
        .collect::<Result<Vec<_>>>()?;
    let args = vars
        .iter()
        .zip(placed)
        .zip(inputs)
        .map(|((v, p), t)| p.of(v, t))
        .collect::<Result<Vec<_>>>()?;
    let ys = op(&args)?;
    let upstream = random(ys.dims(), seed ^ 0xface).to_dtype(ys.dtype())?;
    let loss = (&ys * upstream)?.sum_all()?;
    let mut results = vec![ys.detach()];
    if placed.iter().all(|&p| p == Placed::Detached) {
        return Ok(results);
    }
    let (grads, again) = (loss.backward()?, loss.backward()?);
    // As a step accumulates gradients: once, and once more on top of it.
    let (first, sums) = accumulate(&loss, Gradients::new(), || loss.backward());
    let (second, sums) = accumulate(&loss, sums, || loss.backward());
    let (first, second) = (first?, second?);
    for ((var, placed), i) in vars.iter().zip(placed).zip(0..) {
        let Some(grad) = grads.get(var) else {
            assert_eq!(*placed, Placed::Detached, "no gradient for input {i}");
            continue;
        };
        assert_ne!(*placed, Placed::Detached, "a gradient for input {i}, which is frozen");
        assert_eq!(grad.dims(), var.dims());
        assert_same_bits(grad, again.get(var).unwrap(), "a second backward");
        if grad.dtype() == DType::F32 {
            let parts = [sums.get(&var.id()), first.get(var), second.get(var)];
            let twice = parts.into_iter().flatten().cloned().reduce(|a, b| (a + b).unwrap());
            let error = relative(&twice.unwrap(), &(grad * 2.0)?);
            assert!(error < 1e-6, "gradient {i}, on top of itself, is off by {error:e}");
        }
        results.push(grad.clone());
    }
    Ok(results)
}

/// Standard normal numbers, exact in `f32`, as an `f64` tensor.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let data: Vec<f64> = (0..shape.iter().product())
        .map(|_| f64::from(rng.sample::<f32, _>(rand_distr::StandardNormal)))
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// ||a - b|| / max(||b||, 1e-3)
pub(crate) fn relative(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-3)
}

fn assert_same_bits(a: &Tensor, b: &Tensor, what: &str) {
    let bits = |t| values(t).into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{what} gives other bits");
}

fn norm(tensor: &Tensor) -> f64 {
    values(tensor).into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// How far a gradient is off, where `largest` is the largest norm of all. One that is zero in theory (of a softmax over
/// one number, say) is rounding and nothing else, and is measured by what was rounded: the others.
fn gradient_error(got: &Tensor, want: &Tensor, largest: f64) -> f64 {
    if norm(want) < 1e-6 * largest {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        return norm(&(wide(got) - wide(want)).unwrap()) / largest;
    }
    relative(got, want)
}

fn assert_close(got: &[Tensor], want: &[Tensor], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().skip(1).map(norm).fold(0.0, f64::max);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = if i == 0 {
            relative(got, want)
        } else {
            gradient_error(got, want, largest)
        };
        let part = if i == 0 {
            "the result".into()
        } else {
            format!("gradient {i}")
        };
        // Not `error > tolerance`: an undefined one is wrong too.
        assert!(error <= tolerance, "{what}: {part} is off by {error:e}");
    }
}

fn to_dtype(inputs: &[Tensor], dtype: DType) -> Vec<Tensor> {
    inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect()
}

/// Compares `kernel` with `composition`, forward and backward, on random inputs of the given shapes: in `f32` in every
/// layout, with every input frozen in turn, in the baseline instruction set and for several numbers of threads; with
/// `composition` in `f64`; and in `bf16` and `f16`.
pub(crate) fn check(kernel: Op, composition: Op, shapes: &[&[usize]], seed: u64) {
    let inputs: Vec<_> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, i)| random(shape, seed * 16 + i))
        .collect();
    check_on(kernel, composition, &inputs, seed);
}

/// As [`check`], on inputs that are given, in `f64`.
pub(crate) fn check_on(kernel: Op, composition: Op, inputs: &[Tensor], seed: u64) {
    const TOLERANCE: f64 = 2e-6;
    let whole = vec![Placed::Whole; inputs.len()];
    let name = format!("{:?}", inputs.iter().map(Tensor::dims).collect::<Vec<_>>());
    let single = to_dtype(inputs, DType::F32);
    let kernel_f32 = run(kernel, &single, &whole, seed).unwrap();

    let exact = run(composition, inputs, &whole, seed).unwrap();
    assert_close(&kernel_f32, &exact, TOLERANCE, &format!("{name} beside f64"));

    for everywhere in [Placed::Whole, Placed::Computed, Placed::Transposed, Placed::Narrowed] {
        let placed = vec![everywhere; inputs.len()];
        let got = run(kernel, &single, &placed, seed).unwrap();
        let want = run(composition, &single, &placed, seed).unwrap();
        assert_close(&got, &want, TOLERANCE, &format!("{name} {everywhere:?}"));
    }

    for frozen in 0..inputs.len() {
        for rest in [Placed::Whole, Placed::Computed] {
            let mut placed = vec![rest; inputs.len()];
            placed[frozen] = Placed::Detached;
            let got = run(kernel, &single, &placed, seed).unwrap();
            let mut want = kernel_f32.clone();
            want.remove(frozen + 1);
            assert_close(&got, &want, 0.0, &format!("{name} with input {frozen} frozen"));
        }
    }
    let frozen = vec![Placed::Detached; inputs.len()];
    assert_close(
        &run(kernel, &single, &frozen, seed).unwrap(),
        &kernel_f32[..1],
        0.0,
        &name,
    );

    for threads in [1, 2, 4] {
        let got = pool(threads, false).install(|| run(kernel, &single, &whole, seed).unwrap());
        for (got, want) in got.iter().zip(&kernel_f32) {
            assert_same_bits(got, want, &format!("{name} on {threads} threads"));
        }
    }
    let scalar = pool(2, true).install(|| run(kernel, &single, &whole, seed).unwrap());
    assert_close(
        &scalar,
        &exact,
        TOLERANCE,
        &format!("{name} in the baseline instruction set"),
    );

    // A result that is computed in f32 and rounded once is off by half a unit in the last place at most.
    for (dtype, unit) in [(DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))] {
        let rounded = to_dtype(inputs, dtype);
        let got = run(kernel, &rounded, &whole, seed).unwrap();
        assert!(got.iter().all(|t| t.dtype() == dtype));
        let upstream_rounded = |args: &[Tensor]| composition(args)?.to_dtype(dtype)?.to_dtype(DType::F32);
        let want = run(&upstream_rounded, &to_dtype(&rounded, DType::F32), &whole, seed).unwrap();
        // The gradient from above is rounded as well, and candle sums gradients in the dtype of their tensor.
        assert_close(&got, &want, 2.0 * unit, &format!("{name} in {dtype:?}"));
    }
}

/// Compares the gradients of `composition` with central differences in `f64`, on random inputs of the given shapes. The
/// step balances the rounding of the sum against the third derivative.
pub(crate) fn check_derivative(composition: Op, shapes: &[&[usize]], seed: u64) {
    const STEP: f64 = 1e-5;
    let inputs: Vec<_> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, i)| random(shape, seed * 16 + i))
        .collect();
    let whole = vec![Placed::Whole; inputs.len()];
    let gradients = run(composition, &inputs, &whole, seed).unwrap();
    let loss = |inputs: &[Tensor]| {
        let ys = composition(inputs).unwrap();
        let upstream = random(ys.dims(), seed ^ 0xface);
        values(&(ys * upstream).unwrap()).into_iter().sum::<f64>()
    };
    for (i, input) in inputs.iter().enumerate() {
        let differences: Vec<f64> = (0..input.elem_count())
            .map(|element| {
                let moved = |by: f64| {
                    let mut data = values(input);
                    data[element] += by;
                    let mut inputs = inputs.clone();
                    inputs[i] = Tensor::from_vec(data, input.dims(), &Device::Cpu).unwrap();
                    loss(&inputs)
                };
                (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
            })
            .collect();
        let differences = Tensor::from_vec(differences, input.dims(), &Device::Cpu).unwrap();
        let error = relative(&gradients[i + 1], &differences);
        assert!(error < 1e-8, "gradient of input {i} is off by {error:e}");
    }
}

#[test]
fn zero_in_theory_is_measured_by_the_other_gradients() {
    let of = |value: f64| Tensor::new(&[value, 0.0], &Device::Cpu).unwrap();
    let error = |got: f64, want: f64| gradient_error(&of(got), &of(want), 5.0);
    assert!(error(1.7e-6, 0.0) < 2e-6 && error(1.7e-5, 0.0) > 2e-6);
    // One that is small and not zero is measured by itself.
    assert!(error(1.01e-2, 1e-2) > 9e-3);
}

/// A generator for the shapes that a test draws.
pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
