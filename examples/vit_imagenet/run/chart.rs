//! Lines over two axes, with their names above them.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::ops::Range;

/// Colours of Okabe and Ito, told apart by colour-blind readers.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);

/// Height of a row of the legend, where the rows begin, and how wide a letter is, of the size that it has there.
const ROW: i32 = 24;
const LEFT: i32 = 70;
const LETTER: i32 = 7;
/// Numbers at an axis, at most.
const LABELS: usize = 11;

pub type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub struct Axis<'a> {
    pub label: &'a str,
    pub range: Range<f64>,
    /// Whether only whole numbers make sense.
    pub whole: bool,
    /// Divided by logarithms, with numbers at these.
    pub logarithmic: Option<Vec<f64>>,
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

/// Lines without a point are left out. The others end in a dot, or have one at each point that reaches somewhere. `y` is
/// not logarithmic.
pub fn panel(area: &Panel, x: Axis, y: Axis, lines: &[Line]) -> Drawn {
    let lines: Vec<&Line> = lines.iter().filter(|line| !line.points.is_empty()).collect();
    let places = places(lines.iter().map(|line| line.name), area.dim_in_pixel().0 as i32);
    let rows = places.last().map_or(1, |place| place.1 + 1);
    let (above, below) = area.split_vertically(rows * ROW);
    legend(&above, lines.iter().zip(places))?;
    let mut chart = ChartBuilder::on(&below);
    chart.margin(12).x_label_area_size(42).y_label_area_size(58);
    match &x.logarithmic {
        Some(ticks) => {
            let range = Logarithms {
                range: x.range.clone(),
                ticks: ticks.clone(),
            };
            let mut chart = chart.build_cartesian_2d(range, y.range.clone())?;
            draw(&mut chart, &x, &y, &lines)
        }
        None => {
            let mut chart = chart.build_cartesian_2d(x.range.clone(), y.range.clone())?;
            draw(&mut chart, &x, &y, &lines)
        }
    }
}

/// Numbers above 0 at the places of their logarithms.
struct Logarithms {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Logarithms {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value / self.range.start).ln() / (self.range.end / self.range.start).ln();
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn draw<X: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    chart: &mut ChartContext<SVGBackend, Cartesian2d<X, RangedCoordf64>>,
    x: &Axis,
    y: &Axis,
    lines: &[&Line],
) -> Drawn {
    let ((x_labels, x_decimals), (y_labels, y_decimals)) = (x.labels(), y.labels());
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
    for line in lines {
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

/// Names and colours above the axes, where no line comes.
fn legend<'a>(area: &Panel, lines: impl Iterator<Item = (&'a &'a Line<'a>, (i32, i32))>) -> Drawn {
    for (Line { name, colour, .. }, (x, row)) in lines {
        let y = row * ROW + ROW / 2;
        area.draw(&PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(3)))?;
        area.draw(&Text::new(
            name.to_string(),
            (x + 26, y - 7),
            ("sans-serif", 14).into_font(),
        ))?;
    }
    Ok(())
}

/// Where each name's sign stands and in which row: in as many as fit in the width.
fn places<'a>(names: impl Iterator<Item = &'a str>, width: i32) -> Vec<(i32, i32)> {
    let (mut x, mut row) = (LEFT, 0);
    let place = |name: &str| {
        let wide = 46 + LETTER * name.chars().count() as i32;
        if x > LEFT && x + wide > width {
            (x, row) = (LEFT, row + 1);
        }
        let place = (x, row);
        x += wide;
        place
    };
    names.map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_fit_go_on_in_the_next_row() {
        let names = [
            "plain",
            "mask-only 0.5",
            "MaskSub 0.5",
            "ratio drawn from 0.25 to 0.75",
            "KL",
        ];
        let places = |width| places(names.into_iter(), width);
        assert!(places(2000).iter().all(|place| place.1 == 0));
        for width in [300, 560] {
            let places = places(width);
            assert!(places[4].1 > 0);
            for (&(x, row), name) in places.iter().zip(names) {
                assert!(x + 26 + LETTER * name.len() as i32 <= width, "{name} in row {row}");
            }
        }
        // One that is too long for any row stands alone.
        assert_eq!(
            places(100).iter().map(|place| place.1).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
    }

    #[test]
    fn a_logarithmic_axis_has_its_numbers_and_even_steps() {
        let mut picture = String::new();
        let line = Line {
            name: "a line",
            colour: BLUE,
            points: [1e3, 1e4, 1e5].map(|x| (x, 1.0)).to_vec(),
            reach: vec![0.5; 3],
        };
        {
            let root = SVGBackend::with_string(&mut picture, (560, 480)).into_drawing_area();
            let x = Axis {
                label: "images",
                range: 900.0..110e3,
                whole: true,
                logarithmic: Some(vec![1e3, 1e4, 1e5]),
            };
            let y = Axis {
                label: "y",
                range: 0.0..2.0,
                whole: false,
                logarithmic: None,
            };
            panel(&root, x, y, &[line]).unwrap();
            root.present().unwrap();
        }
        let lines: Vec<&str> = picture.lines().map(str::trim).collect();
        for number in ["1000", "10000", "100000", "images", "a line"] {
            assert!(lines.contains(&number), "{number}");
        }
        let centre = |line: &&str| {
            line.strip_prefix("<circle cx=\"")?
                .split('"')
                .next()?
                .parse::<f64>()
                .ok()
        };
        let dots: Vec<f64> = lines.iter().filter_map(centre).collect();
        assert_eq!(dots.len(), 3);
        assert!(dots[1] - dots[0] > 100.0, "{dots:?}");
        assert!((dots[2] - dots[1] - (dots[1] - dots[0])).abs() <= 1.0, "{dots:?}");
    }
}
