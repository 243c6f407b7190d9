//! `curves.svg`: losses and accuracies over the epochs.

use super::metrics::Epoch;
use anyhow::{anyhow, Result};
use plotters::prelude::*;

const SIZE: (u32, u32) = (1100, 460);

/// A curve: its name, its colour (Okabe and Ito's, told apart by colour-blind readers) and its value in an epoch.
type Curve = (&'static str, RGBColor, fn(&Epoch) -> f64);

const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);

const LOSSES: [Curve; 3] = [
    ("training, main branch", BLUE, |e| e.train_loss_main),
    ("training, sub-branch", ORANGE, |e| e.train_loss_sub),
    ("test", GREEN, |e| e.test_loss),
];
const ACCURACIES: [Curve; 3] = [
    ("training top-1", BLUE, |e| e.train_top1),
    ("test top-1", GREEN, |e| e.test_top1),
    ("test top-5", ORANGE, |e| e.test_top5),
];

/// The picture as SVG. Curves without a value are left out.
pub fn svg(epochs: &[Epoch], title: &str) -> Result<String> {
    let mut picture = String::new();
    draw(epochs, title, &mut picture).map_err(|error| anyhow!("cannot draw the curves: {error}"))?;
    Ok(picture)
}

fn draw(epochs: &[Epoch], title: &str, picture: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20))?;
    let (left, right) = root.split_horizontally(SIZE.0 as i32 / 2);
    let highest = |curves: &[Curve]| {
        let values = curves.iter().flat_map(|(_, _, value)| epochs.iter().map(value));
        values.filter(|value| value.is_finite()).fold(0.0, f64::max)
    };
    panel(
        &left,
        epochs,
        "loss",
        1.05 * highest(&LOSSES).max(1e-3),
        SeriesLabelPosition::UpperRight,
        &LOSSES,
    )?;
    panel(
        &right,
        epochs,
        "accuracy, %",
        102.0,
        SeriesLabelPosition::LowerRight,
        &ACCURACIES,
    )?;
    root.present()?;
    Ok(())
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn panel(
    area: &Panel,
    epochs: &[Epoch],
    y_label: &str,
    top: f64,
    legend: SeriesLabelPosition,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let last = epochs.last().map_or(1, |epoch| epoch.epoch).max(2);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(1..last, 0f64..top)?;
    let decimals = (1.0 - top.log10()).ceil().max(0.0) as usize;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc(y_label)
        .y_label_formatter(&|y| format!("{y:.decimals$}"))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for &(name, colour, value) in curves {
        let points: Vec<(usize, f64)> = epochs
            .iter()
            .map(|epoch| (epoch.epoch, value(epoch)))
            .filter(|point| point.1.is_finite())
            .collect();
        if points.is_empty() {
            continue;
        }
        let ends = points.last().copied();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)));
        chart.draw_series(ends.map(|end| Circle::new(end, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(legend)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
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

    #[test]
    fn one_epoch_or_none_is_no_error() {
        svg(&[], "none").unwrap();
        svg(&[epoch(1)], "one").unwrap();
    }
}
