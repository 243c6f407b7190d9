//! Studies: tables of methods, each a name and flags of `vit_imagenet`.

use crate::flags::Branch;
use clap::ValueEnum;
use std::fmt;

/// A way to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// Without its group, which [`Display`](fmt::Display) puts behind it.
    pub name: String,
    pub flags: Vec<String>,
    /// Its place in the picture of accuracies, where it has one.
    pub point: Option<Point>,
    /// What it has in common with those that it is compared with; none where that is all of the study.
    pub group: Option<String>,
}

/// A point of a line in a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub line: String,
    pub across: Across,
    pub at: f64,
}

/// What a picture's accuracies stand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Across {
    Ratio,
    Images,
}

#[derive(Clone, Debug)]
pub struct Study {
    /// Of its section of a report, its pictures and its directory.
    pub name: String,
    /// The first is what the others are compared with, or of each group its first.
    pub methods: Vec<Method>,
    /// Of all runs.
    pub flags: Vec<String>,
    /// Of runs that a sweep chooses by, beside these: what they are evaluated on.
    pub choosing: Vec<String>,
    /// Of runs that are reported, likewise.
    pub reporting: Vec<String>,
    pub seeds: u64,
    /// Where its images come from, which `--data` must say the place of.
    pub images: Option<&'static str>,
}

/// Images that a sweep holds out: none of the test images, and none that are trained on in the end where `--train-size` is
/// given. Without it, all others are trained on while choosing, and these as well in the end.
/// They are looked at when the run is over, unless the method says itself when.
const HELD_OUT: &str = "--validation 300 --evaluate-every 1000000";

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
    /// Fashion-MNIST with strong augmentation, 1000 to 60000 training images, as many steps with each: plain, mask-only,
    /// MaskSub, CoSub; five seeds. Needs --data
    Fashion,
    /// Drawings of 64 pixels, a small ViT, ResNet and Swin: plain, mask-only, MaskSub; five seeds. Needs --data
    Drawings,
}

/// A method's name and flags.
type Row = (&'static str, &'static str);

/// The digits of the crate, few enough that there is something to gain.
const FEW_DIGITS: &str = "--train-size 300 --epochs 150 --evaluate-every 5";
const FEW_MINUTES: &str = "--train-size 300 --epochs 60";

