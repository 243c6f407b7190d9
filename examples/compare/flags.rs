//! The flags of `compare`.

use crate::study::{self, Method, Name, Study};
use anyhow::{bail, ensure, Result};
use clap::{value_parser, Parser, ValueEnum};
use std::path::{Path, PathBuf};

/// Compares ways to train, over seeds: plain training, masks alone, MaskSub. Each run is a process of the example
/// vit_imagenet; those that are done are not run again, and those that were interrupted go on.
#[derive(Parser, Debug)]
#[command(
    name = "compare",
    args_override_self = true,
    after_help = "Flags of vit_imagenet that all runs have follow behind --, such as -- --model digits-resnet --epochs 30. \
                  Writes runs.csv (a line for each run), table.md and pictures to --out. The interval is Student's, of the \
                  differences to the first method seed by seed."
)]
pub struct Flags {
    /// What is compared
    #[arg(long, value_enum, default_value = "ratios", overrides_with = "quick")]
    study: Name,

    /// The same as --study quick: plain, mask-only, MaskSub, five seeds, about five minutes on two cores
    #[arg(long)]
    quick: bool,

    /// Branches of the studies quick and ratios; none is plain training
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LIST",
        default_value = "none,mask-only,masksub"
    )]
    branches: Vec<Branch>,

    /// Mask ratios of these branches, but for none. Default: 0.5 in quick, 0.25,0.5,0.75 in ratios
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    ratios: Vec<f64>,

    /// One more method: a name and flags of vit_imagenet, as in "T 4=--sub-loss kl --temperature 4"; may be repeated
    #[arg(long = "method", value_name = "NAME=FLAGS", value_parser = Method::parse)]
    methods: Vec<Method>,

    /// Choose learning rate, weight decay and drop path for each method first, one after the other, by accuracy on 300
    /// training images that are held out, or on val where --data has val and test; then train with the best ones, and
    /// report on the test images
    #[arg(long)]
    pub sweep: bool,

    /// Seeds that --sweep chooses by
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u64).range(1..))]
    pub seeds_to_choose: u64,

    /// Seeds, from 0 on. Default: the study's (5 or 10)
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    seeds: Option<u64>,

    /// Runs at a time. Default: one for each core; the cores are shared evenly
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Images as vit_imagenet takes them, in the place of the digits, or those that the study is of. A tree with a test
    /// beside train is reported on it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Where runs, table and pictures go. Default: out/compare/ and the study's name, with -data and -sweep where these
    /// flags are given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Put the table into this Markdown file, too, between the two lines that name the study, or at its end; the pictures
    /// into the directory of its name beside it
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,

    /// Flags of vit_imagenet for all runs
    #[arg(last = true, value_name = "FLAGS")]
    common: Vec<String>,
}

/// As vit_imagenet has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Branch {
    None,
    MaskOnly,
    Masksub,
}

