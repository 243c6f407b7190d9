use super::*;
use crate::network::Input;
use crate::{config, sources};
use masksub::{Purpose, Seed};
use rand::Rng;

fn parse(args: &str) -> Result<Flags, String> {
    let args = args.split_whitespace().map(OsString::from).collect();
    Flags::from_arguments(args).map_err(|error| error.to_string())
}

#[test]
fn flags_are_consistent_and_all_have_help() {
    Flags::command().debug_assert();
    for arg in Flags::command().get_arguments() {
        assert!(arg.get_help().is_some_and(|help| help.to_string().len() > 10), "{arg}");
    }
}

fn vit(flags: &Flags) -> Result<masksub::models::vit::Config, String> {
    match flags.network(10).map_err(|error| error.to_string())? {
        Network::Vit(cfg) => Ok(cfg),
        other => Err(format!("{other:?} is no ViT")),
    }
}

fn input(args: &str) -> Result<(usize, usize, usize), String> {
    let cfg = vit(&parse(args)?)?;
    Ok((cfg.image_size.0, cfg.patch_size, cfg.in_channels))
}

// The trial's: see the README.
#[test]
fn defaults_are_the_digits_trial() {
    let flags = parse("").unwrap();
    let cfg = vit(&flags).unwrap();
    assert_eq!(
        (cfg.embed_dim, cfg.depth, cfg.num_heads, cfg.layer_scale),
        (64, 6, 4, Some(0.1))
    );
    assert_eq!(input(""), Ok((8, 2, 1)));
    assert_eq!(flags.branch, Branch::Masksub);
    assert_eq!(
        (flags.mask_ratio, flags.sub_weight(), flags.temperature),
        (0.5, 0.5, 1.0)
    );
    let training = &flags.training;
    assert_eq!(
        (training.epochs, training.batch_size, training.warmup_steps),
        (60, 64, 100)
    );
    assert_eq!((training.lr, training.weight_decay), (2e-3, 0.05));
    let digits = flags.dataset().unwrap();
    assert_eq!((digits.train_len(), digits.test_len()), (1200, 597));
}

#[test]
fn input_follows_the_model_and_the_data() {
    assert_eq!(vit(&parse("--data d").unwrap()).unwrap().embed_dim, 384);
    assert_eq!(input("--data d"), Ok((224, 16, 3)));
    assert_eq!(input("--data d --model deit3-base"), Ok((192, 16, 3)));
    assert_eq!(input("--data d --model deit3-huge"), Ok((160, 14, 3)));
    assert_eq!(input("--data d --model clip-large --image-size 28"), Ok((28, 14, 3)));
    assert_eq!(
        input("--data d --model digits --image-size 28 --patch-size 4"),
        Ok((28, 4, 1))
    );
    assert_eq!(input("--model deit3-tiny --patch-size 4"), Ok((8, 4, 1)));
    for (args, side, channels, block) in [
        ("--model digits-resnet", 32, 1, 8),
        ("--model resnet18", 32, 1, 8),
        ("--data d --model resnet50", 224, 3, 32),
        ("--model digits-swin", 32, 1, 8),
        ("--data d --model swin-tiny --image-size 448", 448, 3, 32),
    ] {
        let network = parse(args).unwrap().network(10).unwrap();
        let expected = Input {
            image_size: side,
            channels,
        };
        assert_eq!((network.input(), network.mask_block()), (expected, block), "{args}");
    }
}

