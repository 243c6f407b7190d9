//! Presets beside what stands at their sources.

use super::*;
use crate::flags::Flags;
use std::collections::HashSet;

const RECIPES: [Recipe; 6] = [
    Recipe::Deit3,
    Recipe::Deit3Finetune,
    Recipe::MaeFinetune,
    Recipe::ClipFinetune,
    Recipe::ResnetRsb,
    Recipe::Swin,
];

/// What words at a source mean, read apart from the presets: of an option that ends in no number, the flag's value.
const WORDS: [(&str, &str); 35] = [
    ("--opt fusedlamb", "lamb"),
    ("--opt adamw", "adamw"),
    ("--opt default='adamw'", "adamw"),
    ("torch.optim.AdamW", "adamw"),
    ("_C.TRAIN.OPTIMIZER.NAME = 'adamw'", "adamw"),
    ("Optimizer LAMB", "lamb"),
    ("drop_last=True", "true"),
    ("drop_last=is_training", "true"),
    ("filter_bias_and_bn=True", "matrices"),
    ("p.ndim == 1 or n in no_weight_decay_list", "matrices"),
    (
        "len(param.shape) == 1 or name.endswith(\".bias\") or name in skip_list",
        "matrices",
    ),
    (
        "len(param.shape) == 1 or name.endswith(\".bias\") or (name in skip_list)",
        "matrices",
    ),
    ("--clip-grad default=None", "0"),
    ("--clip_grad default=None", "0"),
    ("--sched cosine", "per-epoch"),
    ("lr_scheduler.step(epoch + 1), after the epoch", "per-epoch"),
    (
        "(epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)",
        "after-warmup",
    ),
    ("np.arange(epochs * niter_per_ep - warmup_iters)", "after-warmup"),
    ("t_initial=num_steps, t_in_epochs=False", "per-step"),
    ("lr_scheduler.step(epoch), after the epoch", "1"),
    ("lr_scheduler.step_update(epoch * num_steps + idx), after the step", "1"),
    ("args.lr * epoch / args.warmup_epochs", "0"),
    ("linear_scaled_warmup_lr, linear_scaled_min_lr", "true"),
    ("--bce-loss: targets.gt(0.0)", "bce-hard"),
    ("BCE loss", "bce"),
    ("SoftTargetCrossEntropy()", "ce"),
    ("LabelSmoothingCrossEntropy", "ce"),
    ("Label smoothing: none", "0"),
    ("BCE: sigmoid of the main logits", "bce"),
    ("CE: softmax of the main logits", "soft-ce"),
    ("--ThreeAugment", "three-augment"),
    ("--no-repeated-aug", "1"),
    (
        "freeze_conv1: bool = True",
        "clip.vision_model.embeddings.patch_embedding",
    ),
    ("'freeze_conv1': False", ""),
    ("--dist-bn default='reduce'", "reduce"),
];

/// The value that `option` gives `flag`.
fn reading(flag: &str, option: &str) -> Option<String> {
    if let Some((_, value)) = WORDS.iter().find(|(words, _)| *words == option) {
        return Some(value.to_string());
    }
    let last = |text: &str| {
        let last = text.rsplit([' ', '=', ':']).next().unwrap_or(text);
        last.trim_matches(['\'', '"']).to_string()
    };
    if option.contains("rand-m") {
        let policy = last(option);
        let magnitude = policy
            .split('-')
            .find_map(|part| part.strip_prefix('m')?.parse::<f64>().ok());
        return Some(match flag {
            "auto-augment" => "rand-augment".into(),
            "magnitude" => magnitude?.to_string(),
            _ => policy.ends_with("-inc1").to_string(),
        });
    }
    if flag == "interpolation" {
        return Some(last(option));
    }
    // Numbers, one or several that are multiplied.
    let factors = option.split(" x ").map(|factor| last(factor).parse::<f64>());
    let product: Result<f64, _> = factors.product();
    product.ok().map(|product| product.to_string())
}

fn same(value: &str, reading: &str) -> bool {
    match (value.parse::<f64>(), reading.parse::<f64>()) {
        (Ok(value), Ok(reading)) => (value - reading).abs() <= 1e-12 * reading.abs(),
        _ => value == reading,
    }
}

