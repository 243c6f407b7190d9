//! How the positions of a sample are laid out.

use crate::error::{Error, Result};

/// The positions of a sample, laid out in rows: L = `height * width` of them, numbered row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Grid {
    /// A grid of `height` rows and `width` columns.
    pub const fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// L, the number of positions.
    pub const fn len(self) -> usize {
        // Sides that overflow are too many positions for any mask, and are refused as such.
        self.height.saturating_mul(self.width)
    }

    /// True where there is no position at all.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// # Errors
    /// [`Error::InvalidArgument`] when there is no position, or more of them than 32 bits can number.
    pub(crate) fn check_numbered(self) -> Result<()> {
        match u32::try_from(self.len()) {
            Ok(1..) => Ok(()),
            _ => Err(Error::invalid("grid", self, "1 to 2^32 - 1 positions")),
        }
    }

    /// The grid of blocks of `block` x `block` positions that tile this one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a side is no multiple of `block`; the message says which.
    pub fn divided_by(self, block: usize) -> Result<Self> {
        let fits = |side: usize| block > 0 && side > 0 && side.is_multiple_of(block);
        if !fits(self.height) || !fits(self.width) {
            return Err(Error::invalid(
                "block",
                format!("{block} on a grid of {self}"),
                "a positive divisor of both sides",
            ));
        }
        Ok(Self::new(self.height / block, self.width / block))
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.height, self.width)
    }
}
