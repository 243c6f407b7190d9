//! Sentences and causes of errors, also on their way through candle.

use std::error::Error as _;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::{Context as _, Error as Candle};

use super::*;

fn typed() -> Error {
    Error::invalid("mask_ratio", 1.5, "at least 0 and below 1")
}

const SENTENCE: &str = "mask_ratio is 1.5, but must be at least 0 and below 1";

fn is_typed(error: Candle) -> bool {
    matches!(
        Error::from(error),
        Error::InvalidArgument {
            argument: "mask_ratio",
            ..
        }
    )
}

// The backtrace is captured or not by RUST_BACKTRACE, which the standard library reads once per process:
// `tests/error_backtrace.rs` runs these conversions in processes with either setting.
#[test]
fn survives_every_wrapper_of_candle() {
    assert!(is_typed(typed().into()));
    assert!(is_typed(Candle::from(typed()).bt()));
    assert!(is_typed(Candle::from(typed()).context("a").bt().context("b")));
    assert!(is_typed(Candle::from(typed()).with_path("weights.safetensors")));
    let on_ours: candle_core::Result<()> = Err::<(), _>(typed()).context("first").context("second");
    assert!(is_typed(on_ours.unwrap_err()));
    let on_candles: candle_core::Result<()> = Err::<(), _>(Candle::from(typed())).context("first");
    assert!(is_typed(on_candles.unwrap_err().bt()));
}

#[test]
fn prints_as_a_sentence() {
    assert_eq!(typed().to_string(), SENTENCE);
    assert_eq!(format!("{:?}", typed()), SENTENCE);
    assert_eq!(Candle::from(typed()).to_string(), SENTENCE);
    assert_eq!(format!("{:?}", Candle::from(typed())), SENTENCE);
}

#[test]
fn leaves_foreign_errors_as_they_were() {
    let io = Candle::Io(std::io::Error::other("disk"));
    let back: Candle = Error::from(io.context("reading")).into();
    assert_eq!(back.to_string(), "reading\ndisk");
    let message = Error::from(Candle::Msg("odd".into()).bt());
    assert_eq!(message.to_string(), "odd");
}

/// A file that is not there, said by the system.
fn absent() -> Error {
    let io = std::io::Error::new(ErrorKind::NotFound, "no such file");
    Fault::from(io).of_file(Path::new("w.pth"))
}

fn kind(error: &Error) -> Option<ErrorKind> {
    error
        .source()?
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind)
}

#[test]
fn of_a_file_has_a_sentence_and_a_cause() {
    let error = absent();
    assert_eq!(error.to_string(), "w.pth: it cannot be read");
    assert_eq!(kind(&error), Some(ErrorKind::NotFound));
    assert_eq!(format!("{error:?}"), "w.pth: it cannot be read: no such file");
    // Nothing is said twice by what prints the chain.
    let chain = anyhow::Error::from(error).context("while setting up");
    assert_eq!(
        format!("{chain:#}"),
        "while setting up: w.pth: it cannot be read: no such file"
    );

    let error = Fault::from("it is empty")
        .of_part("its header")
        .of_file(Path::new("w.pth"));
    assert_eq!(error.to_string(), "w.pth: its header: it is empty");
    assert!(error.source().is_none());
    assert_eq!(format!("{error:?}"), error.to_string());
    // A part's fault keeps its cause.
    let error = Fault::from(std::io::Error::from(ErrorKind::TimedOut)).of_part("its header");
    assert_eq!(kind(&error.of_file(Path::new("w.pth"))), Some(ErrorKind::TimedOut));
}

#[test]
fn of_a_file_may_be_candles_without_its_backtrace() {
    let candles = Candle::WithBacktrace {
        inner: Box::new(Candle::Msg("odd".into())),
        backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
    };
    let error = Fault::of_candle("it cannot be parsed", candles).of_file(Path::new("w.pth"));
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Candle>());
    assert!(matches!(cause, Some(Candle::Msg(message)) if message == "odd"));
    assert_eq!(format!("{error:?}"), "w.pth: it cannot be parsed: odd");
}

// candle's errors print all that they know, and name no source.
#[test]
fn on_its_way_through_candle_prints_its_cause_once() {
    const LINE: &str = "w.pth: it cannot be read: no such file";
    let candles = Candle::from(absent());
    assert_eq!(
        (candles.to_string(), format!("{candles:?}")),
        (LINE.into(), LINE.into())
    );
    assert_eq!(format!("{:#}", anyhow::Error::from(candles)), LINE);
    for candles in [
        Candle::from(absent()).bt(),
        Candle::from(absent()).context("a").bt().with_path("b"),
        Err::<(), _>(absent()).context("first").context("second").unwrap_err(),
    ] {
        let back = Error::from(candles);
        assert_eq!(back.to_string(), "w.pth: it cannot be read");
        assert_eq!(kind(&back), Some(ErrorKind::NotFound));
    }
}

#[test]
fn of_candle_has_its_words_and_the_cause_that_it_carries() {
    let io = || Candle::Io(std::io::Error::new(ErrorKind::NotFound, "no such file"));
    const LINE: &str = "reading: config.json: no such file";
    let error = Error::from(io().with_path("config.json").bt().context("reading"));
    assert_eq!(error.to_string(), "reading: config.json");
    assert_eq!(kind(&error), Some(ErrorKind::NotFound));
    assert_eq!(format!("{error:?}"), LINE);
    assert_eq!(format!("{:#}", anyhow::Error::from(error)), LINE);

    // Nothing but the cause: it is the error.
    let alone = Error::from(io());
    assert_eq!(
        (alone.to_string(), alone.source().is_none()),
        ("no such file".into(), true)
    );
    let typed_alone = Error::from(Candle::Io(std::io::Error::other(OutOfCoffee { source: NoBeans })));
    assert_eq!(format!("{typed_alone:?}"), "out of coffee: no beans");

    // What a user's function failed with, below candle's context.
    let result: candle_core::Result<()> = Err::<(), _>(OutOfCoffee { source: NoBeans }).context("brewing");
    let error = Error::from(result.context("serving").unwrap_err());
    assert!(error.source().is_some_and(|cause| cause.is::<OutOfCoffee>()));
    assert_eq!(format!("{error:?}"), "serving: brewing: out of coffee: no beans");

    // candle's own words have no cause.
    let error = Error::from(Candle::Msg("odd".into()).context("reading"));
    assert!(error.to_string() == "reading: odd" && error.source().is_none());
}

/// An error with a cause of its own.
#[derive(Debug, thiserror::Error)]
#[error("out of coffee")]
struct OutOfCoffee {
    source: NoBeans,
}

#[derive(Debug, thiserror::Error)]
#[error("no beans")]
struct NoBeans;

#[test]
fn put_into_candles_by_others_comes_back() {
    assert!(is_typed(Candle::Io(std::io::Error::other(typed()))));
}