#[test]
fn branches_without_a_sub_branch_give_it_no_weight() {
    for (branch, weight) in [
        ("masksub", 0.3),
        ("dropsub", 0.3),
        ("pathsub", 0.3),
        ("none", 0.0),
        ("mask-only", 0.0),
    ] {
        let flags = parse(&format!("--branch {branch} --sub-weight 0.3")).unwrap();
        assert_eq!(
            (flags.sub_weight(), flags.branch.to_string().as_str()),
            (weight, branch)
        );
    }
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    for (flag, values, range) in [
        (
            "--mask-ratio",
            &["1", "-0.1", "NaN", "half"][..],
            "at least 0 and below 1",
        ),
        ("--sub-drop-rate", &["1", "-1"], "at least 0 and below 1"),
        ("--sub-weight", &["1.01", "-0.01", "nan"], "from 0 to 1"),
        ("--temperature", &["0", "-1", "inf", "nan"], "above 0"),
        ("--lr", &["0", "inf"], "above 0"),
        ("--weight-decay", &["-1", "inf"], "at least 0"),
        ("--epochs", &["0", "-1", "1.5"], "from 1 to"),
        ("--batch-size", &["0", "99999999999"], "from 1 to"),
        ("--train-size", &["0"], "from 1 to"),
        ("--image-size", &["0", "5000"], "from 1 to 4096"),
        ("--patch-size", &["0"], "from 1 to 4096"),
        ("--device", &["gpu", "cuda:x", "cuda:-1", "cpu:1"], "cuda:N"),
        ("--branch", &["masked"], "mask-only"),
        ("--sub-loss", &["mse"], "soft-ce"),
        ("--model", &["resnet51"], "deit3-small"),
        ("--augment", &["crop"], "simple-crop"),
        ("--flip", &["1.5", "-1"], "from 0 to 1"),
        ("--auto-augment", &["autoaugment"], "rand-augment"),
        ("--magnitude", &["11", "-1", "nan"], "from 0 to 10"),
        ("--color-jitter", &["1.1"], "from 0 to 1"),
        ("--random-erasing", &["2"], "from 0 to 1"),
        ("--repeated-augment", &["0"], "from 1 to"),
        ("--interpolation", &["nearest"], "bicubic"),
        ("--crop-pct", &["0", "1.1"], "above 0 and at most 1"),
        ("--workers", &["0"], "from 1 to"),
    ] {
        for value in values {
            let error = parse(&format!("{flag}={value}")).unwrap_err();
            for part in [flag, &format!("'{value}'"), range] {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    let error = |args: &str| input(args).unwrap_err();
    assert_eq!(
        error("--data d --model deit3-base --image-size 100"),
        "--image-size is 100, but must be a multiple of 16, the --patch-size"
    );
    assert_eq!(
        error("--patch-size 16"),
        "--patch-size is 16, but must be at most 8, the --image-size"
    );
    assert!(error("--image-size 12").contains("must be a multiple of 8, the size of the digits"));
    assert!(error("--model resnet50 --patch-size 4").contains("a ResNet does not"));
    assert!(error("--model digits-resnet --recompute every-block").contains("--recompute is for a ViT or Swin"));
    assert!(error("--dtype bf16 --recompute every-block").contains("--recompute is for --dtype f32"));
    assert!(parse("--recompute some")
        .unwrap_err()
        .contains("never, every-block or every-other"));
}

#[test]
fn the_digits_take_no_flags_of_the_input() {
    for flag in [
        "--augment none",
        "--flip 0",
        "--auto-augment none",
        "--magnitude 1",
        "--increasing true",
        "--color-jitter 0",
        "--random-erasing 0",
        "--repeated-augment 1",
        "--interpolation bicubic",
        "--crop-pct 1",
        "--workers 1",
    ] {
        let error = parse(flag).unwrap().dataset().err().unwrap().to_string();
        let name = flag.split(' ').next().unwrap();
        assert_eq!(
            error,
            format!("{name} is for the images in --data: the digits are trained as they are")
        );
    }
}

#[test]
fn the_digits_are_no_tree() {
    for (flag, reason) in [
        ("--val-split test", "there are images to test on already"),
        ("--unreadable skip", "whose files are decoded one by one"),
    ] {
        let error = parse(flag).unwrap().dataset().err().unwrap().to_string();
        assert!(
            error.starts_with(flag.split(' ').next().unwrap()) && error.ends_with(reason),
            "{error}"
        );
    }
}

// Paths are whatever the system takes for one. Everything else is text, and said to be none.
#[cfg(unix)]
#[test]
fn arguments_need_not_be_utf8() {
    use std::os::unix::ffi::OsStringExt;
    let given = |flag: &str, bytes: &[u8]| {
        let arguments = vec![OsString::from(flag), OsString::from_vec(bytes.to_vec())];
        Flags::from_arguments(arguments)
    };
    let path = PathBuf::from(OsString::from_vec(b"caf\xe9".to_vec()));
    assert_eq!(given("--data", b"caf\xe9").unwrap().data.as_ref(), Some(&path));
    assert_eq!(given("--out", b"caf\xe9").unwrap().out.as_ref(), Some(&path));
    assert_eq!(
        given("--init-from", b"caf\xe9").unwrap().init_from.as_ref(),
        Some(&path)
    );
    for flag in [
        "--model", "--epochs", "--branch", "--device", "--lr", "--recipe", "--resume",
    ] {
        assert_eq!(given(flag, b"\xff").unwrap_err().exit_code(), 2, "{flag}");
    }
}

#[test]
fn brief_help_has_a_line_for_each_flag_under_its_heading() {
    let help = parse("-h").unwrap_err();
    for arg in Flags::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
        let flag = format!("--{}", arg.get_long().unwrap());
        let is_of_flag = |line: &&str| {
            let rest = line.trim_start().strip_prefix(&flag);
            rest.is_some_and(|rest| rest.starts_with([' ', '[']))
        };
        let lines: Vec<&str> = help.lines().filter(is_of_flag).collect();
        let [line] = lines[..] else {
            panic!("{flag}: {lines:?}");
        };
        // What it is for stands on the same line.
        let (_, text) = line.rsplit_once("  ").unwrap();
        assert!(text.len() > 10 && line.len() <= 120, "{line}");
    }
    for heading in [
        "Data:",
        "Model:",
        "Training:",
        "MaskSub:",
        "Input (with --data):",
        "Output:",
    ] {
        assert_eq!(help.lines().filter(|line| *line == heading).count(), 1, "{heading}");
    }
    let all = parse("--help").unwrap_err();
    // A line for each flag, and the headings.
    assert!(help.lines().count() < Flags::command().get_arguments().count() + 30);
    assert!(all.lines().count() > 250);
    assert!(all.contains("[default: 60]") && all.contains("Possible values"));
}

#[test]
fn the_mask_ratio_may_end_elsewhere() {
    use masksub::{Grid, MaskGenerator};
    let kept = |args: &str, step| {
        let masking = parse(args).unwrap().masking(1200).unwrap();
        let mask = masking.generate(1, Grid::new(1, 100), Seed::new(0).at(step)).unwrap();
        mask.num_keep()
    };
    let last = 60 * 19;
    assert_eq!([kept("", 0), kept("", last)], [50, 50]);
    let to_nothing = "--mask-ratio 0.8 --mask-ratio-end 0";
    assert_eq!([0, last / 2, last].map(|step| kept(to_nothing, step)), [20, 60, 100]);
    assert!(parse("--mask-ratio-end 1").is_err());

    // Drawn anew in each step, from all of the range and nothing beside it.
    let drawn: Vec<usize> = (0..200)
        .map(|step| kept("--mask-ratio 0.25 --mask-ratio-max 0.75", step))
        .collect();
    assert!(drawn.iter().all(|n| (25..=75).contains(n)), "{drawn:?}");
    assert!(
        drawn.iter().any(|&n| n < 35) && drawn.iter().any(|&n| n > 65),
        "{drawn:?}"
    );
    let error = parse("--mask-ratio-max 0.5")
        .unwrap()
        .masking(1200)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("must be above 0.5, the --mask-ratio"), "{error}");
    assert!(parse("--mask-ratio-max 0.8 --mask-ratio-end 0").is_err());
}

/// A number, a word of the program's own, or nothing that makes sense.
fn any_value(arg: &clap::Arg, rng: &mut impl Rng) -> String {
    const ODD: [&str; 20] = [
        "0",
        "1",
        "2",
        "3",
        "7",
        "16",
        "224",
        "0.5",
        "0.05",
        "1e-3",
        "-1",
        "1e308",
        "1e-320",
        "inf",
        "NaN",
        "4294967296",
        "18446744073709551615",
        "9007199254740993",
        "",
        "ünï",
    ];
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|word| word.get_name().to_string())
        .collect();
    match rng.random_range(0..8) {
        0 => ODD[rng.random_range(0..ODD.len())].to_string(),
        _ if !words.is_empty() => words[rng.random_range(0..words.len())].clone(),
        _ => ODD[rng.random_range(0..10)].to_string(),
    }
}

