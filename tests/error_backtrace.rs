//! A typed error on its way through candle's, with and without backtraces.
//!
//! The standard library reads RUST_BACKTRACE once, so this file runs itself again in processes with either setting.

use std::process::Command;

use candle_core::{Context as _, Error as CandleError, Tensor};
use candle_nn::Module as _;
use masksub::{Error, RandomMasking};

const EXPECTED: &str = "MASKSUB_TEST_BACKTRACES";

/// Runs the tests of `conversions` in a process with that setting.
fn run_with(backtrace: &str, captured: bool) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["conversions::", "--test-threads=1"])
        .env("RUST_BACKTRACE", backtrace)
        .env_remove("RUST_LIB_BACKTRACE")
        .env(EXPECTED, if captured { "captured" } else { "none" })
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "RUST_BACKTRACE={backtrace}:\n{stdout}");
    assert!(stdout.contains("7 passed"), "not all ran:\n{stdout}");
}

#[test]
fn without_backtraces() {
    run_with("0", false);
}

#[test]
fn with_backtraces() {
    run_with("1", true);
}

#[test]
fn with_full_backtraces() {
    run_with("full", true);
}

mod conversions {
    use super::*;

    const SENTENCE: &str = "mask_ratio is 1.5, but must be at least 0 and below 1";

    fn typed() -> Error {
        RandomMasking::new(1.5).unwrap_err()
    }

    #[track_caller]
    fn assert_survived(error: CandleError) {
        let back = Error::from(error);
        assert!(
            matches!(
                back,
                Error::InvalidArgument {
                    argument: "mask_ratio",
                    ..
                }
            ),
            "{back}"
        );
        assert_eq!(back.to_string(), SENTENCE);
        assert_eq!(format!("{back:?}"), SENTENCE);
        // And once more around.
        let again = Error::from(CandleError::from(back).bt());
        assert!(matches!(again, Error::InvalidArgument { .. }), "{again}");
    }

    #[test]
    fn run_under_the_setting_they_were_started_with() {
        let captures = matches!(CandleError::Msg("probe".into()).bt(), CandleError::WithBacktrace { .. });
        if let Ok(expected) = std::env::var(EXPECTED) {
            assert_eq!(captures, expected == "captured");
        }
    }

    #[test]
    fn survive_backtraces_contexts_and_paths() {
        assert_survived(typed().into());
        assert_survived(CandleError::from(typed()).bt());
        assert_survived(CandleError::from(typed()).bt().bt());
        assert_survived(CandleError::from(typed()).context("while masking"));
        assert_survived(CandleError::from(typed()).bt().context("while masking").bt());
        assert_survived(
            CandleError::from(typed())
                .with_path("config.json")
                .context("while masking")
                .bt(),
        );
        // The trait's `context` on results, once and twice, on our error and on candle's.
        let ours: Result<(), Error> = Err(typed());
        assert_survived(ours.context("first").unwrap_err());
        let ours: Result<(), Error> = Err(typed());
        assert_survived(
            ours.context("first")
                .context("second")
                .with_context(|| "third")
                .unwrap_err(),
        );
        let candles: candle_core::Result<()> = Err(typed().into());
        assert_survived(candles.context("first").context("second").unwrap_err());
        let candles: candle_core::Result<()> = Err(CandleError::from(typed()).bt());
        assert_survived(candles.context("first").unwrap_err().bt());
    }

