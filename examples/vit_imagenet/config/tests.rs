use super::*;

fn of(arguments: &str) -> Config {
    let arguments = arguments.split_whitespace().map(std::ffi::OsString::from).collect();
    config(&Flags::from_arguments(arguments).unwrap()).unwrap()
}

/// What the recipe prints for the model, beside what is the same for all.
fn recipe(name: &str, model: &str, more: &str) -> String {
    const ALL: [&str; 17] = [
        "recipe",
        "model",
        "patch-size",
        "accumulate",
        "drop-last",
        "dist-bn",
        "freeze",
        "mask-ratio",
        "mask-block",
        "branch",
        "temperature",
        "sub-weight",
        "train-size",
        "seed",
        "interpolation",
        "dtype",
        "tf32",
    ];
    let config = of(&format!("--recipe {name} --model {model} --print-config {more}"));
    let lines = config.iter().filter(|(name, _)| !ALL.contains(name));
    lines.map(|(name, value)| format!("{name} {value}\n")).collect()
}

// The table of the paper's recipes, line by line.
#[test]
fn recipes_are_as_published() {
    let imagenet = "mean [0.485, 0.456, 0.406]\nstd [0.229, 0.224, 0.225]";
    let clip = "mean [0.48145466, 0.4578275, 0.40821073]\nstd [0.26862954, 0.26130258, 0.27577711]";
    for (model, side, replicas, lr, at_400, at_800) in [
        ("deit3-small", 224, 8, "4e-3", "0", "0.05"),
        ("deit3-base", 192, 8, "3e-3", "0.1", "0.2"),
        ("deit3-large", 192, 32, "3e-3", "0.4", "0.45"),
        ("deit3-huge", 160, 32, "3e-3", "0.5", "0.6"),
    ] {
        for (epochs, decay, drop_path) in [(400, "0.03", at_400), (800, "0.05", at_800)] {
            let drop_path = if drop_path == "0" {
                "0".into()
            } else {
                format!("{drop_path}, constant")
            };
            let expected = format!(
                "image-size {side}\nbatch-size 2048\nreplicas {replicas}\nepochs {epochs}\noptimizer lamb\nlr {lr}\nwarmup-epochs 5\nwarmup-lr 1e-6\n\
                 min-lr 1e-5\ncosine per-epoch\nlr-delay 1\nweight-decay {decay}\ndecay-on matrices\nlayer-decay 1\neps 1e-8\n\
                 clip-grad 1, in lamb\nloss bce-hard\nlabel-smoothing 0\ndrop-path {drop_path}\nmixup 0.8\ncutmix 1\n\
                 ema 0.99996\naugment random resized crop 0.08-1, flip 0.5, 3-Augment, colour jitter 0.3, repeated \
                 augmentation 3\ncrop-pct 1\n{imagenet}\nsub-loss bce\n"
            );
            let more = if epochs == 800 { "--epochs 800" } else { "" };
            assert_eq!(recipe("deit3", model, more), expected, "{model}");
        }
    }
    for (model, replicas, drop_path) in [
        ("deit3-base", 8, "0.2"),
        ("deit3-large", 8, "0.45"),
        ("deit3-huge", 16, "0.55"),
    ] {
        let expected = format!(
            "image-size 224\nbatch-size 512\nreplicas {replicas}\nepochs 20\noptimizer adamw\nlr 1e-5\nwarmup-epochs 5\nwarmup-lr 1e-6\n\
             min-lr 1e-5\ncosine per-epoch\nlr-delay 1\nweight-decay 0.1\ndecay-on matrices\nlayer-decay 1\neps 1e-8\nclip-grad none\n\
             loss ce\nlabel-smoothing 0.1\ndrop-path {drop_path}, constant\nmixup 0.8\ncutmix 1\nema 0.99996\n\
             augment random resized crop 0.08-1, flip 0.5, RandAugment 9/0.5 increasing\ncrop-pct 1\n{imagenet}\nsub-loss soft-ce\n"
        );
        assert_eq!(recipe("deit3-finetune", model, ""), expected, "{model}");
    }
    // 5e-4 and 1e-3 per 256 images, of which there are 1024.
    for (model, replicas, epochs, lr, layer_decay, drop_path) in [
        ("mae-base", 32, 100, "2e-3", "0.65", "0.1"),
        ("mae-large", 32, 50, "4e-3", "0.75", "0.2"),
        ("mae-huge", 64, 50, "4e-3", "0.75", "0.3"),
    ] {
        let expected = format!(
            "image-size 224\nbatch-size 1024\nreplicas {replicas}\nepochs {epochs}\noptimizer adamw\nlr {lr}\nwarmup-epochs 5\nwarmup-lr 0\n\
             min-lr 1e-6\ncosine after-warmup\nlr-delay 0\nweight-decay 0.05\ndecay-on matrices\nlayer-decay {layer_decay}\neps 1e-8\n\
             clip-grad none\nloss ce\nlabel-smoothing 0.1\ndrop-path {drop_path}, linear\nmixup 0.8\ncutmix 1\nema none\n\
             augment random resized crop 0.08-1, flip 0.5, RandAugment 9/0.5 increasing, random erasing 0.25\ncrop-pct 0.875\n\
             {imagenet}\nsub-loss soft-ce\n"
        );
        assert_eq!(recipe("mae-finetune", model, ""), expected, "{model}");
    }
    for (model, side, batch, epochs, warmup, lr, layer_decay) in [
        ("ft-clip-base", 224, 2048, 50, 10, "6e-4", "0.6"),
        ("ft-clip-base-384", 384, 2048, 50, 10, "7e-4", "0.6"),
        ("ft-clip-large", 224, 2048, 30, 5, "4e-4", "0.65"),
        ("ft-clip-large-336", 336, 1920, 30, 5, "6e-4", "0.65"),
    ] {
        let expected = format!(
            "image-size {side}\nbatch-size {batch}\nreplicas 1\nepochs {epochs}\noptimizer adamw\nlr {lr}\nwarmup-epochs {warmup}\n\
             warmup-lr 0\nmin-lr 1e-6\ncosine after-warmup\nlr-delay 0\nweight-decay 0.05\ndecay-on matrices\n\
             layer-decay {layer_decay}\neps 1e-8\nclip-grad none\nloss ce\nlabel-smoothing 0.1\ndrop-path 0\nmixup none\n\
             cutmix none\nema 0.9998\naugment random resized crop 0.08-1, flip 0.5, RandAugment 9/0.5 increasing, random erasing 0.25\n\
             crop-pct 1\n{clip}\nsub-loss soft-ce\n"
        );
        assert_eq!(recipe("clip-finetune", model, ""), expected, "{model}");
    }
    for model in ["resnet50", "resnet101", "resnet152"] {
        let expected = format!(
            "image-size 224\nbatch-size 2048\nreplicas 1\nepochs 300\noptimizer lamb\nlr 5e-3\nwarmup-epochs 5\nwarmup-lr 1e-4\n\
             min-lr 1e-6\ncosine per-epoch\nlr-delay 0\nweight-decay 0.02\ndecay-on matrices\nlayer-decay 1\neps 1e-6\n\
             clip-grad 1, in lamb\nloss bce\nlabel-smoothing 0\ndrop-path 0.05, linear\nmixup 0.1\ncutmix 1\nema none\n\
             augment random resized crop 0.08-1, flip 0.5, RandAugment 7/0.5, repeated augmentation 3\ncrop-pct 0.95\n\
             {imagenet}\nsub-loss bce\n"
        );
        assert_eq!(recipe("resnet-rsb", model, ""), expected, "{model}");
    }
    // 5e-4, 5e-7 and 5e-6 per 512 images, of which there are 1024.
    for (model, replicas, drop_path) in [
        ("swin-tiny", 8, "0.2"),
        ("swin-small", 8, "0.3"),
        ("swin-base", 16, "0.5"),
    ] {
        let expected = format!(
            "image-size 224\nbatch-size 1024\nreplicas {replicas}\nepochs 300\noptimizer adamw\nlr 1e-3\nwarmup-epochs 20\nwarmup-lr 1e-6\n\
             min-lr 1e-5\ncosine per-step\nlr-delay 1\nweight-decay 0.05\ndecay-on matrices\nlayer-decay 1\neps 1e-8\nclip-grad 5\n\
             loss ce\nlabel-smoothing 0.1\ndrop-path {drop_path}, linear\nmixup 0.8\ncutmix 1\nema none\n\
             augment random resized crop 0.08-1, flip 0.5, RandAugment 9/0.5 increasing, random erasing 0.25\ncrop-pct 0.875\n\
             {imagenet}\nsub-loss soft-ce\n"
        );
        assert_eq!(recipe("swin", model, ""), expected, "{model}");
    }
}