/// Everything that flags are asked before the first step, of combinations that nobody would type.
#[test]
fn any_flags_are_taken_or_refused() {
    let command = Flags::command();
    // Of files and devices there are other tests.
    let elsewhere = ["help", "version", "out", "init_from", "teacher", "resume", "device"];
    let args: Vec<_> = command
        .get_arguments()
        .filter(|arg| !elsewhere.contains(&arg.get_id().as_str()))
        .collect();
    let mut taken = 0;
    for case in 0..4000 {
        let mut rng = Seed::new(case).at(0).rng(0, Purpose::MASK);
        let mut line = vec![];
        for _ in 0..rng.random_range(1..6) {
            let arg = args[rng.random_range(0..args.len())];
            let Some(long) = arg.get_long() else { continue };
            line.push(OsString::from(format!("--{long}")));
            if arg.get_action().takes_values() {
                line.push(any_value(arg, &mut rng).into());
            }
        }
        println!("{case}: {line:?}"); // the last one is the one that failed
        let Ok(flags) = Flags::from_arguments(line) else {
            continue;
        };
        taken += 1;
        flags.warnings();
        let _ = config::config(&flags).map(|config| config::print(&config));
        let _ = sources::print(&flags);
        let _ = flags.masking(1200);
        let _ = flags
            .training
            .schedule(19)
            .map(|schedule| [0, 1, 18, 19, 1 << 40].map(|step| schedule.at(step)));
        flags.training.ends_in_warmup(19);
        let _ = flags.training.mix(10);
        for images in [1, 2, 63, 1200] {
            let _ = flags.training.steps_per_epoch(images);
        }
        if let Ok(network) = flags.network(10) {
            let _ = flags.input.settings(&network);
        }
    }
    assert!(taken > 400, "{taken}");
}
