//! Each method's own best settings, chosen on images that are held out of the training images.

use crate::runs::Pool;
use crate::statistics::mean_std;
use crate::study::{Method, Study};
use crate::train;
use anyhow::{bail, Context, Result};

/// Settings in the order in which they are chosen, each with the others as they were last, from vit_imagenet's defaults:
/// the values, and which of them is the default.
const SETTINGS: [(&str, &[&str], usize); 3] = [
    ("--lr", &["5e-4", "1e-3", "2e-3", "4e-3", "8e-3"], 2),
    ("--weight-decay", &["0.02", "0.05", "0.2", "0.5"], 1),
    ("--drop-path", &["0", "0.1", "0.2"], 0),
];

/// By how much plain training is longer: at least the time of MaskSub, whose step takes 1.57 times as long on the digits
/// and up to 1.97 times with ResNet and Swin (RESULTS.md, README.md).
const LONGER: f64 = 2.0;

/// vit_imagenet's, without a recipe.
const DEFAULT_EPOCHS: f64 = 60.0;

/// The study's methods with their best settings, and behind a plain one the same with more epochs.
pub fn best(study: &Study, seeds: u64, pool: &Pool) -> Result<Vec<Method>> {
    let methods: Vec<Method> = study
        .methods
        .iter()
        .map(|method| with_longer(method, &study.flags))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let common = [&study.flags[..], &study.choosing].concat();
    let mut chosen = vec![SETTINGS.map(|(.., default)| default); methods.len()];
    for (at, (_, values, _)) in SETTINGS.iter().enumerate() {
        let of_each = |(method, chosen): (&Method, &Chosen)| {
            let mut tried = *chosen;
            let candidates = (0..values.len()).map(|value| {
                tried[at] = value;
                set(method, tried)
            });
            candidates.collect::<Vec<_>>()
        };
        let candidates: Vec<Method> = methods.iter().zip(&chosen).flat_map(of_each).collect();
        // Those with the values that were chosen before are done already.
        let tried = train(&candidates, &common, seeds, pool)?;
        for (chosen, tried) in chosen.iter_mut().zip(tried.chunks(values.len())) {
            // A run whose loss was NaN at the end is the worst, whatever its accuracy.
            let accuracy = |value: &usize| match mean_std(&tried[*value].top1s()).0 {
                _ if tried[*value].diverged() => f64::NEG_INFINITY,
                mean => mean,
            };
            // Of equal ones the first.
            let best = (0..values.len())
                .rev()
                .max_by(|a, b| accuracy(a).total_cmp(&accuracy(b)));
            chosen[at] = best.unwrap_or(chosen[at]);
            println!(
                "{}: {:.1} % of those held out",
                tried[chosen[at]].method,
                accuracy(&chosen[at])
            );
        }
    }
    Ok(methods
        .iter()
        .zip(chosen)
        .map(|(method, chosen)| set(method, chosen))
        .collect())
}

/// Which of the values of each of the settings.
type Chosen = [usize; SETTINGS.len()];

fn set(method: &Method, chosen: Chosen) -> Method {
    let settings = SETTINGS.iter().zip(chosen);
    settings.fold(method.clone(), |method, ((flag, values, _), value)| {
        method.with(flag, values[value])
    })
}

/// A method, and, where it is plain training, the same for as long as MaskSub takes.
fn with_longer(method: &Method, common: &[String]) -> Result<Vec<Method>> {
    let of = |flags: &[String], name: &str| {
        let value = |(at, flag): (usize, &String)| match flag.strip_prefix(name)? {
            "" => flags.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').map(String::from),
        };
        flags.iter().enumerate().rev().find_map(value)
    };
    let given = |name: &str| of(&method.flags, name).or_else(|| of(common, name));
    let mut methods = vec![method.clone()];
    if of(&method.flags, "--branch").as_deref() == Some("none") {
        let epochs: f64 = match (given("--epochs"), given("--recipe")) {
            (Some(epochs), _) => epochs.parse().with_context(|| format!("--epochs is {epochs:?}"))?,
            (None, Some(recipe)) if recipe != "plain" => bail!(
                "--sweep trains {:?} for {LONGER} times as long, too, and does not know how long --recipe {recipe} is: give \
                 --epochs",
                method.name
            ),
            (None, _) => DEFAULT_EPOCHS,
        };
        let longer = method.with("--epochs", &(LONGER * epochs).round().to_string());
        methods.push(Method { point: None, ..longer });
    }
    Ok(methods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_training_is_also_tried_for_longer() {
        let common = ["--epochs".to_string(), "150".to_string()];
        let names = |text: &str, common: &[String]| {
            let methods = with_longer(&Method::parse(text).unwrap(), common).unwrap();
            methods.into_iter().map(|method| method.name).collect::<Vec<_>>()
        };
        assert_eq!(names("plain=--branch none", &common), ["plain", "plain, epochs 300"]);
        assert_eq!(names("plain=--branch none", &[]), ["plain", "plain, epochs 120"]);
        assert_eq!(names("MaskSub=--branch masksub", &common), ["MaskSub"]);
        assert_eq!(
            names("plain=--branch=none --epochs=10", &common),
            ["plain", "plain, epochs 20"]
        );
        let recipe = ["--recipe=deit3".to_string()];
        assert_eq!(
            names("plain=--branch none --epochs 3", &recipe),
            ["plain", "plain, epochs 6"]
        );
        let error = with_longer(&Method::parse("plain=--branch none").unwrap(), &recipe).unwrap_err();
        assert!(error.to_string().contains("--recipe deit3"), "{error}");
    }

    #[test]
    fn what_is_tried_begins_at_the_defaults() {
        for (flag, default) in [("--lr", "2e-3"), ("--weight-decay", "0.05"), ("--drop-path", "0")] {
            let (_, values, at) = SETTINGS.iter().find(|setting| setting.0 == flag).unwrap();
            assert_eq!(values[*at], default, "{flag}");
        }
    }
}
