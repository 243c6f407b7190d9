use super::*;
use crate::recipe::Recipe;
use clap::ValueEnum;

fn flags(arguments: &str) -> Flags {
    Flags::from_arguments(arguments.split_whitespace().map(Into::into).collect()).unwrap()
}

/// The last numbers of what stands at a source: one, or a quotient, or three in brackets.
fn reading(option: &str) -> String {
    let text = option.rsplit_once([':', '=']).map_or(option, |(_, last)| last).trim();
    if let Some((a, b)) = text.split_once(" / ") {
        return (a.parse::<f64>().unwrap() / b.parse::<f64>().unwrap()).to_string();
    }
    let text = text.replace('(', "[").replace(')', "]");
    if text.starts_with('[') {
        return text;
    }
    text.rsplit(' ').next().unwrap().parse::<f64>().unwrap().to_string()
}

/// What a network asks of its input is what its source says.
#[test]
fn of_networks_say_what_is_set() {
    let sizes = vit::Config::SIZES.iter().map(|size| size.0);
    let sizes = sizes.chain(swin::Config::SIZES.iter().map(|size| size.0));
    let sizes = sizes.chain(convnext::Config::SIZES.iter().map(|size| size.0));
    let sizes = sizes.chain(resnet::Config::SIZES.iter().map(|size| size.0));
    for model in sizes {
        for size in ["", "--image-size 448"] {
            let flags = flags(&format!("--data d --model {model} {size}"));
            let network = flags.network(10).unwrap();
            let presets = network_presets(model, network.input().image_size);
            assert!(presets.len() >= 3, "{model}");
            let config = crate::config::config(&flags).unwrap();
            for preset in presets
                .iter()
                .filter(|preset| preset.flag != "image-size" || size.is_empty())
            {
                let set = config.iter().find(|(name, _)| *name == preset.flag).unwrap();
                assert_eq!(set.1, preset.value, "{model}: {}", preset.flag);
                // (Of mean and deviation the name stands there.)
                if preset.flag != "mean" && preset.flag != "std" {
                    assert_eq!(reading(preset.option), preset.value, "{model}: {preset}");
                }
            }
        }
    }
}

#[test]
fn of_all_recipes_say_what_is_set() {
    for recipe in Recipe::value_variants()
        .iter()
        .filter(|recipe| **recipe != Recipe::Plain)
    {
        let name = recipe.to_possible_value().unwrap();
        let flags = flags(&format!("--recipe {}", name.get_name()));
        let config = crate::config::config(&flags).unwrap();
        for preset in common_presets(&flags.network(10).unwrap()) {
            let set = config.iter().find(|(name, _)| *name == preset.flag);
            match (preset.flag, set) {
                ("augment", Some((_, augment))) => {
                    assert!(augment.starts_with("random resized crop 0.08-1, flip 0.5, "))
                }
                ("flip", None) => assert_eq!(reading(preset.option), "0.5"),
                ("branch", Some((_, branch))) => assert_eq!(branch, preset.value),
                (_, Some((_, value))) => assert_eq!(
                    (value.as_str(), reading(preset.option).as_str()),
                    (preset.value, preset.value)
                ),
                (name, None) => panic!("{name} is not set"),
            }
        }
    }
}

#[test]
fn every_network_of_a_recipe_has_one() {
    for recipe in Recipe::value_variants() {
        assert!(recipe.models().iter().all(|model| architecture(model).is_some()));
    }
    assert_eq!(architecture("digits"), None);
}

#[test]
fn are_printed_with_what_is_given_and_what_differs() {
    let text = print(&flags("--recipe clip-finetune --lr 1e-3 --freeze")).unwrap();
    let line = |name: &str| {
        let name = format!("{name} ");
        text.lines().find(|line| line.starts_with(&name)).unwrap().to_string()
    };
    let script = "LightDXY/FT-CLIP scripts/bash_fine_Openai_CLIP_P16.sh";
    for (name, value, source) in [
        ("lr", " as given ", format!("  not 6e-4, which is {script}: --lr 6e-4")),
        ("layer-decay", " 0.6 ", format!("  {script}: --layer_decay 0.6")),
        ("freeze", " as given ", ": freeze_conv1: bool = True".into()),
    ] {
        assert!(line(name).contains(value) && line(name).ends_with(&source), "{text}");
    }
    assert!(line("crop-pct").ends_with("LightDXY/FT-CLIP datasets.py: args.crop_pct = 1.0"));
    assert!(line("model").contains("CLIP_B16: input_resolution=224"));
    assert!(text.contains("\nWhat differs from the source:\n- "), "{text}");
    let text = print(&flags("--recipe deit3 --batch-size 64")).unwrap();
    let line = text.lines().find(|line| line.starts_with("replicas ")).unwrap();
    let words: Vec<_> = line.split_whitespace().take(3).collect();
    assert!(
        words == ["replicas", "1", "for"] && line.contains("; 8 for the recipe's is facebookresearch/deit "),
        "{line}"
    );
    // Fine-tuning has a size of its own.
    let text = print(&flags("--recipe deit3-finetune")).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("image-size ")).count(), 1);
    // Nothing is claimed of what nobody published.
    assert_eq!(print(&flags("")).unwrap(), "");
}
