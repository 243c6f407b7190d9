//! The sentence in which the program says why it ends.

/// What happened and its causes in one line, without candle's backtrace.
pub fn of(error: anyhow::Error) -> String {
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
        assert_eq!(of(nested.unwrap_err()), "cannot write a.csv: disk full");
        let candle = candle_core::Error::Msg("odd".into());
        let traced = candle_core::Error::WithBacktrace {
            inner: Box::new(candle),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        assert_eq!(of(traced.into()), "odd");
        let traced = candle_core::Error::Msg("odd".into()).bt();
        let ours = anyhow::Error::from(masksub::Error::from(traced.context("reading"))).context("at start");
        assert_eq!(of(ours), "at start: reading: odd");
        // The cause of a file's error is told once, by either way.
        let absent = || masksub::Weights::from_safetensors("absent.safetensors").unwrap_err();
        let line = format!("{:?}", absent());
        assert!(line.starts_with("absent.safetensors: it cannot be read: "), "{line}");
        assert_eq!(of(absent().into()), line);
        assert_eq!(of(candle_core::Error::from(absent()).into()), line);
    }
}
