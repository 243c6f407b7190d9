//! What arguments may be: the ranges, dtypes and shapes that constructors and operations share.
//!
//! Each check gives its value back, or the error that names the argument, its value and what is allowed.

use std::fmt::Display;
use std::ops::RangeInclusive;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// Most of anything that a configuration counts, so that the sizes of weights, which are products of two, fit in a
/// `usize`.
pub(crate) const MOST: usize = 1 << 20;

/// What images must have the dtype of.
pub(crate) const WEIGHTS: &str = "the model's weights";

/// A rate in [0, 1): of masking, dropout or drop path, which leave something, or of an average that moves.
pub(crate) fn rate(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, (0.0..1.0).contains(&value), "at least 0 and below 1")
}

/// A share or a probability, in [0, 1].
pub(crate) fn share(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, (0.0..=1.0).contains(&value), "within [0, 1]")
}

/// A share in (0, 1], by which something is multiplied again and again.
pub(crate) fn positive_share(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, value > 0.0 && value <= 1.0, "above 0 and at most 1")
}

/// A learning rate, a decay, an eps: at least 0 and finite.
pub(crate) fn non_negative(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, is_non_negative(value), NON_NEGATIVE)
}

/// Whether `value` is at least 0 and finite.
pub(crate) fn is_non_negative(value: f64) -> bool {
    (0.0..f64::INFINITY).contains(&value)
}

/// What [`is_non_negative`] asks for.
pub(crate) const NON_NEGATIVE: &str = "at least 0 and finite";

/// A divisor, so above 0 and finite.
pub(crate) fn positive(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, value > 0.0 && value.is_finite(), "above 0 and finite")
}

/// A bound, which may be infinite: above 0.
pub(crate) fn bound(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, value > 0.0, "above 0")
}

fn within(argument: &'static str, value: f64, within: bool, allowed: &str) -> Result<f64> {
    if within {
        Ok(value)
    } else {
        Err(Error::invalid(argument, value, allowed))
    }
}

/// A number within `range`, which an error gives with its unit, if there is one.
pub(crate) fn in_range<T: PartialOrd + Display>(
    argument: &'static str,
    value: T,
    range: RangeInclusive<T>,
    unit: &str,
) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let allowed = format!("{} to {} {unit}", range.start(), range.end());
    Err(Error::invalid(argument, value, allowed.trim_end()))
}

/// At most `most`.
pub(crate) fn at_most(argument: &'static str, value: u32, most: u32) -> Result<u32> {
    if value > most {
        return Err(Error::invalid(argument, value, format!("at most {most}")));
    }
    Ok(value)
}

/// A number, neither infinite nor NaN.
pub(crate) fn finite(argument: &'static str, value: f64) -> Result<f64> {
    within(argument, value, value.is_finite(), "finite")
}

/// A divisor of `of`, which an error calls `whole`.
pub(crate) fn divisor(argument: &'static str, value: usize, of: usize, whole: impl Display) -> Result<usize> {
    if value == 0 || !of.is_multiple_of(value) {
        return Err(Error::invalid(argument, value, format!("a divisor of {whole}")));
    }
    Ok(value)
}

/// At least 1.
pub(crate) fn at_least_one(argument: &'static str, value: usize) -> Result<usize> {
    if value == 0 {
        return Err(Error::invalid(argument, value, "at least 1"));
    }
    Ok(value)
}

/// How many updates a saved state has seen: at least 0, and so few that a float tells one from the next.
pub(crate) fn updates(argument: &'static str, value: i64) -> Result<u64> {
    match u64::try_from(value) {
        Ok(updates) if updates < 1 << 53 => Ok(updates),
        _ => Err(Error::invalid(
            argument,
            format!("{value} updates"),
            "0 to 2^53 - 1 updates",
        )),
    }
}

/// Each of what a configuration counts: 1 to [`MOST`].
pub(crate) fn counts(counts: impl IntoIterator<Item = (&'static str, usize)>) -> Result<()> {
    for (argument, value) in counts {
        if at_least_one(argument, value)? > MOST {
            return Err(Error::invalid(argument, value, format!("at most {MOST}")));
        }
    }
    Ok(())
}

/// So many elements of `size` bytes as memory can be had for: a larger allocation would abort the process. `argument`
/// is what they are so many by.
pub(crate) fn fits_memory(
    argument: &'static str,
    value: impl Display,
    elements: Option<usize>,
    size: usize,
) -> Result<()> {
    /// Less is there, or nothing goes on anyway.
    const FEW: usize = 1 << 28;
    let bytes = elements.and_then(|elements| elements.checked_mul(size));
    let there = |bytes: usize| bytes <= FEW || Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
    if bytes.is_some_and(there) {
        return Ok(());
    }
    Err(Error::invalid(
        argument,
        value,
        "so small that the result fits in memory",
    ))
}

/// A tensor of floating-point numbers that can be differentiated.
pub(crate) fn float(argument: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(()),
        got => Err(Error::DType {
            argument,
            got,
            expected: "f32, f64, f16 or bf16".into(),
        }),
    }
}

