//! Rules that the configurations of all models follow.

use crate::check::MOST;
use crate::error::{Error, Result};

/// Patches of few enough numbers, C p², which is how wide their projection is.
pub(super) fn check_patch(in_channels: usize, patch_size: usize) -> Result<()> {
    let area = patch_size.checked_mul(patch_size);
    let len = area.and_then(|area| area.checked_mul(in_channels));
    if len.is_some_and(|len| len <= MOST) {
        return Ok(());
    }
    let allowed = format!("so small that the {in_channels} channels of a patch are at most {MOST} numbers");
    Err(Error::invalid("patch_size", patch_size, allowed))
}

/// The drop-path rate of one of `blocks` blocks: 0 in the first, `last` in the last, and evenly between (arXiv
/// 1603.09382).
pub(super) fn linear_drop_path(last: f64, block: usize, blocks: usize) -> f64 {
    last * block as f64 / (blocks.max(2) - 1) as f64
}
