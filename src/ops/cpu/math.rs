//! Vectorisable elementary functions in `f32`. The polynomials were fitted for this crate (minimax, relative error).

use pulp::Simd;

use super::kernel::fma;

/// exp(x), to 1e-7 relative. 0 below -87.3, where the result would be subnormal; infinite from 88.4 up.
///
/// With n = round(x / ln 2) and r = x - n ln 2, exp(x) = 2^n exp(r), where |r| is at most ln(2) / 2.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded to an integer in its lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has enough trailing zeros for n times it to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that an undefined x stays undefined.
    let x_low = if x > 89.0 { 89.0 } else { x };
    let shifted = fma::<S>(x_low, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<S>(n, -LN2_HIGH, x_low);
    let r = fma::<S>(n, -LN2_LOW, r);
    let p = fma::<S>(0.001_381_461_2, r, 0.008_368_711);
    let p = fma::<S>(p, r, 0.041_668_39);
    let p = fma::<S>(p, r, 0.166_665_21);
    let p = fma::<S>(p, r, 0.499_999_94);
    let p = fma::<S>(p * r, r, r) + 1.0;
    // 2^n: the integer n moved to the exponent's place, plus the exponent's bias.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 {
        0.0
    } else {
        p * scale
    }
}

/// The standard normal distribution at x: its cumulative distribution Φ(x) = (1 + erf(x/√2)) / 2, and its density φ(x).
///
/// Φ(-z) = exp(-z²/2) R(z) for z >= 0, with R a polynomial in 1 / (1 + 0.475 z): no difference of nearly equal numbers
/// is taken, so that the lower tail keeps its relative precision (4e-7 near 0, growing with z² as exp's argument does).
#[inline(always)]
pub(crate) fn normal<S: Simd>(x: f32) -> (f32, f32) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let z = x.abs();
    let e = exp::<S>(-0.5 * x * x);
    let t = 1.0 / fma::<S>(z, 0.475, 1.0);
    let p = fma::<S>(0.050_781_056, t, -0.271_124_93);
    let p = fma::<S>(p, t, 0.574_237_6);
    let p = fma::<S>(p, t, -0.552_917_66);
    let p = fma::<S>(p, t, 0.154_119_61);
    let p = fma::<S>(p, t, 0.012_294_735);
    let p = fma::<S>(p, t, 0.154_219_46);
    let p = fma::<S>(p, t, 0.188_870_49);
    let p = fma::<S>(p, t, 0.189_519_64);
    let below = e * (p * t);
    (if x > 0.0 { 1.0 - below } else { below }, e * INV_SQRT_TAU)
}

/// The logistic function 1 / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::kernel::simd_fn;

    simd_fn! {
        fn exp_all<S>(xs: &[f32], ys: &mut [f32]) -> () {
            for (y, &x) in ys.iter_mut().zip(xs) {
                *y = exp::<S>(x);
            }
        }
    }

    simd_fn! {
        fn normal_all<S>(xs: &[f32], cdf: &mut [f32], pdf: &mut [f32]) -> () {
            for ((c, p), &x) in cdf.iter_mut().zip(pdf.iter_mut()).zip(xs) {
                (*c, *p) = normal::<S>(x);
            }
        }
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        (0..=200_000)
            .map(|i| from + (to - from) * i as f32 / 200_000.0)
            .collect()
    }

    fn worst(got: &[f32], want: impl Fn(usize) -> f64) -> f64 {
        let error = |i: usize| (f64::from(got[i]) / want(i) - 1.0).abs();
        (0..got.len()).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate() {
        let xs = grid(-87.0, 88.0);
        let mut ys = vec![0.0; xs.len()];
        exp_all(&xs, &mut ys);
        let worst = worst(&ys, |i| f64::from(xs[i]).exp());
        assert!(worst < 1.2e-7, "{worst:e}");
    }

    #[test]
    fn exp_at_the_ends() {
        let xs = [0.0, f32::NEG_INFINITY, -1e30, -88.0, 89.0, f32::INFINITY, f32::NAN];
        let mut ys = [0.5; 7];
        exp_all(&xs, &mut ys);
        assert_eq!(ys[..6], [1.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
        assert!(ys[6].is_nan());
    }

    // The oracle is the erfc of `libm`, by way of `statrs`: another algorithm, in f64.
    #[test]
    fn normal_is_accurate() {
        for (from, to, tolerance) in [(-1.0, 0.0, 4e-7), (-5.0, -1.0, 1.5e-6), (0.0, 6.0, 4e-7)] {
            let xs = grid(from, to);
            let (mut cdf, mut pdf) = (vec![0.0; xs.len()], vec![0.0; xs.len()]);
            normal_all(&xs, &mut cdf, &mut pdf);
            let erfc = |x: f64| statrs::function::erf::erfc(x);
            let cdf_error = worst(&cdf, |i| 0.5 * erfc(-f64::from(xs[i]) / 2f64.sqrt()));
            let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let pdf_error = worst(&pdf, |i| density(f64::from(xs[i])));
            assert!(cdf_error < tolerance, "cdf {from} to {to}: {cdf_error:e}");
            assert!(pdf_error < 1.5e-6, "pdf {from} to {to}: {pdf_error:e}");
        }
    }

    #[test]
    fn normal_far_out() {
        let (mut cdf, mut pdf) = ([0.5; 5], [0.5; 5]);
        normal_all(
            &[-40.0, 40.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN],
            &mut cdf,
            &mut pdf,
        );
        assert_eq!(cdf[..4], [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(pdf[..4], [0.0; 4]);
        assert!(cdf[4].is_nan() && pdf[4].is_nan());
    }
}
