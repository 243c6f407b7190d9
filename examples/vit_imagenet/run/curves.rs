//! `curves.svg`: losses and accuracies over the epochs.

use super::chart::{self, Axis, Drawn, Line, Panel, BLUE, GREEN, ORANGE, PURPLE};
use super::metrics::Epoch;
use anyhow::{anyhow, Result};
use plotters::prelude::*;

const SIZE: (u32, u32) = (1100, 480);

/// A curve: its name, its colour and its value in an epoch.
type Curve = (&'static str, RGBColor, fn(&Epoch) -> f64);

const LOSSES: [Curve; 3] = [
    ("training, main branch", BLUE, |e| e.train_loss_main),
    ("training, sub-branch", ORANGE, |e| e.train_loss_sub),
    ("test", GREEN, |e| e.test_loss),
];
const ACCURACIES: [Curve; 3] = [
    ("training top-1", BLUE, |e| e.train_top1),
    ("test top-1", GREEN, |e| e.test_top1),
    ("test top-5", PURPLE, |e| e.test_top5),
];

/// The picture as SVG. Curves without a value are left out.
pub fn svg(epochs: &[Epoch], title: &str) -> Result<String> {
    let mut picture = String::new();
    draw(epochs, title, &mut picture).map_err(|error| anyhow!("cannot draw the curves: {error}"))?;
    Ok(picture)
}

fn draw(epochs: &[Epoch], title: &str, picture: &mut String) -> Drawn {
    let root = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20))?;
    let (left, right) = root.split_horizontally(SIZE.0 as i32 / 2);
    let highest = |curves: &[Curve]| {
        let values = curves.iter().flat_map(|(_, _, value)| epochs.iter().map(value));
        values.filter(|value| value.is_finite()).fold(0.0, f64::max)
    };
    panel(&left, epochs, "loss", 1.05 * highest(&LOSSES).max(1e-3), &LOSSES)?;
    panel(&right, epochs, "accuracy, %", 102.0, &ACCURACIES)?;
    root.present()?;
    Ok(())
}

fn panel(area: &Panel, epochs: &[Epoch], y_label: &str, top: f64, curves: &[Curve]) -> Drawn {
    let line = |&(name, colour, value): &Curve| {
        let points = epochs.iter().map(|epoch| (epoch.epoch as f64, value(epoch)));
        Line {
            name,
            colour,
            points: points.filter(|point| point.1.is_finite()).collect(),
            reach: vec![],
        }
    };
    let lines: Vec<Line> = curves.iter().map(line).collect();
    let last = epochs.last().map_or(1, |epoch| epoch.epoch).max(2);
    let x = Axis {
        label: "epoch",
        range: 1.0..last as f64,
        whole: true,
        logarithmic: None,
    };
    let y = Axis {
        label: y_label,
        range: 0.0..top,
        whole: false,
        logarithmic: None,
    };
    chart::panel(area, x, y, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::metrics::tests::epoch;

    #[test]
    fn shows_the_curves_that_have_values() {
        let mut epochs: Vec<Epoch> = (1..=20).map(epoch).collect();
        let without = svg(&epochs, "a title").unwrap();
        assert!(without.starts_with("<svg") && without.trim_end().ends_with("</svg>"));
        for text in [
            "a title",
            "epoch",
            "loss",
            "accuracy, %",
            "training, main branch",
            "test top-5",
        ] {
            assert!(without.contains(text), "{text}");
        }
        assert!(!without.contains("sub-branch") && !without.contains("NaN"));
        epochs[3].train_loss_sub = 1.0;
        epochs[4].test_loss = f64::INFINITY;
        let with = svg(&epochs, "a title").unwrap();
        assert!(with.contains("sub-branch") && !with.contains("inf"));
    }

    // A reader tells the curves of both panels apart by colour alone; only what is of the same images and branch shares one.
    #[test]
    fn a_colour_is_of_one_thing() {
        let colour = |curves: &[Curve], name: &str| curves.iter().find(|curve| curve.0 == name).map(|curve| curve.1);
        let all: Vec<_> = LOSSES.iter().chain(&ACCURACIES).map(|curve| curve.1).collect();
        assert_eq!(
            colour(&LOSSES, "training, main branch"),
            colour(&ACCURACIES, "training top-1")
        );
        assert_eq!(colour(&LOSSES, "test"), colour(&ACCURACIES, "test top-1"));
        let mut different: Vec<_> = all.iter().map(|colour| (colour.0, colour.1, colour.2)).collect();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), all.len() - 2);
    }

    // Two epochs fill the panels from side to side: the names are above all the curves.
    #[test]
    fn the_legend_covers_no_curve() {
        let picture = svg(&[epoch(1), epoch(2)], "short").unwrap();
        let number = |line: &str, name: &str| -> f64 {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let mut above: f64 = 0.0;
        for (line, text) in picture.lines().zip(picture.lines().skip(1)) {
            if LOSSES.iter().chain(&ACCURACIES).any(|curve| text.trim() == curve.0) {
                above = above.max(number(line, "y"));
            }
        }
        let ends = picture.lines().filter(|line| line.starts_with("<circle"));
        let highest = ends.map(|line| number(line, "cy")).fold(f64::INFINITY, f64::min);
        assert!(above > 0.0 && above < highest, "{above} {highest}");
    }

    #[test]
    fn one_epoch_or_none_is_no_error() {
        svg(&[], "none").unwrap();
        svg(&[epoch(1)], "one").unwrap();
    }
}