/// The value of a setting.
fn value(config: &Config, name: &str) -> String {
    config.iter().find(|setting| setting.0 == name).unwrap().1.clone()
}

#[test]
fn what_the_published_code_does_besides() {
    for recipe in [
        "deit3",
        "deit3-finetune",
        "mae-finetune",
        "clip-finetune",
        "resnet-rsb",
        "swin",
    ] {
        assert_eq!(value(&of(&format!("--recipe {recipe}")), "drop-last"), "true");
    }
    assert_eq!(value(&of(""), "drop-last"), "false");
    let patches = "clip.vision_model.embeddings.patch_embedding";
    for (model, frozen) in [
        ("ft-clip-base", patches),
        ("ft-clip-base-384", "none"),
        ("ft-clip-large", patches),
        ("ft-clip-large-336", "none"),
        ("clip-base", "none"),
    ] {
        let config = of(&format!("--recipe clip-finetune --model {model}"));
        assert_eq!(value(&config, "freeze"), frozen, "{model}");
    }
    let thawed = of("--recipe clip-finetune --freeze --epochs 3");
    assert_eq!(
        (value(&thawed, "freeze"), value(&thawed, "epochs")),
        ("none".into(), "3".into())
    );
    // MAE's evaluation crops at 224 pixels and not above.
    for (side, crop) in [(224, "0.875"), (384, "1")] {
        let config = of(&format!("--recipe mae-finetune --image-size {side}"));
        assert_eq!(value(&config, "crop-pct"), crop);
    }
    let of_most_scripts = of("--recipe resnet-rsb --increasing true");
    assert!(value(&of_most_scripts, "augment").contains("RandAugment 7/0.5 increasing"));
    assert!(!value(&of("--recipe resnet-rsb"), "augment").contains("increasing"));
}