    #[test]
    fn keep_their_cause() {
        use std::error::Error as _;
        use std::io::ErrorKind::NotFound;
        let absent = || masksub::Weights::from_safetensors("absent.safetensors").unwrap_err();
        let io = absent().source().map(|cause| cause.to_string()).unwrap();
        let whole = format!("absent.safetensors: it cannot be read: {io}");
        for candle in [
            CandleError::from(absent()),
            CandleError::from(absent()).bt().context("while loading").bt(),
            Err::<(), _>(absent()).context("while loading").unwrap_err(),
        ] {
            // Before the backtrace, where there is one.
            assert!(candle.to_string().contains(&whole), "{candle}");
            let back = Error::from(candle);
            assert_eq!(back.to_string(), "absent.safetensors: it cannot be read");
            assert_eq!(format!("{back:?}"), whole);
            let cause = back.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
            assert_eq!(cause.map(std::io::Error::kind), Some(NotFound));
            assert_eq!(format!("{:#}", anyhow::Error::from(back)), whole);
        }
        // candle's own as a cause: of a file with elements that candle does not have.
        let file = tempfile::NamedTempFile::new().unwrap();
        let header = br#"{"w":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
        let content = [&(header.len() as u64).to_le_bytes()[..], header, &[1]].concat();
        std::fs::write(file.path(), content).unwrap();
        let error = masksub::Weights::from_safetensors(file.path()).unwrap_err();
        let cause = error.source().and_then(|cause| cause.downcast_ref::<CandleError>());
        assert!(
            matches!(cause, Some(CandleError::UnsupportedSafeTensorDtype(_))),
            "{error:?}"
        );
        assert_eq!(format!("{error:?}").lines().count(), 1, "{error:?}");
    }

    #[test]
    fn survive_as_a_foreign_error() {
        // `wrap` keeps the text alone.
        let wrapped = Error::from(CandleError::wrap(typed()));
        assert_eq!(wrapped.to_string(), SENTENCE);
        // Through anyhow, as an application does.
        let application: anyhow::Error = anyhow::Error::from(typed()).context("while setting up");
        assert!(matches!(
            application.downcast_ref::<Error>(),
            Some(Error::InvalidArgument { .. })
        ));
        assert_eq!(format!("{application:#}"), format!("while setting up: {SENTENCE}"));
    }

    #[test]
    fn survive_a_module() {
        let module = candle_nn::seq()
            .add_fn(|xs| Ok(xs.clone()))
            .add_fn(|_| Err(typed().into()));
        let xs = Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_survived(module.forward(&xs).unwrap_err());
        let around = candle_nn::seq().add(candle_nn::seq().add(module));
        assert_survived(around.forward(&xs).unwrap_err().context("in a block").bt());
    }

    #[test]
    fn print_as_a_sentence() {
        let candle = CandleError::from(typed());
        assert_eq!(candle.to_string(), SENTENCE);
        assert_eq!(format!("{candle:?}"), SENTENCE);
        // candle's own errors, without the backtrace that they carry.
        let (a, b) = ([(); 2].map(|()| (2, 3)), candle_core::Device::Cpu);
        let [a, b] = a.map(|shape| Tensor::zeros(shape, candle_core::DType::F32, &b).unwrap());
        let mismatch = Error::from(a.matmul(&b).unwrap_err());
        assert!(matches!(mismatch, Error::Candle(_)));
        for printed in [mismatch.to_string(), format!("{mismatch:?}")] {
            assert_eq!(printed.lines().count(), 1, "{printed}");
            assert!(printed.contains("matmul"), "{printed}");
        }
        let message = Error::from(CandleError::Msg("a user's message".into()).bt());
        assert_eq!(message.to_string(), "a user's message");
        // Also below a context, whatever stands around it.
        let in_context = Error::from(
            CandleError::Msg("a user's message".into())
                .bt()
                .context("while training"),
        );
        assert_eq!(in_context.to_string(), "while training: a user's message");
        let error = CandleError::Msg("a user's message".into())
            .bt()
            .with_path("model.json")
            .bt();
        let result: candle_core::Result<()> = Err(error).context("while loading");
        assert_eq!(
            Error::from(result.unwrap_err().bt()).to_string(),
            "while loading: model.json: a user's message"
        );
    }

    #[test]
    fn leave_foreign_errors_their_type() {
        let io = CandleError::Io(std::io::Error::new(std::io::ErrorKind::NotFound, "no such file")).bt();
        let Error::Candle(masksub::CandleError(back)) = Error::from(io) else {
            panic!("an error of ours?")
        };
        let inner = match back {
            CandleError::WithBacktrace { inner, .. } => *inner,
            plain => plain,
        };
        assert!(matches!(inner, CandleError::Io(io) if io.kind() == std::io::ErrorKind::NotFound));
    }
}
