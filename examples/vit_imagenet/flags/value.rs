//! Texts of flags that are numbers within a range.

pub fn number(text: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if fits(value) => Ok(value),
        _ => Err(format!("must be {allowed}")),
    }
}

pub fn share(text: &str) -> Result<f64, String> {
    number(text, "a number that is at least 0 and below 1", |v| {
        (0.0..1.0).contains(&v)
    })
}

pub fn fraction(text: &str) -> Result<f64, String> {
    number(text, "a number above 0 and at most 1", |v| v > 0.0 && v <= 1.0)
}

pub fn weight(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |v| (0.0..=1.0).contains(&v))
}

pub fn positive(text: &str) -> Result<f64, String> {
    number(text, "a finite number above 0", |v| v > 0.0 && v.is_finite())
}

pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a finite number that is at least 0", |v| {
        v >= 0.0 && v.is_finite()
    })
}

pub fn whole(text: &str, allowed: std::ops::RangeInclusive<usize>, words: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if allowed.contains(&value) => Ok(value),
        _ => Err(format!("must be a whole number {words}")),
    }
}

pub fn at_least_1(text: &str) -> Result<usize, String> {
    whole(text, 1..=u32::MAX as usize, "from 1 to 4294967295")
}

pub fn side(text: &str) -> Result<usize, String> {
    whole(text, 1..=4096, "from 1 to 4096")
}