impl Flags {
    /// Runs at a time.
    pub fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(cores, usize::from)
    }

    /// Where runs, table and pictures of `study` go.
    pub fn out(&self, study: &Study) -> PathBuf {
        let own = || Path::new("out/compare").join(&study.name);
        self.out.clone().unwrap_or_else(own)
    }

    /// The methods, seeds and common flags that were asked for.
    pub fn study(&self) -> Result<Study> {
        let name = if self.quick { Name::Quick } else { self.study };
        let mut study = study::named(name, &self.branches, &self.ratios);
        study.methods.extend(self.methods.iter().cloned());
        study.seeds = self.seeds.unwrap_or(study.seeds);
        match (&self.data, study.images) {
            (None, None) => {}
            (None, Some(images)) => bail!("--study {} is of images that --data must name: {images}", study.name),
            (Some(data), images) => {
                let data_flags = vec!["--data".into(), data.display().to_string()];
                if images.is_some() {
                    study.flags.splice(0..0, data_flags);
                } else {
                    // What the study sets is for the digits.
                    study.flags = data_flags;
                    study.name += "-data";
                }
                let is_tree_with = |name: &str| !is_idx_set(data) && data.join(name).is_dir();
                if is_tree_with("test") {
                    study.reporting = ["--val-split", "test"].map(String::from).to_vec();
                    // With a val beside it, the tree says itself what settings are chosen by. Without one, images are
                    // held out as ever, and test only has the classes to compare.
                    if is_tree_with("val") {
                        study.choosing = vec![];
                    } else {
                        study.choosing.extend(study.reporting.iter().cloned());
                    }
                }
            }
        }
        if self.sweep {
            study.name += "-sweep";
        }
        study.flags.extend(self.common.iter().cloned());
        let mut slugs: Vec<String> = study.methods.iter().map(Method::slug).collect();
        slugs.sort_unstable();
        ensure!(
            !slugs.is_empty(),
            "there is no method to compare: --branches or --method names some"
        );
        for pair in slugs.windows(2) {
            ensure!(
                pair[0] != pair[1],
                "two methods are called {:?}: give one another name",
                pair[0]
            );
        }
        Ok(study)
    }
}

