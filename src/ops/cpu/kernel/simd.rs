//! Functions compiled for several instruction sets, of which the CPU's best is taken at run time.

use pulp::{Simd, WithSimd};

#[cfg(test)]
thread_local! {
    /// True on the threads whose kernels are to use the baseline instruction set.
    pub(crate) static SCALAR_ONLY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `op` compiled for the best instruction set of this CPU.
#[inline]
pub(crate) fn dispatch<O: WithSimd>(op: O) -> O::Output {
    #[cfg(test)]
    if SCALAR_ONLY.get() {
        return op.with_simd(pulp::Scalar::new());
    }
    // `pulp::Arch` knows AVX2 only with a feature that `gemm`, and so candle, is built without; the token itself is
    // always there. AVX-512 was measured and dropped: the loops are limited by memory.
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return Simd::vectorize(simd, op);
    }
    pulp::Arch::new().dispatch(op)
}

/// Defines a function whose body is compiled for several instruction sets and dispatched at run time.
///
/// In the body `S` names the instruction set, for [`fma`] and the functions of [`math`](crate::ops::cpu::math).
/// Whatever the body calls must be `#[inline(always)]`, or it would be compiled for the baseline.
macro_rules! simd_fn {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$attribute])*
        $vis fn $name($($arg: $ty),*) -> $out {
            struct Call<T>(T);
            impl pulp::WithSimd for Call<($($ty,)*)> {
                type Output = $out;
                #[inline(always)]
                fn with_simd<$S: pulp::Simd>(self, _: $S) -> $out {
                    let ($($arg,)*) = self.0;
                    $body
                }
            }
            $crate::ops::cpu::kernel::dispatch(Call(($($arg,)*)))
        }
    };
}
pub(crate) use simd_fn;

/// `a * b + c`, rounded once where the instruction set can; without one, `f32::mul_add` would be a library call.
#[inline(always)]
pub(crate) fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR || cfg!(target_arch = "wasm32") {
        a * b + c
    } else {
        a.mul_add(b, c)
    }
}
