//! Compares the examples' image operations with what Pillow, torchvision and timm made of a photograph.

#[path = "../vit_imagenet/augment/mod.rs"]
mod images;

use std::fmt;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Tensor};
use images::crop::{CentreCrop, SimpleCrop};
use images::normalize::Normalization;
use images::op::Op;
use images::pixels::{Area, Filter, Pixels, CHANNELS};
use serde_json::Value;

/// How far an image is from the recorded one, in steps of 1/255.
pub struct Case {
    pub name: String,
    pub largest: f64,
    pub mean: f64,
    /// What `largest` and `mean` may be.
    pub tolerance: (f64, f64),
}

impl Case {
    /// NaN is not within any tolerance.
    pub fn is_ok(&self) -> bool {
        self.largest <= self.tolerance.0 && self.mean <= self.tolerance.1
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.is_ok() { "" } else { "  <-" };
        write!(
            f,
            "largest={:.2} mean={:.4}  {}{mark}",
            self.largest, self.mean, self.name
        )
    }
}

/// The tolerances that the recorded file's description states: what computes with integers is exact.
fn tolerance(op: &str) -> (f64, f64) {
    match op {
        "hflip" | "greyscale" | "solarize" | "solarize_add" | "posterize" | "invert" | "auto_contrast" | "equalize" => {
            (0., 0.)
        }
        // Pillow approximates it by box blurs.
        "gaussian_blur" => (3., 0.5),
        _ => (2., 0.25),
    }
}

/// Runs every recorded case; `get` finds a tensor by name.
pub fn compare<'a>(config: &Value, get: impl Fn(&str) -> Result<&'a Tensor>) -> Result<Vec<Case>> {
    let cases = config["cases"].as_object().filter(|cases| !cases.is_empty());
    let cases = cases.context("it has no cases")?;
    let image = pixels(get("input")?)?;
    let run = |(name, arguments): (&String, &Value)| {
        let arguments = Arguments(arguments);
        let theirs = get(&format!("{name}/out"))?;
        case(name, &arguments, &image, theirs).with_context(|| format!("case {name}"))
    };
    cases.iter().map(run).collect()
}

fn case(name: &str, arguments: &Arguments, image: &Pixels, theirs: &Tensor) -> Result<Case> {
    let op = arguments.text("op")?;
    let theirs_values = theirs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let (shape, ours): (Vec<usize>, Vec<f64>) = if op == "resize_then_normalize" {
        let side = arguments.count("size")?;
        let by = Normalization {
            mean: arguments.numbers("mean")?,
            std: arguments.numbers("std")?,
        };
        let small = image.resized(image.whole(), side, side, arguments.filter()?)?;
        let mut values = vec![0f32; 3 * side * side];
        by.write(&small, &mut values);
        (vec![CHANNELS, side, side], values.into_iter().map(f64::from).collect())
    } else {
        let ours = apply(op, arguments, image)?;
        (
            vec![ours.height, ours.width, 3],
            ours.values.into_iter().map(f64::from).collect(),
        )
    };
    let case = |largest, mean| Case {
        name: name.into(),
        largest,
        mean,
        tolerance: tolerance(op),
    };
    if shape != theirs.dims() {
        return Ok(case(f64::INFINITY, f64::INFINITY)); // another size is as far off as can be
    }
    // Normalised values in steps of 1/255 of the image they came from.
    let step = |i: usize| match op {
        "resize_then_normalize" => {
            let std: [f64; 3] = arguments.numbers("std")?;
            Ok(255. * std[i / (shape[1] * shape[2])])
        }
        _ => anyhow::Ok(1.),
    };
    let (mut largest, mut sum) = (0f64, 0.);
    for (i, (a, b)) in ours.iter().zip(&theirs_values).enumerate() {
        let off = (a - b).abs() * step(i)?;
        largest = if off > largest || off.is_nan() { off } else { largest };
        sum += off;
    }
    Ok(case(largest, sum / ours.len() as f64))
}