/// Whether vit_imagenet takes `data` for a set of IDX files, whatever directories stand beside them.
fn is_idx_set(data: &Path) -> bool {
    let stems = [
        "train-images-idx3",
        "train-labels-idx1",
        "t10k-images-idx3",
        "t10k-labels-idx1",
    ];
    let is_there = |stem: &str| {
        ["", ".gz"]
            .iter()
            .any(|end| data.join(format!("{stem}-ubyte{end}")).is_file())
    };
    stems.into_iter().any(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn study(args: &[&str]) -> Result<Study> {
        Flags::try_parse_from([&["compare"], args].concat())?.study()
    }

    #[test]
    fn flags_are_consistent_and_all_have_help() {
        Flags::command().debug_assert();
        assert!(Flags::command().get_arguments().all(|arg| arg.get_help().is_some()));
    }

    #[test]
    fn a_study_is_branches_by_ratios_and_what_is_added() {
        let names = |study: &Study| {
            study
                .methods
                .iter()
                .map(|method| method.name.clone())
                .collect::<Vec<_>>()
        };
        let quick = study(&["--quick"]).unwrap();
        assert_eq!(names(&quick), ["plain", "mask-only 0.5", "MaskSub 0.5"]);
        assert_eq!(quick.seeds, 5);
        let own = study(&[
            "--branches",
            "none,masksub",
            "--ratios",
            "0.1,0.2",
            "--seeds",
            "3",
            "--method",
            "T 4=--temperature 4",
            "--",
            "--epochs",
            "2",
        ])
        .unwrap();
        assert_eq!(names(&own), ["plain", "MaskSub 0.1", "MaskSub 0.2", "T 4"]);
        assert_eq!(
            (own.seeds, own.methods[3].flags.join(" ")),
            (3, "--temperature 4".into())
        );
        assert!(own.flags.ends_with(&["--epochs".into(), "2".into()]));
        // The settings of the digits are not those of other images.
        let data = study(&["--data", "d"]).unwrap();
        assert_eq!(data.flags, ["--data", "d"]);
    }

    /// Every flag is one of vit_imagenet's, and each number of images has as many steps.
    #[test]
    fn studies_of_images_say_what_they_need() {
        for name in ["fashion", "drawings"] {
            let error = study(&["--study", name]).unwrap_err().to_string();
            assert!(error.contains("--data must name"), "{error}");
            let study = study(&["--study", name, "--data", "d", "--", "--lr", "1"]).unwrap();
            assert_eq!((&study.name[..], study.seeds), (name, 5));
            assert!(study.flags.starts_with(&["--data".into(), "d".into()]));
            assert!(study.flags.ends_with(&["--lr".into(), "1".into()]));
            assert!(study.reporting.is_empty() && !study.choosing.is_empty());
        }
        let fashion = study(&["--study", "fashion", "--data", "d"]).unwrap();
        let number = |method: &Method, flag: &str| -> Option<usize> {
            let at = method.flags.iter().position(|word| word == flag)?;
            method.flags[at + 1].parse().ok()
        };
        assert_eq!(fashion.choosing[0], "--validation");
        let held_out: usize = fashion.choosing[1].parse().unwrap();
        for method in &fashion.methods {
            let images = number(method, "--train-size").unwrap_or(60_000);
            assert_eq!(images as f64, method.point.as_ref().unwrap().at);
            assert_eq!(images / 50 * number(method, "--epochs").unwrap(), 1200);
            // Those that are held out are not among those that are counted.
            let counted = number(method, "--train-size").unwrap_or(0);
            assert!(counted + held_out <= 60_000, "{method}");
        }
        let names: Vec<_> = fashion.methods.iter().map(|method| &method.name[..]).collect();
        assert_eq!(names[..2], ["plain", "mask-only 0.5"]);
        assert_eq!(names[..6], names[18..]);
        assert_eq!(fashion.methods[18].to_string(), "plain, 60000 images");
        // A sweep's settings are the method's, whatever its group.
        let set = fashion.methods[18].with("--lr", "2e-3");
        assert_eq!(
            [&set.name, &set.to_string(), &set.slug()],
            [
                "plain, lr 2e-3",
                "plain, lr 2e-3, 60000 images",
                "plain-lr-2e-3-60000-images"
            ]
        );
    }

    #[test]
    fn a_tree_in_three_parts_is_reported_on_the_third() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().to_str().unwrap();
        let of = |args: &[&str]| {
            let study = study(&[args, &["--data", data]].concat()).unwrap();
            (study.choosing.join(" "), study.reporting.join(" "))
        };
        assert_eq!(
            of(&["--quick"]),
            ("--validation 300 --evaluate-every 1000000".into(), String::new())
        );
        std::fs::create_dir(root.path().join("test")).unwrap();
        let held_out = "--validation 300 --evaluate-every 1000000 --val-split test".to_string();
        assert_eq!(of(&["--quick"]), (held_out, "--val-split test".into()));
        std::fs::create_dir(root.path().join("val")).unwrap();
        for args in [&["--quick"][..], &["--study", "drawings"]] {
            assert_eq!(of(args), (String::new(), "--val-split test".into()));
        }
        std::fs::write(root.path().join("t10k-labels-idx1-ubyte.gz"), "").unwrap();
        assert_eq!(
            of(&["--quick"]),
            ("--validation 300 --evaluate-every 1000000".into(), String::new())
        );
    }

    /// Runs of one have other flags than those of another of the same method.
    #[test]
    fn each_study_has_a_name_and_a_place_of_its_own() {
        let of = |args: &[&str]| {
            let flags = Flags::try_parse_from([&["compare"], args].concat()).unwrap();
            let study = flags.study().unwrap();
            (study.name.clone(), flags.out(&study).display().to_string())
        };
        for (args, name) in [
            (&["--quick"][..], "quick"),
            (&["--study", "ratios"], "ratios"),
            (&["--quick", "--sweep"], "quick-sweep"),
            (&["--quick", "--data", "d"], "quick-data"),
            (&["--quick", "--data", "d", "--sweep"], "quick-data-sweep"),
        ] {
            assert_eq!(of(args), (name.to_string(), format!("out/compare/{name}")));
        }
        assert_eq!(of(&["--quick", "--out", "o"]).1, "o");
    }

    #[test]
    fn methods_that_cannot_be_told_apart_are_refused() {
        let error = study(&["--method", "plain=--epochs 3"]).err().unwrap().to_string();
        assert!(error.contains("two methods are called \"plain\""), "{error}");
        assert!(study(&["--method", "no flags"]).is_err());
    }
}
