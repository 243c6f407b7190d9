//! What becomes of the elements that a result is written over.

/// A way to write a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Replace,
    Add,
}
