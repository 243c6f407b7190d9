//! Lines over two axes, with their names above them.

use plotters::coord::Shift;
use plotters::prelude::*;
use std::ops::Range;

/// Colours of Okabe and Ito, told apart by colour-blind readers.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);

/// Height of the legend.
const LEGEND: i32 = 24;
/// Numbers at an axis, at most.
const LABELS: usize = 11;

pub type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub struct Axis<'a> {
    pub label: &'a str,
    pub range: Range<f64>,
    /// Whether only whole numbers make sense.
    pub whole: bool,
}

pub struct Line<'a> {
    pub name: &'a str,
    pub colour: RGBColor,
    pub points: Vec<(f64, f64)>,
    /// How far each point reaches up and down, where that is known.
    pub reach: Vec<f64>,
}

impl Axis<'_> {
    /// How many numbers stand at it at most, and how many decimals they have.
    fn labels(&self) -> (usize, usize) {
        let span = self.range.end - self.range.start;
        if self.whole {
            (LABELS.min(span as usize + 1), 0)
        } else {
            (LABELS, (1.0 - span.log10()).ceil().max(0.0) as usize)
        }
    }
}

/// Lines without a point are left out. The others end in a dot, or have one at each point that reaches somewhere.
pub fn panel(area: &Panel, x: Axis, y: Axis, lines: &[Line]) -> Drawn {
    let lines = || lines.iter().filter(|line| !line.points.is_empty());
    let (above, below) = area.split_vertically(LEGEND);
    legend(&above, lines())?;
    let [(x_labels, x_decimals), (y_labels, y_decimals)] = [x.labels(), y.labels()];
    let mut chart = ChartBuilder::on(&below)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(x.range, y.range)?;
    chart
        .configure_mesh()
        .x_desc(x.label)
        .y_desc(y.label)
        .x_labels(x_labels)
        .y_labels(y_labels)
        .x_label_formatter(&|x| format!("{x:.x_decimals$}"))
        .y_label_formatter(&|y| format!("{y:.y_decimals$}"))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for line in lines() {
        let style = line.colour.stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        let reaching = line.points.iter().zip(&line.reach);
        chart
            .draw_series(reaching.map(|(&(x, y), reach)| PathElement::new([(x, y - reach), (x, y + reach)], style)))?;
        let dots = if line.reach.is_empty() {
            line.points.len() - 1..
        } else {
            0..
        };
        let dot = |&point: &(f64, f64)| Circle::new(point, 3, line.colour.filled());
        chart.draw_series(line.points[dots].iter().map(dot))?;
    }
    Ok(())
}

/// Names and colours in a row above the axes, where no line comes.
fn legend<'a>(area: &Panel, lines: impl Iterator<Item = &'a Line<'a>>) -> Drawn {
    const LETTER: i32 = 7; // wide, of the size below
    let (mut x, y) = (70, LEGEND / 2);
    for Line { name, colour, .. } in lines {
        area.draw(&PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)))?;
        area.draw(&Text::new(
            name.to_string(),
            (x + 26, y - 7),
            ("sans-serif", 14).into_font(),
        ))?;
        x += 46 + LETTER * name.chars().count() as i32;
    }
    Ok(())
}