fn apply(op: &str, arguments: &Arguments, image: &Pixels) -> Result<Pixels> {
    let factor = || arguments.number("factor");
    let op = match op {
        "resized_crop" => {
            let area = Area {
                left: arguments.count("left")?,
                top: arguments.count("top")?,
                width: arguments.count("width")?,
                height: arguments.count("height")?,
            };
            let side = arguments.count("size")?;
            return image.resized(area, side, side, arguments.filter()?);
        }
        "resize_shorter_then_center_crop" => {
            let shorter = arguments.count("shorter")?;
            return CentreCrop { shorter }.cut(image, arguments.count("crop")?, arguments.filter()?);
        }
        "resize_shorter_pad_reflect_crop" => {
            let (side, pad) = (arguments.count("size")?, arguments.count("pad")?);
            ensure!(
                arguments.count("shorter")? == side,
                "the square is not the shorter side's"
            );
            let place = (arguments.count("left")?, arguments.count("top")?);
            return SimpleCrop { pad }.cut(image, side, place, arguments.filter()?);
        }
        "hflip" => {
            let mut mirrored = image.clone();
            mirrored.mirror();
            return Ok(mirrored);
        }
        "greyscale" => Op::Greyscale,
        "solarize" => Op::Solarize {
            threshold: arguments.count("threshold")? as u32,
        },
        "solarize_add" => Op::SolarizeAdd {
            add: arguments.count("add")? as u8,
            threshold: arguments.count("threshold")? as u32,
        },
        "posterize" => Op::Posterize {
            bits: arguments.count("bits")? as u32,
        },
        "invert" => Op::Invert,
        "auto_contrast" => Op::AutoContrast,
        "equalize" => Op::Equalize,
        "gaussian_blur" => Op::GaussianBlur {
            radius: arguments.number("radius")?,
        },
        "brightness" => Op::Brightness { factor: factor()? },
        "contrast" => Op::Contrast { factor: factor()? },
        "saturation" | "color" => Op::Saturation { factor: factor()? },
        "sharpness" => Op::Sharpness { factor: factor()? },
        "rotate" => Op::Rotate {
            degrees: arguments.number("degrees")?,
            filter: arguments.filter()?,
        },
        "shear_x" => Op::ShearX {
            factor: factor()?,
            filter: arguments.filter()?,
        },
        "shear_y" => Op::ShearY {
            factor: factor()?,
            filter: arguments.filter()?,
        },
        "translate_x" => Op::TranslateX {
            share: arguments.number("fraction")?,
            filter: arguments.filter()?,
        },
        "translate_y" => Op::TranslateY {
            share: arguments.number("fraction")?,
            filter: arguments.filter()?,
        },
        other => bail!("the operation {other} is not known here"),
    };
    let fill = match arguments.0["fill"].is_null() {
        true => [0; 3],
        false => arguments.numbers("fill")?.map(|v| v as u8),
    };
    let mut changed = image.clone();
    op.apply(&mut changed, fill);
    Ok(changed)
}

fn pixels(image: &Tensor) -> Result<Pixels> {
    let (height, width) = match image.dims() {
        &[height, width, CHANNELS] => (height, width),
        dims => bail!("input has shape {dims:?}, but an image is [height, width, 3]"),
    };
    Ok(Pixels {
        width,
        height,
        values: image.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?,
    })
}

/// A case's arguments by name.
struct Arguments<'a>(&'a Value);

impl Arguments<'_> {
    fn text(&self, key: &str) -> Result<&str> {
        self.0[key].as_str().with_context(|| format!("it has no {key}"))
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.0[key].as_f64().with_context(|| format!("it has no {key}"))
    }

    fn count(&self, key: &str) -> Result<usize> {
        let count = self.0[key].as_u64().with_context(|| format!("it has no {key}"))?;
        Ok(count as usize)
    }

    fn numbers<const N: usize>(&self, key: &str) -> Result<[f64; N]> {
        let list = self.0[key].as_array().with_context(|| format!("it has no {key}"))?;
        let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        numbers
            .and_then(|numbers| numbers.try_into().ok())
            .with_context(|| format!("{key} are not {N} numbers"))
    }

    fn filter(&self) -> Result<Filter> {
        match self.text("filter")? {
            "bilinear" => Ok(Filter::Bilinear),
            "bicubic" => Ok(Filter::Bicubic),
            other => bail!("the filter {other} is not known here"),
        }
    }
}