const LOSSES: &[Row] = &[
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

const SWIN: &[Row] = &[
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

/// With each number of training images as many steps: 1200 of 50 images. All of them are not counted, so that a sweep may
/// hold some out.
const FASHION_SIZES: [(usize, &str); 4] = [
    (1_000, "--train-size 1000 --epochs 60 --evaluate-every 20"),
    (4_000, "--train-size 4000 --epochs 15 --evaluate-every 5"),
    (15_000, "--train-size 15000 --epochs 4 --evaluate-every 2"),
    (60_000, "--epochs 1"),
];
/// What is usual for such images: a crop from a margin of 4 pixels, mirrored, a box erased (Z. Zhong et al., "Random Erasing
/// Data Augmentation", 2017, for Fashion-MNIST). 4 x 4 tokens, as of a digit.
const FASHION: &str = "--model digits --image-size 28 --patch-size 7 --batch-size 50 --augment simple-crop --flip 0.5 \
                       --random-erasing 0.25";
const FASHION_METHODS: &[Row] = &[
    ("plain", "--branch none"),
    ("mask-only 0.5", "--branch mask-only --mask-ratio 0.5"),
    ("mask-only 0.75", "--branch mask-only --mask-ratio 0.75"),
    ("MaskSub 0.5", "--mask-ratio 0.5"),
    ("MaskSub 0.75", "--mask-ratio 0.75"),
    // Two submodels of stochastic depth that learn from each other (H. Touvron et al., "Co-training 2^L Submodels", 2022).
    (
        "CoSub",
        "--branch pathsub --sub-drop-rate 0.1 --drop-path 0.1 --target mutual",
    ),
];
const FASHION_IMAGES: &str =
    "Fashion-MNIST, four IDX files, such as those of Debian's package dataset-fashion-mnist in /usr/share/datasets/fashion-mnist";

const DRAWINGS: &str = "--image-size 64 --epochs 30 --evaluate-every 5";
const DRAWINGS_NETWORKS: &[(&str, &str, &[Row])] = &[
    (
        "ViT",
        "--model digits --patch-size 8",
        &[
            ("plain", "--branch none"),
            ("mask-only 0.5", "--branch mask-only"),
            ("MaskSub 0.5", "--branch masksub"),
        ],
    ),
    ("ResNet", "--model digits-resnet", BLOCKS),
    ("Swin", "--model digits-swin --patch-size 4", BLOCKS),
];
const BLOCKS: &[Row] = &[
    ("plain", "--branch none"),
    ("mask-only 0.5, block 32", "--branch mask-only --mask-block 32"),
    ("mask-only 0.5, block 16", "--branch mask-only --mask-block 16"),
    ("MaskSub 0.5, block 32", "--mask-block 32"),
    ("MaskSub 0.5, block 16", "--mask-block 16"),
];
const DRAWINGS_IMAGES: &str =
    "a tree of drawings of 64 pixels, such as benches/data/emoji_tree.py makes of the drawings of two emoji fonts";

/// The study of that name. `ratios` may be empty for its own.
pub fn named(name: Name, branches: &[Branch], ratios: &[f64]) -> Study {
    let few = words(FEW_DIGITS);
    let grid_or = |own: &[f64]| grid(branches, if ratios.is_empty() { own } else { ratios });
    let (name, methods, flags, seeds) = match name {
        Name::Quick => ("quick", grid_or(&[0.5]), words(FEW_MINUTES), 5),
        Name::Ratios => ("ratios", grid_or(&[0.25, 0.5, 0.75]), few, 10),
        Name::Whole => ("whole", grid_or(&[0.5]), words("--evaluate-every 3"), 10),
        Name::Losses => ("losses", table(LOSSES), few, 10),
        Name::Swin => (
            "swin",
            table(SWIN),
            words("--model digits-swin --train-size 300 --epochs 60 --evaluate-every 5"),
            5,
        ),
        Name::Fashion => ("fashion", fashion(), words(FASHION), 5),
        Name::Drawings => ("drawings", drawings(), words(DRAWINGS), 5),
    };
    Study {
        name: name.into(),
        methods,
        flags,
        choosing: words(HELD_OUT),
        reporting: vec![],
        seeds,
        images: match name {
            "fashion" => Some(FASHION_IMAGES),
            "drawings" => Some(DRAWINGS_IMAGES),
            _ => None,
        },
    }
}

/// Methods by numbers of training images.
fn fashion() -> Vec<Method> {
    let with = |&(images, size): &(usize, &'static str)| {
        let of_size = move |&(name, flags): &Row| {
            let mut method = Method::new(name, &format!("{flags} {size}"));
            method.point = Some(Point {
                line: name.into(),
                across: Across::Images,
                at: images as f64,
            });
            method.in_group(&format!("{images} images"))
        };
        FASHION_METHODS.iter().map(of_size)
    };
    FASHION_SIZES.iter().flat_map(with).collect()
}

/// Networks, each with the methods that it can be trained by.
fn drawings() -> Vec<Method> {
    let of_network = |&(network, model, methods): &(&str, &str, &'static [Row])| {
        let method = move |&(name, flags): &Row| Method::new(name, &format!("{model} {flags}")).in_group(network);
        methods.iter().map(method).collect::<Vec<_>>()
    };
    DRAWINGS_NETWORKS.iter().flat_map(of_network).collect()
}

/// Branches by ratios.
fn grid(branches: &[Branch], ratios: &[f64]) -> Vec<Method> {
    let at = |name: &str, branch: &str, ratio: f64| Method {
        name: format!("{name} {ratio}"),
        flags: words(&format!("--branch {branch} --mask-ratio {ratio}")),
        point: Some(Point {
            line: name.into(),
            across: Across::Ratio,
            at: ratio,
        }),
        group: None,
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

fn table(rows: &[Row]) -> Vec<Method> {
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
            group: None,
        }
    }

    /// The same, to be compared with others of its group.
    fn in_group(self, group: &str) -> Self {
        Self {
            group: Some(group.into()),
            ..self
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

    /// The name and the group as a directory's name.
    pub fn slug(&self) -> String {
        let plain = |c: char| {
            if c.is_alphanumeric() || c == '.' {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let parts = self.to_string().chars().map(plain).collect::<String>();
        parts
            .split('-')
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("-")
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            Some(group) => write!(f, "{}, {group}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
