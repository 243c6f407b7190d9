//! The passage of the crate's error through candle's, and back.

use std::fmt;

use candle_core::{DType, Error as CandleError};

use super::Error;

/// candle's message in one line, without the backtraces that `Display` of its wrappers appends.
pub(super) fn sentence(error: &CandleError) -> String {
    match error {
        CandleError::WithBacktrace { inner, .. } => sentence(inner),
        CandleError::Context { inner, context } => format!("{context}: {}", sentence(inner)),
        CandleError::WithPath { inner, path } => format!("{}: {}", path.display(), sentence(inner)),
        CandleError::WrappedContext { wrapped, context } => match wrapped.downcast_ref::<CandleError>() {
            Some(inner) => format!("{context}: {}", sentence(inner)),
            None => format!("{context}: {wrapped}"),
        },
        other => other.to_string(),
    }
}

/// The operation that candle does not have in bf16, where that is the error.
pub(crate) fn unsupported_bf16(error: &CandleError) -> Option<&'static str> {
    match error {
        CandleError::UnsupportedDTypeForOp(DType::BF16, op) => Some(op),
        CandleError::WithBacktrace { inner, .. } | CandleError::Context { inner, .. } => unsupported_bf16(inner),
        CandleError::WrappedContext { wrapped, .. } => wrapped.downcast_ref().and_then(unsupported_bf16),
        _ => None,
    }
}

/// An error on its way through candle, whose errors print their causes themselves and name none.
struct Carried(Error);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Carried {}

impl From<Error> for CandleError {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            // Of candle's variants that carry a foreign error by value, `Io` is the one that prints it as it is:
            // `WrappedContext` prints it quoted with a second line, and `Wrapped` keeps nothing but its text.
            typed => CandleError::Io(std::io::Error::other(Carried(typed))),
        }
    }
}

impl From<CandleError> for Error {
    fn from(error: CandleError) -> Self {
        find(error).unwrap_or_else(Error::Candle)
    }
}

/// Takes the crate's error out of candle's, or gives candle's back as it was.
fn find(error: CandleError) -> std::result::Result<Error, CandleError> {
    match error {
        CandleError::Io(inner) => match inner.downcast::<Carried>() {
            Ok(Carried(typed)) => Ok(typed),
            // As someone else may have put it in.
            Err(inner) => inner.downcast::<Error>().map_err(CandleError::Io),
        },
        CandleError::WithBacktrace { inner, backtrace } => find(*inner).map_err(|inner| CandleError::WithBacktrace {
            inner: Box::new(inner),
            backtrace,
        }),
        CandleError::Context { inner, context } => find(*inner).map_err(|inner| CandleError::Context {
            inner: Box::new(inner),
            context,
        }),
        CandleError::WithPath { inner, path } => find(*inner).map_err(|inner| CandleError::WithPath {
            inner: Box::new(inner),
            path,
        }),
        CandleError::WrappedContext { wrapped, context } => match wrapped.downcast::<Error>() {
            Ok(typed) => Ok(*typed),
            Err(wrapped) => match wrapped.downcast::<CandleError>() {
                Ok(inner) => find(*inner).map_err(|inner| CandleError::WrappedContext {
                    wrapped: Box::new(inner),
                    context,
                }),
                Err(wrapped) => Err(CandleError::WrappedContext { wrapped, context }),
            },
        },
        other => Err(other),
    }
}
