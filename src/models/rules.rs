//! Rules that the configurations of all models follow.

use crate::check::MOST;
use crate::error::{Error, Result};

/// C p², the numbers in a patch.
pub(super) fn patch_len(in_channels: usize, patch_size: usize) -> Result<usize> {
    let area = patch_size.checked_mul(patch_size);
    let len = area.and_then(|area| area.checked_mul(in_channels));
    len.filter(|len| *len <= MOST).ok_or_else(|| {
        let allowed = format!("so small that the {in_channels} channels of a patch are at most {MOST} numbers");
        Error::invalid("patch_size", patch_size, allowed)
    })
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