/// A tensor of the dtype of another, which the caller knows as `other`.
pub(crate) fn same_dtype(argument: &'static str, tensor: &Tensor, other: &str, like: &Tensor) -> Result<()> {
    if tensor.dtype() == like.dtype() {
        return Ok(());
    }
    Err(Error::DType {
        argument,
        got: tensor.dtype(),
        expected: format!("{:?} like {other}", like.dtype()),
    })
}

/// A factor of products with `like`: of its dtype, or of half precision where that is f32, which is then rounded to the
/// factor's dtype.
pub(crate) fn factor_dtype(argument: &'static str, factor: &Tensor, other: &str, like: &Tensor) -> Result<()> {
    match (like.dtype(), factor.dtype()) {
        (DType::F32, DType::BF16 | DType::F16) => Ok(()),
        _ => same_dtype(argument, factor, other, like),
    }
}

/// A tensor of shape `[size]`.
pub(crate) fn vector(argument: &'static str, tensor: &Tensor, size: usize) -> Result<()> {
    if tensor.dims() == [size] {
        return Ok(());
    }
    Err(Error::shape(argument, tensor.dims(), format!("[{size}]")))
}

/// Sides as an error gives them: one number where all are the same.
pub(crate) fn sides(sides: &[usize]) -> String {
    match *sides {
        [first, ref rest @ ..] if rest.iter().all(|&side| side == first) => first.to_string(),
        _ => format!("{sides:?}"),
    }
}

/// One of drop path's factors for each of `batch` samples, where there are any.
pub(crate) fn drop_path(factors: Option<&[f32]>, batch: usize) -> Result<()> {
    match factors {
        Some(factors) if factors.len() != batch => Err(Error::invalid(
            "drop_path",
            format!("{} factors", factors.len()),
            format!("{batch}, one for each sample"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_ends_that_they_say() {
        type Check = fn(&'static str, f64) -> Result<f64>;
        let cases: [(Check, &[f64], &[f64]); 6] = [
            (rate, &[0.0, 0.999], &[-0.001, 1.0, f64::NAN]),
            (share, &[0.0, 1.0], &[-0.001, 1.001, f64::NAN]),
            (positive_share, &[1e-9, 1.0], &[0.0, 1.001, f64::NAN]),
            (non_negative, &[0.0, 1e300], &[-1e-9, f64::INFINITY, f64::NAN]),
            (positive, &[1e-9, 1e300], &[0.0, f64::INFINITY, f64::NAN]),
            (bound, &[1e-9, f64::INFINITY], &[0.0, -1.0, f64::NAN]),
        ];
        for (check, good, bad) in cases {
            for &value in good {
                assert_eq!(check("x", value).unwrap(), value);
            }
            for &value in bad {
                let message = check("x", value).unwrap_err().to_string();
                assert!(message.starts_with(&format!("x is {value}, but must be ")), "{message}");
            }
        }
    }

    #[test]
    fn ranges_and_divisors_say_what_is_allowed() {
        assert_eq!(in_range("x", 2.0, 0.0..=2.0, "").unwrap(), 2.0);
        assert_eq!(in_range("x", 1, 1..=2, "pixels").unwrap(), 1);
        let message = in_range("x", f64::NAN, 0.0..=2.5, "").unwrap_err().to_string();
        assert_eq!(message, "x is NaN, but must be 0 to 2.5");
        let message = in_range("x", 3, 1..=2, "pixels").unwrap_err().to_string();
        assert_eq!(message, "x is 3, but must be 1 to 2 pixels");
        assert_eq!(at_most("x", 8, 8).unwrap(), 8);
        let message = at_most("x", 9, 8).unwrap_err().to_string();
        assert_eq!(message, "x is 9, but must be at most 8");
        assert!(finite("x", -1e300).is_ok() && finite("x", f64::INFINITY).is_err() && finite("x", f64::NAN).is_err());
        assert_eq!(divisor("heads", 3, 12, "D = 12").unwrap(), 3);
        for heads in [0, 5, 24] {
            let message = divisor("heads", heads, 12, "D = 12").unwrap_err().to_string();
            assert_eq!(message, format!("heads is {heads}, but must be a divisor of D = 12"));
        }
    }

    #[test]
    fn equal_sides_are_one_number() {
        assert_eq!([&[3][..], &[3, 3], &[3, 4], &[]].map(sides), ["3", "3", "[3, 4]", "[]"]);
    }

    #[test]
    fn counts_are_positive_and_bounded() {
        assert!(counts([("depth", 1), ("width", MOST)]).is_ok());
        let message = |count| counts([("depth", 1), ("width", count)]).unwrap_err().to_string();
        assert_eq!(message(0), "width is 0, but must be at least 1");
        assert_eq!(message(MOST + 1), "width is 1048577, but must be at most 1048576");
    }
}