// Each device has as many images as in the source, or there is one.
#[test]
fn another_batch_has_other_replicas() {
    for (batch, replicas) in [(2048, "8"), (1024, "4"), (256, "1"), (64, "1"), (300, "1")] {
        let config = of(&format!("--recipe deit3 --batch-size {batch}"));
        assert_eq!(value(&config, "replicas"), replicas, "{batch}");
    }
    assert_eq!(
        value(&of("--recipe deit3 --batch-size 64 --replicas 2"), "replicas"),
        "2"
    );
    assert_eq!(
        value(&of("--recipe swin --batch-size 64 --model swin-base"), "replicas"),
        "1"
    );
    assert_eq!(value(&of("--recipe resnet-rsb --batch-size 64"), "replicas"), "1");
}

#[test]
fn a_model_that_nobody_trained_is_warned_of() {
    let warning = |arguments: &str| {
        let arguments = arguments.split_whitespace().map(std::ffi::OsString::from).collect();
        let flags = Flags::from_arguments(arguments).unwrap();
        flags.recipe.warning(flags.model())
    };
    for nobodys in [
        "clip-finetune --model clip-base",
        "deit3 --model mae-base",
        "deit3-finetune --model deit3-small",
        "swin --model resnet50",
    ] {
        let model = nobodys.rsplit(' ').next().unwrap();
        let warning = warning(&format!("--recipe {nobodys}")).unwrap();
        assert!(
            warning.starts_with(&format!("nobody has published {model} trained by this recipe: ")),
            "{warning}"
        );
    }
    let meet = |replicas| {
        let arguments = ["--recipe", "deit3", "--batch-size", "64", "--replicas", replicas];
        Flags::from_arguments(arguments.map(Into::into).to_vec())
            .unwrap()
            .warnings()
    };
    assert!(meet("2")[0].contains("--replicas is 2, --repeated-augment 3"));
    assert!(meet("1").is_empty() && meet("4").is_empty());
    for published in [
        "deit3",
        "mae-finetune --model mae-huge",
        "clip-finetune --model ft-clip-large-336",
        "plain --model resnet50",
    ] {
        assert_eq!(warning(&format!("--recipe {published}")), None);
    }
}

