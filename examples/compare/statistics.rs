//! Means over seeds, and what can be said of a difference.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean and standard deviation (of a sample: divided by n - 1; NaN for a single value).
pub fn mean_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// The half width of the 95 % interval of a mean (Student's t); none for fewer than two values.
pub fn half_width(values: &[f64]) -> Option<f64> {
    let freedom = values.len().checked_sub(1)? as f64;
    let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
    let (_, std) = mean_std(values);
    Some(student.inverse_cdf(0.975) * std / (values.len() as f64).sqrt())
}

/// The middle value, or the mean of the two in the middle; NaN for none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Student's own example, "The probable error of a mean", Biometrika 6, 1908: hours of sleep gained with L- over
    // D-hyoscyamine. R's t.test(..., paired = TRUE) gives 0.7001142 to 2.4598858.
    #[test]
    fn the_interval_is_students() {
        let gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
        let (mean, std) = mean_std(&gained);
        assert!(
            (mean - 1.58).abs() < 1e-9 && (std - 1.2299955).abs() < 1e-6,
            "{mean} {std}"
        );
        let half = half_width(&gained).unwrap();
        assert!(
            (mean - half - 0.7001142).abs() < 1e-6 && (mean + half - 2.4598858).abs() < 1e-6,
            "{half}"
        );
    }

    #[test]
    fn too_few_values_have_no_interval() {
        assert_eq!((half_width(&[]), half_width(&[1.0])), (None, None));
        assert!(mean_std(&[1.0]).1.is_nan());
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0])), (2.0, 2.5));
        assert!(median(vec![]).is_nan());
    }
}
