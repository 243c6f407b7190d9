//! Rules that the configurations of all models follow.

use crate::error::{Error, Result};

/// Most of anything that a configuration counts, so that the sizes of weights, which are products of two, fit in a
/// `usize`.
const MOST: usize = 1 << 20;

/// An error that names the first of `counts` that is 0 or beyond all measure.
pub(super) fn check_counts(counts: impl IntoIterator<Item = (&'static str, usize)>) -> Result<()> {
    for (argument, value) in counts {
        match value {
            0 => return Err(Error::invalid(argument, value, "at least 1")),
            1..=MOST => {}
            _ => return Err(Error::invalid(argument, value, format!("at most {MOST}"))),
        }
    }
    Ok(())
}

/// C p², the numbers in a patch.
pub(super) fn patch_len(in_channels: usize, patch_size: usize) -> Result<usize> {
    let area = patch_size.checked_mul(patch_size);
    let len = area.and_then(|area| area.checked_mul(in_channels));
    len.filter(|len| *len <= MOST).ok_or_else(|| {
        let allowed = format!("so small that the {in_channels} channels of a patch are at most {MOST} numbers");
        Error::invalid("patch_size", patch_size, allowed)
    })
}

/// An error unless `rate`, of dropout or drop path, leaves something.
pub(super) fn check_rate(argument: &'static str, rate: f64) -> Result<()> {
    match (0. ..1.).contains(&rate) {
        true => Ok(()),
        false => Err(Error::invalid(argument, rate, "at least 0 and below 1")),
    }
}

/// The drop-path rate of one of `blocks` blocks: 0 in the first, `last` in the last, and evenly between (arXiv 1603.09382).
pub(super) fn linear_drop_path(last: f64, block: usize, blocks: usize) -> f64 {
    last * block as f64 / (blocks.max(2) - 1) as f64
}

/// What follows `part`, a whole number of a weight's path elements, in its `name`, whatever comes before.
pub(super) fn below<'a>(name: &'a str, part: &str) -> Option<&'a str> {
    name.match_indices(part).find_map(|(start, _)| {
        let (before, after) = (&name[..start], &name[start + part.len()..]);
        let whole = before.is_empty() || before.ends_with('.');
        match after.strip_prefix('.') {
            Some(below) if whole => Some(below),
            None if whole && after.is_empty() => Some(""),
            _ => None,
        }
    })
}

/// The number that a path begins with.
pub(super) fn leading_number(path: &str) -> Option<usize> {
    path.split('.').next()?.parse().ok()
}
