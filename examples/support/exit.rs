//! How an example ends: 0, or a sentence on stderr and 1.

use std::process::ExitCode;

pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(error));
            ExitCode::FAILURE
        }
    }
}

/// What happened and its causes in one line, without candle's backtrace.
pub fn sentence(error: anyhow::Error) -> String {
    match error.downcast::<candle_core::Error>() {
        Ok(candle) => format!("{:#}", anyhow::Error::from(masksub::Error::from(candle))),
        Err(other) => format!("{other:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{anyhow, Context};

    #[test]
    fn errors_print_as_one_line() {
        let nested = Err::<(), _>(anyhow!("disk full")).context("cannot write a.csv");
        assert_eq!(sentence(nested.unwrap_err()), "cannot write a.csv: disk full");
        let candle = candle_core::Error::Msg("odd".into());
        let traced = candle_core::Error::WithBacktrace {
            inner: Box::new(candle),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert_eq!(sentence(traced.into()), "odd");
        let traced = candle_core::Error::Msg("odd".into()).bt();
        let ours = anyhow::Error::from(masksub::Error::from(traced.context("reading"))).context("at start");
        assert_eq!(sentence(ours), "at start: reading: odd");
        // The cause of a file's error is told once, by either way.
        let absent = || masksub::Weights::from_safetensors("absent.safetensors").unwrap_err();
        let line = format!("{:?}", absent());
        assert!(line.starts_with("absent.safetensors: it cannot be read: "), "{line}");
        assert_eq!(sentence(absent().into()), line);
        assert_eq!(sentence(candle_core::Error::from(absent()).into()), line);
    }
}
