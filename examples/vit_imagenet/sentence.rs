//! The sentence in which the program says why it ends, and the exit code that goes with it.

use crate::exit_code::DIVERGED;
use masksub::Error;

/// What happened and its causes in one line, without candle's backtrace, and the exit code.
pub fn of(error: anyhow::Error) -> (String, u8) {
    let error = match error.downcast::<candle_core::Error>() {
        Ok(candle) => Error::from(candle).into(),
        Err(other) => other,
    };
    let code = match error.downcast_ref() {
        Some(Error::NonFiniteLoss { .. } | Error::NonFiniteGradient { .. }) => DIVERGED,
        _ => 1,
    };
    (format!("{error:#}"), code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{anyhow, Context};

    fn of(error: anyhow::Error) -> String {
        super::of(error).0
    }

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

    #[test]
    fn what_diverged_has_an_exit_code_of_its_own() {
        let code = |error: anyhow::Error| super::of(error).1;
        let loss = || Error::NonFiniteLoss {
            branch: "main",
            value: f64::NAN,
        };
        let gradient = Error::NonFiniteGradient {
            name: "fc.weight".into(),
        };
        for error in [
            loss().into(),
            gradient.into(),
            anyhow::Error::from(loss()).context("step 3"),
            candle_core::Error::from(loss()).into(),
        ] {
            assert_eq!(code(error), DIVERGED);
        }
        let other = Error::LossDetached { branch: "main" };
        assert_eq!((code(anyhow!("disk full")), code(other.into())), (1, 1));
    }
}
