//! The passage of the crate's error through candle's, and back.

use std::error::Error as StdError;
use std::fmt;

use candle_core::{DType, Error as Candle};

use super::Error;

/// candle's error in one line, without the backtraces that `Display` of its wrappers appends.
///
/// `Display` prints candle's own words and whatever context stands around them. Where candle carries an error of somebody
/// else, of the system or a closure, that error is the [`source`](std::error::Error::source); if nothing else was said,
/// `Display` is that error's and the source its cause.
pub struct CandleError(pub candle_core::Error);

impl CandleError {
    /// candle's words from the outside in, and the foreign error below them.
    fn parts(&self) -> (Vec<String>, Option<&(dyn StdError + 'static)>) {
        let (mut words, mut error) = (vec![], &self.0);
        loop {
            error = match error {
                Candle::WithBacktrace { inner, .. } => inner,
                Candle::Context { inner, context } => {
                    words.push(context.to_string());
                    inner
                }
                Candle::WithPath { inner, path } => {
                    words.push(path.display().to_string());
                    inner
                }
                Candle::WrappedContext { wrapped, context } => {
                    words.push(context.clone());
                    match wrapped.downcast_ref::<Candle>() {
                        Some(inner) => inner,
                        None => return (words, Some(&**wrapped)),
                    }
                }
                Candle::Io(cause) => return (words, Some(cause)),
                Candle::SafeTensor(cause) => return (words, Some(cause)),
                Candle::Zip(cause) => return (words, Some(cause)),
                Candle::Cuda(cause) => return (words, Some(&**cause)),
                other => {
                    words.push(other.to_string());
                    return (words, None);
                }
            }
        }
    }
}

impl fmt::Display for CandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (words, Some(cause)) if words.is_empty() => write!(f, "{cause}"),
            (words, _) => f.write_str(&words.join(": ")),
        }
    }
}

impl StdError for CandleError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.parts() {
            (words, Some(cause)) if words.is_empty() => cause.source(),
            (_, cause) => cause,
        }
    }
}

/// Words and causes, as of [`Error`].
impl fmt::Debug for CandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::with_causes(self, f)
    }
}

/// The operation that candle does not have in bf16, where that is the error.
pub(crate) fn unsupported_bf16(error: &Candle) -> Option<&'static str> {
    match error {
        Candle::UnsupportedDTypeForOp(DType::BF16, op) => Some(op),
        Candle::WithBacktrace { inner, .. } | Candle::Context { inner, .. } => unsupported_bf16(inner),
        Candle::WrappedContext { wrapped, .. } => wrapped.downcast_ref().and_then(unsupported_bf16),
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

impl StdError for Carried {}

impl From<Error> for Candle {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(CandleError(inner)) => inner,
            // Of candle's variants that carry a foreign error by value, `Io` is the one that prints it as it is:
            // `WrappedContext` prints it quoted with a second line, and `Wrapped` keeps nothing but its text.
            typed => Candle::Io(std::io::Error::other(Carried(typed))),
        }
    }
}

impl From<Candle> for Error {
    fn from(error: Candle) -> Self {
        find(error).unwrap_or_else(|error| Error::Candle(CandleError(error)))
    }
}

/// Takes the crate's error out of candle's, or gives candle's back as it was.
fn find(error: Candle) -> std::result::Result<Error, Candle> {
    match error {
        Candle::Io(inner) => match inner.downcast::<Carried>() {
            Ok(Carried(typed)) => Ok(typed),
            // As someone else may have put it in.
            Err(inner) => inner.downcast::<Error>().map_err(Candle::Io),
        },
        Candle::WithBacktrace { inner, backtrace } => find(*inner).map_err(|inner| Candle::WithBacktrace {
            inner: Box::new(inner),
            backtrace,
        }),
        Candle::Context { inner, context } => find(*inner).map_err(|inner| Candle::Context {
            inner: Box::new(inner),
            context,
        }),
        Candle::WithPath { inner, path } => find(*inner).map_err(|inner| Candle::WithPath {
            inner: Box::new(inner),
            path,
        }),
        Candle::WrappedContext { wrapped, context } => match wrapped.downcast::<Error>() {
            Ok(typed) => Ok(*typed),
            Err(wrapped) => match wrapped.downcast::<Candle>() {
                Ok(inner) => find(*inner).map_err(|inner| Candle::WrappedContext {
                    wrapped: Box::new(inner),
                    context,
                }),
                Err(wrapped) => Err(Candle::WrappedContext { wrapped, context }),
            },
        },
        other => Err(other),
    }
}
