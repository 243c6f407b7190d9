//! Published sizes beside what stands at their sources.

use masksub::models::{convnext, resnet, swin, vit, Source};

/// `key=value` pairs of a source, and the name that stands before them.
fn read(source: Source) -> (&'static str, Vec<(&'static str, &'static str)>) {
    let (name, values) = source.option.split_once(": ").unwrap();
    assert!(!source.project.is_empty() && !source.file.is_empty() && !name.is_empty());
    (
        name,
        values.split(' ').map(|pair| pair.split_once('=').unwrap()).collect(),
    )
}

fn numbers(text: &str) -> Vec<f64> {
    text.split(',').map(|number| number.parse().unwrap()).collect()
}

fn counts(values: &[usize]) -> Vec<f64> {
    values.iter().map(|value| *value as f64).collect()
}

/// Every size has a source, in the order of the sizes, and every value that stands there is the size's.
#[test]
fn of_every_size_say_what_it_is() {
    for (&(name, size), &(same, source)) in vit::Config::SIZES.iter().zip(vit::Config::SOURCES) {
        assert_eq!(name, same);
        let (cfg, (_, pairs)) = (size(1000), read(source));
        let has = |keys: &[&str]| pairs.iter().any(|(key, _)| keys.contains(key));
        assert!(
            has(&["patch_size"]) && has(&["embed_dim", "width", "hidden_size"]),
            "{name}"
        );
        assert!(has(&["depth", "layers", "num_hidden_layers"]), "{name}");
        assert!(has(&["num_heads", "heads", "num_attention_heads"]), "{name}");
        for (key, value) in pairs {
            let ours = match key {
                "patch_size" => cfg.patch_size as f64,
                "embed_dim" | "width" | "hidden_size" => cfg.embed_dim as f64,
                "depth" | "layers" | "num_hidden_layers" => cfg.depth as f64,
                "num_heads" | "heads" | "num_attention_heads" => cfg.num_heads as f64,
                "mlp_ratio" => {
                    // timm's gated MLP has its two halves in one; fractions are cut off.
                    let halves = 1 + usize::from(cfg.gate.is_some());
                    let ratio: f64 = value.split('*').map(|part| part.parse::<f64>().unwrap()).product();
                    assert_eq!(halves * cfg.mlp_dim, (ratio * cfg.embed_dim as f64) as usize, "{name}");
                    continue;
                }
                "intermediate_size" => cfg.mlp_dim as f64,
                "eps" | "layer_norm_eps" => cfg.norm_eps,
                "init_values" => cfg.layer_scale.unwrap(),
                "reg_tokens" | "num_reg_tokens" => cfg.num_registers as f64,
                "ref_feat_shape" => match cfg.rotary {
                    Some(vit::Rotary::Eva { grid }) => grid as f64,
                    other => panic!("{other:?} has no grid"),
                },
                "image_size" | "input_resolution" => cfg.image_size.0 as f64,
                "head_std" => cfg.head_init_std,
                other => panic!("{other} is no value of a ViT"),
            };
            let theirs: f64 = value.parse().unwrap();
            assert!(
                (ours - theirs).abs() <= 1e-12 * theirs.abs(),
                "{name}: {key} is {ours}, there {theirs}"
            );
        }
    }
    for (&(name, size), &(same, source)) in swin::Config::SIZES.iter().zip(swin::Config::SOURCES) {
        assert_eq!(name, same);
        let (cfg, (_, pairs)) = (size(1000), read(source));
        assert_eq!(pairs.len(), 6);
        for (key, value) in pairs {
            let ours = match key {
                "PATCH_SIZE" => vec![cfg.patch_size as f64],
                "EMBED_DIM" => vec![cfg.embed_dim as f64],
                "DEPTHS" => counts(&cfg.depths),
                "NUM_HEADS" => counts(&cfg.num_heads),
                "WINDOW_SIZE" => vec![cfg.window_size as f64],
                "MLP_RATIO" => vec![cfg.mlp_ratio as f64],
                other => panic!("{other} is no value of a Swin"),
            };
            assert_eq!(ours, numbers(value), "{name}: {key}");
        }
    }
    for (&(name, size), &(same, source)) in convnext::Config::SIZES.iter().zip(convnext::Config::SOURCES) {
        assert_eq!(name, same);
        let (cfg, (_, pairs)) = (size(1000), read(source));
        assert_eq!(pairs.len(), 2);
        for (key, value) in pairs {
            let ours = match key {
                "depths" => counts(&cfg.depths),
                "dims" => counts(&cfg.dims),
                other => panic!("{other} is no value of a ConvNeXt"),
            };
            assert_eq!(ours, numbers(value), "{name}: {key}");
        }
    }
    for (&(name, size), &(same, source)) in resnet::Config::SIZES.iter().zip(resnet::Config::SOURCES) {
        assert_eq!(name, same);
        let (cfg, (theirs, pairs)) = (size(1000), read(source));
        assert_eq!((theirs, pairs.len()), (name, 2));
        for (key, value) in pairs {
            match key {
                "block" => assert_eq!(value == "Bottleneck", cfg.block == resnet::BlockKind::Bottleneck),
                "layers" => assert_eq!(counts(&cfg.depths), numbers(value)),
                other => panic!("{other} is no value of a ResNet"),
            }
        }
    }
}
