//! A fault of a file, told by what reads it before it is known which file that is.

use std::fmt;
use std::path::Path;

use candle_core::Error as Candle;

use super::Error;

/// A sentence without its subject, and the error that made it true, where there is one.
#[derive(Debug)]
pub(crate) struct Fault {
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Fault {
    pub(crate) fn caused_by(
        message: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(cause.into()),
        }
    }

    /// Of candle's error without its backtrace, which is no part of a sentence.
    pub(crate) fn of_candle(message: impl Into<String>, mut cause: Candle) -> Self {
        while let Candle::WithBacktrace { inner, .. } = cause {
            cause = *inner;
        }
        Self::caused_by(message, cause)
    }

    /// The fault of a part, as one of the whole.
    pub(crate) fn of_part(self, part: &str) -> Self {
        Self {
            message: format!("{part}: {}", self.message),
            ..self
        }
    }

    /// The error that names the file.
    pub(crate) fn of_file(self, path: &Path) -> Error {
        Error::File {
            path: path.display().to_string(),
            message: self.message,
            source: self.source,
        }
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self { message, source: None }
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        message.to_string().into()
    }
}

impl From<std::io::Error> for Fault {
    fn from(cause: std::io::Error) -> Self {
        Self::caused_by("it cannot be read", cause)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
