//! Studies: tables of methods, each a name and flags of `vit_imagenet`.

use crate::flags::Branch;
use clap::ValueEnum;

/// A way to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    pub name: String,
    pub flags: Vec<String>,
    /// The branch and the ratio of a point in the picture of accuracy against ratio, where it is one.
    pub point: Option<(String, f64)>,
}

#[derive(Clone, Debug)]
pub struct Study {
    /// Of its section of a report, its pictures and its directory.
    pub name: String,
    /// The first is what the others are compared with.
    pub methods: Vec<Method>,
    /// Of all runs.
    pub flags: Vec<String>,
    pub seeds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Plain, mask-only and MaskSub at ratio 0.5 on 300 digits, 60 epochs; five seeds
    Quick,
    /// The same at several ratios, 150 epochs; ten seeds
    Ratios,
    /// The same with more training images: 1200
    Whole,
    /// MaskSub's losses, weights, targets and drawn ratios, DropSub and PathSub; ten seeds
    Losses,
    /// A small Swin from scratch: ratios, blocks, weights, ratios that grow, more epochs; five seeds
    Swin,
}

/// The digits of the crate, few enough that there is something to gain.
const FEW_DIGITS: &str = "--train-size 300 --epochs 150";
const FEW_MINUTES: &str = "--train-size 300 --epochs 60";

const LOSSES: &[(&str, &str)] = &[
    ("plain", "--branch none"),
    ("soft-CE", "--sub-loss soft-ce"),
    ("KL, T 2", "--sub-loss kl --temperature 2"),
    ("KL, T 4", "--sub-loss kl --temperature 4"),
    ("BCE", "--sub-loss bce"),
    ("BCE in both branches", "--sub-loss bce --loss bce"),
    ("weight 0.25", "--sub-weight 0.25"),
    ("weight 0.75", "--sub-weight 0.75"),
    (
        "ratio drawn from 0.25 to 0.75",
        "--mask-ratio 0.25 --mask-ratio-max 0.75",
    ),
    ("ratio from 0.5 to 0", "--mask-ratio 0.5 --mask-ratio-end 0"),
    ("mutual (CoSub)", "--target mutual"),
    ("average's target", "--target ema --ema 0.99"),
    ("DropSub 0.2", "--branch dropsub --sub-drop-rate 0.2"),
    ("PathSub 0.2", "--branch pathsub --sub-drop-rate 0.2"),
];

const SWIN: &[(&str, &str)] = &[
    ("plain", "--branch none"),
    ("MaskSub 0.5", "--mask-ratio 0.5"),
    ("MaskSub 0.25", "--mask-ratio 0.25"),
    ("blocks of 4 pixels", "--mask-block 4"),
    ("blocks of 16 pixels", "--mask-block 16"),
    ("weight 0.25", "--sub-weight 0.25"),
    ("ratio from 0.1 to 0.5", "--mask-ratio 0.1 --mask-ratio-end 0.5"),
    ("plain, 240 epochs", "--branch none --epochs 240"),
    ("MaskSub 0.5, 240 epochs", "--mask-ratio 0.5 --epochs 240"),
];

/// The study of that name. `ratios` may be empty for its own.
pub fn named(name: Name, branches: &[Branch], ratios: &[f64]) -> Study {
    let few = words(FEW_DIGITS);
    let grid_or = |own: &[f64]| grid(branches, if ratios.is_empty() { own } else { ratios });
    let (name, methods, flags, seeds) = match name {
        Name::Quick => ("quick", grid_or(&[0.5]), words(FEW_MINUTES), 5),
        Name::Ratios => ("ratios", grid_or(&[0.25, 0.5, 0.75]), few, 10),
        Name::Whole => ("whole", grid_or(&[0.5]), vec![], 10),
        Name::Losses => ("losses", table(LOSSES), few, 10),
        Name::Swin => (
            "swin",
            table(SWIN),
            words("--model digits-swin --train-size 300 --epochs 60"),
            5,
        ),
    };
    Study {
        name: name.into(),
        methods,
        flags,
        seeds,
    }
}

/// Branches by ratios.
fn grid(branches: &[Branch], ratios: &[f64]) -> Vec<Method> {
    let at = |name: &str, branch: &str, ratio: f64| Method {
        name: format!("{name} {ratio}"),
        flags: words(&format!("--branch {branch} --mask-ratio {ratio}")),
        point: Some((name.into(), ratio)),
    };
    let methods = |branch: &Branch| match branch {
        Branch::None => vec![Method::new("plain", "--branch none")],
        Branch::MaskOnly => ratios
            .iter()
            .map(|&ratio| at("mask-only", "mask-only", ratio))
            .collect(),
        Branch::Masksub => ratios.iter().map(|&ratio| at("MaskSub", "masksub", ratio)).collect(),
    };
    branches.iter().flat_map(methods).collect()
}

fn table(rows: &[(&str, &str)]) -> Vec<Method> {
    rows.iter().map(|(name, flags)| Method::new(name, flags)).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

impl Method {
    fn new(name: &str, flags: &str) -> Self {
        Self {
            name: name.into(),
            flags: words(flags),
            point: None,
        }
    }

    /// From `NAME=FLAGS`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, flags)) if !name.trim().is_empty() => Ok(Self::new(name.trim(), flags)),
            _ => Err("must be a name, an equals sign and flags of vit_imagenet".into()),
        }
    }

    /// The same with a setting more.
    pub fn with(&self, flag: &str, value: &str) -> Self {
        let mut method = self.clone();
        method.name = format!("{}, {} {value}", self.name, flag.trim_start_matches('-'));
        method.flags.extend([flag.into(), value.into()]);
        method
    }

    /// The name as a directory's.
    pub fn slug(&self) -> String {
        let plain = |c: char| {
            if c.is_alphanumeric() || c == '.' {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let parts = self.name.chars().map(plain).collect::<String>();
        parts
            .split('-')
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("-")
    }
}
