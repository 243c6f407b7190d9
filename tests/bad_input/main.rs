//! Bad input: each a typed error that names the argument, what it was and what it may be. Nothing panics.

#[path = "../common/mod.rs"]
mod common;
mod dtypes;
mod layouts;
mod losses;
mod masks;
mod norms;
mod passes;
mod settings;
mod sizes;
mod steps;
mod the_vit;

use masksub::{Error, RandomMasking, Seed, StepKey};

fn key() -> StepKey {
    Seed::new(0).at(0)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

fn error_of<T, E: Into<Error>>(result: Result<T, E>) -> Error {
    match result {
        Ok(_) => panic!("bad input was accepted"),
        Err(error) => error.into(),
    }
}

/// The text names the argument, its value and what it may be.
#[track_caller]
fn assert_invalid<T, E: Into<Error>>(result: Result<T, E>, argument: &str, value: &str, allowed: &str) {
    let error = error_of(result);
    assert!(
        matches!(&error, Error::InvalidArgument { argument: a, .. } if *a == argument),
        "{error}"
    );
    let text = error.to_string();
    for part in [argument, value, allowed] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// The text names the argument, its shape and what is expected.
#[track_caller]
fn assert_misshapen<T, E: Into<Error>>(result: Result<T, E>, argument: &str, dims: &[usize], expected: &str) {
    let error = error_of(result);
    assert!(
        matches!(&error, Error::Shape { argument: a, got, .. } if *a == argument && got == dims),
        "{error}"
    );
    let text = error.to_string();
    for part in [argument, &format!("{dims:?}"), expected] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}