#[test]
fn all_recipes_have_the_papers_masking() {
    for (name, model) in [
        ("deit3", "deit3-base"),
        ("resnet-rsb", "resnet50"),
        ("swin", "swin-tiny"),
    ] {
        let config = of(&format!("--recipe {name} --model {model} --print-config"));
        let has = |name: &str, value: &str| config.contains(&(name, value.to_string()));
        let names = [
            ("branch", "masksub"),
            ("mask-ratio", "0.5"),
            ("sub-weight", "0.5"),
            ("temperature", "1"),
        ];
        let names = names
            .into_iter()
            .map(|(name, value)| (config.iter().find(|c| c.0 == name).unwrap(), value));
        assert!(names.into_iter().all(|(setting, value)| setting.1 == value));
        assert_eq!(has("mask-block", "32"), model != "deit3-base");
    }
}

#[test]
fn every_flag_overrides_the_recipe() {
    let given = "--image-size 64 --batch-size 8 --epochs 2 --optimizer sgd --lr 0.5 --lr-per 4 --warmup-epochs 1 --warmup-lr 0.1 \
                 --min-lr 0.2 --scale-ends false --cosine per-step --weight-decay 0.3 --decay-on all --layer-decay 1 \
                 --clip-grad 2 --loss ce --label-smoothing 0.2 --drop-path 0.25 --mixup 0 --cutmix 0.5 --ema 0 \
                 --auto-augment none --color-jitter 0.1 --random-erasing 0.5 --repeated-augment 2 --crop-pct 0.5 \
                 --sub-loss kl --interpolation bilinear --accumulate 4 --drop-last true --replicas 2 --dist-bn reduce \
                 --lr-delay 3 --freeze norm --increasing false";
    let of_swin = of(&format!("--recipe swin --model swin-tiny --print-config {given}"));
    let plain = of(&format!(
        "--recipe plain --data d --model swin-tiny --print-config {given}"
    ));
    assert_eq!(
        contradictions(&plain, &of_swin),
        ["recipe is now swin, in the run plain"]
    );
    // Whatever stands first: a recipe is not what is typed.
    let before = of(&format!("--model swin-tiny --print-config {given} --recipe swin"));
    assert_eq!(before, of_swin);
    // The later of two.
    let steps = of("--recipe swin --print-config --warmup-steps 7 --warmup-lr 0 --cosine after-warmup");
    assert!(steps.contains(&("warmup-steps", "7".into())));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let error = |arguments: &str| {
        let arguments = arguments.split_whitespace().map(std::ffi::OsString::from).collect();
        config(&Flags::from_arguments(arguments).unwrap())
            .unwrap_err()
            .to_string()
    };
    assert!(error("--recipe swin --warmup-steps 7").contains("--cosine and --warmup-lr are for --warmup-epochs"));
    assert!(error("--recipe mae-finetune --model resnet50").contains("--layer-decay is 0.65"));
    assert!(error("--loss bce-hard --label-smoothing 0.1").contains("--label-smoothing is 0.1"));
}

#[test]
fn a_recipe_has_a_model_of_its_own() {
    for (recipe, model) in [
        ("resnet-rsb", "resnet50"),
        ("swin", "swin-tiny"),
        ("clip-finetune", "ft-clip-base"),
        ("deit3-finetune", "deit3-base"),
    ] {
        assert!(of(&format!("--recipe {recipe}")).contains(&("model", model.into())));
    }
}

#[test]
fn contradictions_are_named() {
    let was = of("--epochs 3");
    assert!(contradictions(&was, &was).is_empty());
    assert_eq!(
        contradictions(&was, &of("--epochs 4 --branch none")),
        [
            "epochs is now 4, in the run 3",
            "branch is now none, in the run masksub",
            "mask-ratio is now not set, in the run 0.5",
            "sub-loss is now not set, in the run soft-ce",
            "temperature is now not set, in the run 1",
            "sub-weight is now not set, in the run 0.5"
        ]
    );
}

#[test]
fn settings_are_printed_a_line_each() {
    let text = print(&vec![("lr", "1".into()), ("batch-size", "2".into())]);
    assert_eq!(text, "lr          1\nbatch-size  2\n");
}
