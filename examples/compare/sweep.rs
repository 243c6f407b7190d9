//! Each method's own best settings, chosen on images that are held out of the training images.

use crate::runs::Pool;
use crate::statistics::mean_std;
use crate::study::{Method, Study};
use crate::train;
use anyhow::Result;

/// Settings in the order in which they are chosen, each with the others as they were last, from vit_imagenet's defaults:
/// the values, and which of them is the default.
const SETTINGS: [(&str, &[&str], usize); 3] = [
    ("--lr", &["5e-4", "1e-3", "2e-3", "4e-3", "8e-3"], 2),
    ("--weight-decay", &["0.02", "0.05", "0.2", "0.5"], 1),
    ("--drop-path", &["0", "0.1", "0.2"], 0),
];

/// Images held out: of those that are trained on in the end, none, and of the test images, none.
const VALIDATION: [&str; 2] = ["--validation", "300"];

/// By how much plain training is longer, to take the time of MaskSub with token dropping.
const LONGER: f64 = 1.5;

/// The study's methods with their best settings, and behind a plain one the same with more epochs.
pub fn best(study: &Study, seeds: u64, pool: &Pool) -> Result<Vec<Method>> {
    let methods: Vec<Method> = study
        .methods
        .iter()
        .flat_map(|method| with_longer(method, &study.flags))
        .collect();
    let common: Vec<String> = study
        .flags
        .iter()
        .cloned()
        .chain(VALIDATION.map(String::from))
        .collect();
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
            let accuracy = |value: &usize| mean_std(&tried[*value].top1s()).0;
            // Of equal ones the first.
            let best = (0..values.len())
                .rev()
                .max_by(|a, b| accuracy(a).total_cmp(&accuracy(b)));
            chosen[at] = best.unwrap_or(chosen[at]);
            println!(
                "{}: {:.1} % of those held out",
                tried[chosen[at]].method.name,
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
fn with_longer(method: &Method, common: &[String]) -> Vec<Method> {
    let of = |flags: &[String], name: &str| {
        let at = flags.iter().rposition(|flag| flag == name)?;
        flags.get(at + 1).cloned()
    };
    let mut methods = vec![method.clone()];
    if of(&method.flags, "--branch").as_deref() == Some("none") {
        let epochs = of(&method.flags, "--epochs").or_else(|| of(common, "--epochs"));
        let epochs = epochs.and_then(|epochs| epochs.parse::<f64>().ok()).unwrap_or(60.0); // vit_imagenet's
        methods.push(method.with("--epochs", &(LONGER * epochs).round().to_string()));
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_training_is_also_tried_for_longer() {
        let common = ["--epochs".to_string(), "150".to_string()];
        let names = |text: &str, common: &[String]| {
            let methods = with_longer(&Method::parse(text).unwrap(), common);
            methods.into_iter().map(|method| method.name).collect::<Vec<_>>()
        };
        assert_eq!(names("plain=--branch none", &common), ["plain", "plain, epochs 225"]);
        assert_eq!(names("plain=--branch none", &[]), ["plain", "plain, epochs 90"]);
        assert_eq!(names("MaskSub=--branch masksub", &common), ["MaskSub"]);
    }

    #[test]
    fn what_is_tried_begins_at_the_defaults() {
        for (flag, default) in [("--lr", "2e-3"), ("--weight-decay", "0.05"), ("--drop-path", "0")] {
            let (_, values, at) = SETTINGS.iter().find(|setting| setting.0 == flag).unwrap();
            assert_eq!(values[*at], default, "{flag}");
        }
    }
}
