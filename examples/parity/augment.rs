//! Files of kind `augment`: image operations, beside what Pillow, torchvision and timm made of a photograph.

use std::fmt;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Tensor};
use masksub::augment::{Filter, Image, Normalize, Operation, Rect, ResizeCenterCrop, SimpleRandomCrop};
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
            (0.0, 0.0)
        }
        // Pillow approximates it by box blurs.
        "gaussian_blur" => (3.0, 0.5),
        _ => (2.0, 0.25),
    }
}

/// Runs every recorded case; `get` finds a tensor by name.
pub fn compare<'a>(config: &Value, get: impl Fn(&str) -> Result<&'a Tensor>) -> Result<Vec<Case>> {
    let cases = config["cases"].as_object().filter(|cases| !cases.is_empty());
    let cases = cases.context("it has no cases")?;
    let image = recorded(get("input")?)?;
    let run = |(name, arguments): (&String, &Value)| {
        let arguments = Arguments(arguments);
        let theirs = get(&format!("{name}/out"))?;
        case(name, &arguments, &image, theirs).with_context(|| format!("case {name}"))
    };
    cases.iter().map(run).collect()
}

fn case(name: &str, arguments: &Arguments, image: &Image, theirs: &Tensor) -> Result<Case> {
    let op = arguments.text("op")?;
    let theirs_values = theirs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let (shape, ours): (Vec<usize>, Vec<f64>) = if op == "resize_then_normalize" {
        let side = arguments.count("size")?;
        let normalize = Normalize::new(arguments.numbers("mean")?, arguments.numbers("std")?)?;
        let values = normalize.to_vec(&image.resized(side, side, arguments.filter()?)?);
        (vec![3, side, side], values.into_iter().map(f64::from).collect())
    } else {
        let ours = apply(op, arguments, image)?;
        (
            vec![ours.height(), ours.width(), 3],
            ours.into_raw().into_iter().map(f64::from).collect(),
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
            Ok(255.0 * std[i / (shape[1] * shape[2])])
        }
        _ => anyhow::Ok(1.0),
    };
    let (mut largest, mut sum) = (0f64, 0.0);
    for (i, (a, b)) in ours.iter().zip(&theirs_values).enumerate() {
        let off = (a - b).abs() * step(i)?;
        largest = if off > largest || off.is_nan() { off } else { largest };
        sum += off;
    }
    Ok(case(largest, sum / ours.len() as f64))
}

fn apply(op: &str, arguments: &Arguments, image: &Image) -> Result<Image> {
    let (factor, filter) = (|| arguments.number("factor"), || arguments.filter());
    let fill = if arguments.0["fill"].is_null() {
        [0; 3]
    } else {
        arguments.numbers("fill")?.map(|v| v as u8)
    };
    let op = match op {
        "resized_crop" => {
            let rect = Rect {
                left: arguments.count("left")?,
                top: arguments.count("top")?,
                width: arguments.count("width")?,
                height: arguments.count("height")?,
            };
            let side = arguments.count("size")?;
            return Ok(image.resized_crop(rect, side, side, filter()?)?);
        }
        "resize_shorter_then_center_crop" => {
            let crop = ResizeCenterCrop::new(arguments.count("crop")?)?;
            let crop = crop.with_shorter_side(arguments.count("shorter")?)?;
            return Ok(crop.with_filter(filter()?).apply(image)?);
        }
        "resize_shorter_pad_reflect_crop" => {
            let side = arguments.count("size")?;
            ensure!(
                arguments.count("shorter")? == side,
                "the square is not the shorter side's"
            );
            let crop = SimpleRandomCrop::new(side)?.with_padding(arguments.count("pad")?)?;
            let (left, top) = (arguments.count("left")?, arguments.count("top")?);
            return Ok(crop.crop_at(image, left, top, filter()?)?);
        }
        "hflip" => {
            let mut mirrored = image.clone();
            mirrored.mirror();
            return Ok(mirrored);
        }
        "greyscale" => Operation::grayscale(),
        "solarize" => Operation::solarize(arguments.count("threshold")? as u32)?,
        "solarize_add" => {
            let (add, threshold) = (arguments.count("add")?, arguments.count("threshold")?);
            Operation::solarize_add(add as u8, threshold as u32)?
        }
        "posterize" => Operation::posterize(arguments.count("bits")? as u32)?,
        "invert" => Operation::invert(),
        "auto_contrast" => Operation::auto_contrast(),
        "equalize" => Operation::equalize(),
        "gaussian_blur" => Operation::gaussian_blur(arguments.number("radius")?)?,
        "brightness" => Operation::brightness(factor()?)?,
        "contrast" => Operation::contrast(factor()?)?,
        "saturation" | "color" => Operation::saturation(factor()?)?,
        "sharpness" => Operation::sharpness(factor()?)?,
        "rotate" => Operation::rotate(arguments.number("degrees")?, filter()?, fill)?,
        "shear_x" => Operation::shear_x(factor()?, filter()?, fill)?,
        "shear_y" => Operation::shear_y(factor()?, filter()?, fill)?,
        "translate_x" => Operation::translate_x(arguments.number("fraction")?, filter()?, fill)?,
        "translate_y" => Operation::translate_y(arguments.number("fraction")?, filter()?, fill)?,
        other => bail!("the operation {other} is not known here"),
    };
    let mut changed = image.clone();
    op.apply(&mut changed);
    Ok(changed)
}

fn recorded(image: &Tensor) -> Result<Image> {
    let (height, width) = match image.dims() {
        &[height, width, 3] => (height, width),
        dims => bail!("input has shape {dims:?}, but an image is [height, width, 3]"),
    };
    let pixels = image.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
    Ok(Image::from_raw(width, height, pixels)?)
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
