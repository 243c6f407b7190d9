//! A box in an image.

/// A box in an image, in pixels: rows `top` to `top + height - 1`, columns `left` to `left + width - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rect {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Rect {
    /// The whole of an image.
    pub(super) fn whole(width: usize, height: usize) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }

    /// Whether it holds a pixel, and none outside an image of that size.
    pub(super) fn is_within(self, width: usize, height: usize) -> bool {
        let fits = |from: usize, length: usize, room: usize| length > 0 && from < room && length <= room - from;
        fits(self.left, self.width, width) && fits(self.top, self.height, height)
    }
}