/// All presets of all recipes, with a model that nobody trained among the others.
fn all() -> Vec<(String, Vec<Preset>)> {
    let of = |recipe: Recipe| {
        let models = recipe.models().iter().copied().chain(["digits"]);
        models.flat_map(move |model| {
            [None, Some(800)].map(|epochs| (format!("{recipe:?} {model}"), recipe.presets(model, epochs)))
        })
    };
    RECIPES.into_iter().flat_map(of).collect()
}

/// A preset whose source says something else fails here, and so does one that no source's words are read for.
#[test]
fn say_what_their_sources_say() {
    let mut count = 0;
    for (name, presets) in all() {
        for preset in &presets {
            let read = reading(preset.flag, preset.option);
            let read = read.unwrap_or_else(|| panic!("{name}: nothing is read in {preset}"));
            assert!(
                same(preset.value, &read),
                "{name}: --{} {}, but {preset}",
                preset.flag,
                preset.value
            );
            assert!(preset.place.project.len() > 3 && preset.place.file.len() > 3);
            count += 1;
        }
        let flags: HashSet<&str> = presets.iter().map(|preset| preset.flag).collect();
        assert_eq!(flags.len(), presets.len(), "{name}: a flag twice");
    }
    assert!(count > 500, "{count}");
}

/// A remark on LAMB or repeated augmentation stands beside no recipe that has none.
#[test]
fn differ_from_their_sources_in_what_they_have() {
    let mut count = 0;
    for recipe in RECIPES {
        let presets = recipe.presets(recipe.models()[0], None);
        for (word, flag, without) in [
            ("LAMB", "optimizer", "adamw"),
            ("repeated-aug", "repeated-augment", "1"),
        ] {
            for said in recipe.differences().iter().filter(|said| said.contains(word)) {
                let preset = presets.iter().find(|preset| preset.flag == flag).unwrap();
                assert_ne!(preset.value, without, "{recipe:?}: {said}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 2);
}

/// And these checks can fail.
#[test]
fn a_source_that_says_something_else_is_noticed() {
    let place = Place::of("project", "file");
    for (flag, value, option, ok) in [
        ("lr", "4e-3", "--lr 4e-3", true),
        ("lr", "3e-3", "--lr 4e-3", false),
        ("batch-size", "2048", "--batch 64 x --nodes 4 x --ngpus 8", true),
        ("batch-size", "1024", "--batch 64 x --nodes 4 x --ngpus 8", false),
        ("magnitude", "9", "--aa rand-m9-mstd0.5-inc1", true),
        ("magnitude", "7", "--aa rand-m9-mstd0.5-inc1", false),
        ("increasing", "true", "--aa rand-m7-mstd0.5", false),
        ("optimizer", "adamw", "--opt fusedlamb", false),
        ("min-lr", "1e-5", "--min-lr default=1e-6", false),
    ] {
        let preset = place.says(flag, value, option);
        assert_eq!(same(preset.value, &reading(flag, option).unwrap()), ok, "{preset}");
    }
    assert_eq!(reading("lr", "as usual"), None);
}

/// Each preset is a flag, and nothing but presets makes a recipe differ from the plain one.
#[test]
fn are_all_that_a_recipe_sets() {
    for recipe in RECIPES {
        for model in recipe.models() {
            let typed = recipe.to_possible_value().unwrap();
            let arguments = |recipe: &[String]| {
                let all = recipe
                    .iter()
                    .map(String::as_str)
                    .chain(["--model", model, "--data", "d"]);
                Flags::from_arguments(all.map(Into::into).collect()).unwrap()
            };
            let by_recipe = arguments(&["--recipe".into(), typed.get_name().into()]);
            let by_flags = arguments(&recipe.flags(model, Asked::default()));
            let config = |flags: &Flags| {
                let mut config = crate::config::config(flags).unwrap();
                config.retain(|(name, _)| *name != "recipe");
                config
            };
            assert_eq!(config(&by_recipe), config(&by_flags), "{model}");
        }
    }
}
