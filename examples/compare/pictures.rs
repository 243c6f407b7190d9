//! The results as pictures: accuracy against the mask ratio or the number of images, the loss against steps and against
//! time.

use crate::chart::{panel, Axis, Drawn, Line, Panel, BLUE, GREEN, ORANGE, PURPLE};
use crate::statistics::{half_width, mean_std};
use crate::study::{Across, Point};
use crate::Compared;
use anyhow::{anyhow, Result};
use plotters::prelude::*;

const HEIGHT: u32 = 480;
const WIDTH: u32 = 560;
/// More lines than these in a picture are not told apart.
const COLOURS: [RGBColor; 6] = [
    BLUE,
    ORANGE,
    GREEN,
    PURPLE,
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
];

/// Names without an extension, and the pictures as SVG.
pub fn all(compared: &[Compared]) -> Result<Vec<(&'static str, String)>> {
    let mut pictures = vec![];
    let mut draw = |name, panels: u32, draw: &dyn Fn(&Panel) -> Drawn| {
        let mut picture = String::new();
        let drawn = {
            let root = SVGBackend::with_string(&mut picture, (panels * WIDTH, HEIGHT)).into_drawing_area();
            root.fill(&WHITE)
                .map_err(Into::into)
                .and_then(|()| draw(&root))
                .and_then(|()| Ok(root.present()?))
        };
        drawn.map_err(|error| anyhow!("cannot draw the {name}: {error}"))?;
        pictures.push((name, picture));
        anyhow::Ok(())
    };
    let lines = lines(compared);
    if lines.iter().any(|line| line.points.len() > 1) {
        let first = compared.iter().find_map(|one| one.method.point.as_ref());
        let across = first.map_or(Across::Ratio, |point| point.across);
        draw("accuracy", 1, &|area| accuracy(area, across, &lines))?;
    }
    draw("loss", 2, &|area| loss(area, compared))?;
    Ok(pictures)
}

/// The mean accuracies of the lines that points make, and of plain training, where it is no point, over all of them.
fn lines(compared: &[Compared]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line> = vec![];
    let mut places = vec![];
    // Plain training, whose the first colour is, where it is no point of its own.
    let base = compared
        .first()
        .filter(|one| one.method.point.is_none() && one.method.group.is_none());
    let no_point = usize::from(base.is_some());
    for one in compared {
        let Some(Point { line: name, at: x, .. }) = &one.method.point else {
            continue;
        };
        places.push(*x);
        let (mean, reach) = mean_and_reach(one);
        let at = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
            lines.push(line(name, COLOURS[(no_point + lines.len()) % COLOURS.len()]));
            lines.len() - 1
        });
        // From left to right, however they were given.
        let before = lines[at].points.partition_point(|point| point.0 < *x);
        lines[at].points.insert(before, (*x, mean));
        lines[at].reach.insert(before, reach);
    }
    let ends = least(&places)
        .zip(greatest(&places))
        .filter(|(first, last)| first < last);
    if let (Some(base), Some((first, last))) = (base, ends) {
        let (mean, reach) = mean_and_reach(base);
        let mut plain = line(&base.method.name, COLOURS[0]);
        plain.points = vec![(first, mean), (last, mean)];
        plain.reach = vec![reach; 2];
        lines.insert(0, plain);
    }
    lines
}

fn line(name: &str, colour: RGBColor) -> Line<'_> {
    Line {
        name,
        colour,
        points: vec![],
        reach: vec![],
    }
}

/// Of the accuracies, with the half of their 95 % interval.
fn mean_and_reach(compared: &Compared) -> (f64, f64) {
    let top1s = compared.top1s();
    (mean_std(&top1s).0, half_width(&top1s).unwrap_or(0.0))
}

fn least(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::min)
}

fn greatest(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::max)
}

