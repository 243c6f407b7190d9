//! The exit code by which `compare` tells settings that do not train from everything else that may end a run: 1 is any
//! other error, 2 a flag that is not understood.

/// The loss or a gradient was infinite or NaN.
pub const DIVERGED: u8 = 3;