fn accuracy(area: &Panel, across: Across, lines: &[Line]) -> Drawn {
    let ends = |sign: f64| {
        let of = move |line: &Line| {
            line.points
                .iter()
                .zip(&line.reach)
                .map(move |(point, reach)| point.1 + sign * reach)
                .collect::<Vec<_>>()
        };
        lines.iter().flat_map(of).collect::<Vec<f64>>()
    };
    let (low, high) = (least(&ends(-1.0)).unwrap_or(0.0), greatest(&ends(1.0)).unwrap_or(100.0));
    let room = (0.05 * (high - low)).max(0.5);
    let x = match across {
        Across::Ratio => Axis {
            label: "mask ratio",
            range: 0.0..1.0,
            whole: false,
            logarithmic: None,
        },
        Across::Images => {
            let mut places: Vec<f64> = lines
                .iter()
                .flat_map(|line| &line.points)
                .map(|point| point.0)
                .collect();
            places.sort_by(f64::total_cmp);
            places.dedup();
            Axis {
                label: "training images",
                range: 0.8 * places.first().copied().unwrap_or(1.0)..1.25 * places.last().copied().unwrap_or(10.0),
                whole: true,
                logarithmic: Some(places),
            }
        }
    };
    let y = Axis {
        label: if lines.iter().flat_map(|line| &line.reach).any(|reach| *reach > 0.0) {
            "test top-1, % (mean, 95 % interval)"
        } else {
            "test top-1, % (mean)"
        },
        range: (low - room).max(0.0)..(high + room).min(100.0),
        whole: false,
        logarithmic: None,
    };
    panel(area, x, y, lines)
}

/// On the left against steps, on the right against seconds in training; means over the seeds.
fn loss(area: &Panel, compared: &[Compared]) -> Drawn {
    let shown = chosen(compared);
    let curves: Vec<(String, RGBColor, Vec<[f64; 3]>)> = shown
        .into_iter()
        .zip(COLOURS)
        .map(|(one, colour)| (one.method.to_string(), colour, mean_curve(one)))
        .collect();
    let (left, right) = area.split_horizontally(WIDTH as i32);
    let all = || curves.iter().flat_map(|(.., curve)| curve);
    let top = all().map(|point| point[2]).fold(0.0, f64::max);
    for (area, label, at) in [(left, "step", 0), (right, "seconds of training", 1)] {
        let lines: Vec<Line> = curves
            .iter()
            .map(|(name, colour, curve)| Line {
                points: curve.iter().map(|point| (point[at], point[2])).collect(),
                ..line(name, *colour)
            })
            .collect();
        let x = Axis {
            label,
            range: 0.0..all().map(|point| point[at]).fold(0.0, f64::max).max(1e-3),
            whole: false,
            logarithmic: None,
        };
        let y = Axis {
            label: "test loss",
            range: 0.0..1.05 * top.max(1e-3),
            whole: false,
            logarithmic: None,
        };
        panel(&area, x, y, &lines)?;
    }
    Ok(())
}

/// Those whose curves are shown: of the same line the middle point, and no more than there are colours.
fn chosen(compared: &[Compared]) -> Vec<&Compared> {
    let line = |one: &Compared| one.method.point.as_ref().map(|point| point.line.clone());
    let is_middle = |one: &&Compared| {
        let same: Vec<_> = compared.iter().filter(|other| line(other) == line(one)).collect();
        line(one).is_none() || same[same.len() / 2].method == one.method
    };
    compared.iter().filter(is_middle).take(COLOURS.len()).collect()
}

/// The curve of a method whose runs all have the same steps, where all of them were evaluated.
fn mean_curve(compared: &Compared) -> Vec<[f64; 3]> {
    let curves: Vec<Vec<[f64; 3]>> = compared
        .outcomes
        .iter()
        .map(|outcome| outcome.curve().collect())
        .collect();
    let epochs = curves.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |epoch: usize, at: usize| curves.iter().map(|curve| curve[epoch][at]).sum::<f64>() / curves.len() as f64;
    let points = (0..epochs).map(|epoch| [0, 1, 2].map(|at| mean(epoch, at)));
    points.filter(|[.., loss]| loss.is_finite()).collect()
}
