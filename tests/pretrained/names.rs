//! Names: checkpoint and model may call the same weight by different ones.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::ModuleT;
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{Config, VisionTransformer, WeightNames};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Error, Params, Seed, Weights};

use super::{checkpoint, model_file, recorded, saved, small, tensors, timm_vit, var, vb, vit, weights, Tensors};
use crate::common::{bits, distance, numbers, randn, random_values, shapes_of, CPU};

#[test]
fn of_any_checkpoint_fit_any_form_of_the_vit() {
    let clip = small(Config::clip_base(9));
    for (name, cfg) in [
        ("timm_vit", timm_vit(9)),
        ("timm_deit3", small(Config::deit3_base(9))),
        ("facebook_deit3", small(Config::deit3_base(9))),
        ("mae_finetuned", small(Config::mae_base(9))),
        ("hf_vit", timm_vit(9)),
        ("timm_clip", clip.clone()),
        ("hf_clip", clip.clone()),
        ("open_clip", clip),
    ] {
        let logits = [WeightNames::Timm, WeightNames::HuggingFace, WeightNames::Clip].map(|weight_names| {
            let cfg = Config {
                weight_names,
                ..cfg.clone()
            };
            let weights = weights(name);
            let vit = vit(&cfg, &weights);
            weights.check_exact(|_| false).unwrap();
            // The variables are those that a model of this form has.
            let shapes = shapes_of(|vb| VisionTransformer::new(&cfg, vb));
            let data = weights.varmap().data().lock().unwrap();
            let made = data.iter().map(|(name, var)| (name.clone(), var.dims().to_vec()));
            assert_eq!(made.collect::<BTreeMap<_, _>>(), shapes, "{name}");
            // A head that is drawn depends on its name.
            let head = if weight_names == WeightNames::HuggingFace {
                "classifier"
            } else {
                "head"
            };
            data[&format!("{head}.weight")].set(&randn((9, 48), "head")).unwrap();
            data[&format!("{head}.bias")].set(&randn(9, "bias")).unwrap();
            bits(&vit.forward_t(&recorded(name)["input"], false).unwrap())
        });
        assert_eq!(logits[0], logits[1], "{name}");
        assert_eq!(logits[0], logits[2], "{name}");
    }
}

#[test]
fn of_either_swin_fit_either() {
    for name in ["timm_swin", "microsoft_swin"] {
        for weight_names in [swin::WeightNames::Timm, swin::WeightNames::Microsoft] {
            let cfg = swin::Config {
                weight_names,
                image_size: (64, 64),
                embed_dim: 16,
                depths: vec![2, 2],
                num_heads: vec![2, 4],
                window_size: 4,
                ..swin::Config::tiny(9)
            };
            let (weights, recorded) = (weights(name), recorded(name));
            let swin = SwinTransformer::new(&cfg, vb(&weights)).unwrap();
            weights.check_exact(|_| false).unwrap();
            let logits = swin.forward_t(&recorded["input"], false).unwrap();
            assert!(
                distance(&logits, &recorded["logits_eval"]) < 1e-5,
                "{name} as {weight_names:?}"
            );
        }
    }
}

// With more stages, both number mergings that the other has too: the width tells them apart.
#[test]
fn of_mergings_are_told_apart_by_their_width() {
    let cfg = |weight_names| swin::Config {
        weight_names,
        image_size: (32, 32),
        patch_size: 2,
        embed_dim: 4,
        depths: vec![1, 1, 1],
        num_heads: vec![1, 2, 4],
        window_size: 4,
        ..swin::Config::tiny(3)
    };
    let directory = tempfile::tempdir().unwrap();
    let xs = randn((1, 3, 32, 32), "images");
    let both = [swin::WeightNames::Timm, swin::WeightNames::Microsoft];
    for written in both {
        let values = random_values(|vb| SwinTransformer::new(&cfg(written), vb));
        let path = saved(directory.path(), &values);
        let expected = Weights::from_tensors(values);
        let expected = SwinTransformer::new(&cfg(written), vb(&expected)).unwrap();
        for read in both {
            let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
            let swin = SwinTransformer::new(&cfg(read), vb(&weights)).unwrap();
            weights.check_exact(|_| false).unwrap();
            let logits = |swin: &SwinTransformer| bits(&swin.forward_t(&xs, false).unwrap());
            assert_eq!(logits(&swin), logits(&expected), "{written:?} read as {read:?}");
        }
    }
}

// candle's builder asks so of what a model may have or lack.
#[test]
fn of_mergings_are_found_without_a_shape() {
    for (name, merging) in [
        ("timm_swin", "layers.1.downsample.norm.weight"),
        ("microsoft_swin", "layers.0.downsample.norm.weight"),
    ] {
        let weights = weights(name);
        let vb = vb(&weights);
        assert!(vb.contains_tensor(merging), "{name}");
        assert!(!vb.contains_tensor("layers.9.downsample.norm.weight"), "{name}");
        assert_eq!(vb.get_unchecked(merging).unwrap().dims(), [64], "{name}");
        assert!(!weights.left_over().contains(&merging.to_string()), "{name}");
    }
}

/// The tensors of a file with parts of their names replaced.
fn renamed(path: &Path, parts: &[(&str, &str)]) -> Tensors {
    let tensors = candle_core::safetensors::load(path, &CPU).unwrap().into_iter();
    let renamed = |name: String| parts.iter().fold(name, |name, (from, to)| name.replace(from, to));
    tensors.map(|(name, tensor)| (renamed(name), tensor)).collect()
}

/// The weights that a Swin or a ViT like the recorded one takes of a file.
fn state(path: &Path, format: Format) -> BTreeMap<String, Vec<u32>> {
    let pretrained = Pretrained::open(path).unwrap();
    assert_eq!(pretrained.format(), format);
    let weights = pretrained.weights(Seed::new(0));
    if format == Format::HfSwin {
        let cfg = swin::Config {
            image_size: (64, 64),
            embed_dim: 16,
            depths: vec![2, 2],
            num_heads: vec![2, 4],
            window_size: 4,
            ..swin::Config::tiny(9)
        };
        SwinTransformer::new(&cfg, vb(&weights)).unwrap();
    } else {
        let narrow = Config {
            embed_dim: 24,
            mlp_dim: 96,
            ..small(Config::mae_base(9))
        };
        let cfg = match format {
            Format::OpenClip => small(Config::clip_base(9)),
            _ => narrow,
        };
        vit(&cfg, &weights);
    }
    weights.check_exact(|_| false).unwrap();
    weights
        .state()
        .into_iter()
        .map(|(name, tensor)| (name, bits(&tensor)))
        .collect()
}

// What transformers calls the modules in memory from 5 on is what torch.save makes of its state_dict(); the tower of
// OpenCLIP alone has the names that the text tower has in the whole.
#[test]
fn that_a_project_has_in_memory_or_in_a_part_stand_for_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let attention: [(&str, &str); 4] = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ];
    let mlp = [("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2")];
    let vit = [&attention[..], &mlp, &[("vit.encoder.layer.", "vit.layers.")]].concat();
    let swin = [
        (
            "attention.self.relative_position_bias_table",
            "attention.relative_position_bias.relative_position_bias_table",
        ),
        ("attention.self.query", "attention.q_proj"),
        ("attention.self.key", "attention.k_proj"),
        ("attention.self.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ];
    for (path, parts, format) in [
        (model_file("hf_vitmae.safetensors"), &vit[..], Format::HfMaePretrained),
        (model_file("hf_swin.safetensors"), &swin, Format::HfSwin),
        (model_file("hf_swin.safetensors"), &[("swin.", "")], Format::HfSwin),
    ] {
        let other = saved(directory.path(), &renamed(&path, parts));
        assert_eq!(state(&other, format), state(&path, format), "{format}");
    }
    let path = checkpoint("open_clip");
    let tower = renamed(&path, &[]).into_iter();
    let tower = tower.filter_map(|(name, tensor)| Some((name.strip_prefix("visual.")?.to_string(), tensor)));
    let other = saved(directory.path(), &tower.collect());
    assert_eq!(state(&other, Format::OpenClip), state(&path, Format::OpenClip));
}

/// mmpretrain's names of timm's.
const MMPRETRAIN: [(&str, &str); 10] = [
    ("blocks.", "layers."),
    (".norm1.", ".ln1."),
    (".norm2.", ".ln2."),
    ("patch_embed.proj.", "patch_embed.projection."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    (".ls1.gamma", ".attn.gamma1.weight"),
    (".ls2.gamma", ".ffn.gamma2.weight"),
    ("head.", "head.layers.head."),
    ("head_dist.", "head.layers.head_dist."),
];

#[test]
fn of_mmpretrain_are_read_with_its_head_or_the_backbone_alone() {
    let directory = tempfile::tempdir().unwrap();
    for (name, cfg) in [("timm_vit", timm_vit(9)), ("timm_deit3", small(Config::deit3_base(9)))] {
        let named = |name: &str| {
            let name = match name.strip_prefix("norm.") {
                Some(leaf) => format!("ln1.{leaf}"),
                None => MMPRETRAIN
                    .iter()
                    .fold(name.to_string(), |name, (from, to)| name.replace(from, to)),
            };
            if name.starts_with("head") {
                name
            } else {
                format!("backbone.{name}")
            }
        };
        let theirs: Tensors = tensors(name).iter().map(|(name, t)| (named(name), t.clone())).collect();
        let pretrained = Pretrained::open(saved(directory.path(), &theirs)).unwrap();
        assert_eq!(pretrained.format(), Format::MmpretrainVit);
        let weights = pretrained.weights(Seed::new(0));
        let logits = vit(&cfg, &weights).forward_t(&recorded(name)["input"], false).unwrap();
        weights.check_exact(|_| false).unwrap();
        assert!(distance(&logits, &recorded(name)["logits_eval"]) < 1e-5, "{name}");

        let backbone = theirs
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("backbone.")?.to_string(), t.clone())));
        let pretrained = Pretrained::open(saved(directory.path(), &backbone.collect())).unwrap();
        assert_eq!(pretrained.format(), Format::MmpretrainVit);
        let weights = pretrained.weights(Seed::new(0));
        vit(&cfg, &weights);
        weights.check_exact(|name| name.starts_with("head.")).unwrap();
    }
}

#[test]
fn of_wrapped_modules_are_their_own() {
    let directory = tempfile::tempdir().unwrap();
    for wrapper in ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."] {
        let wrapped = tensors("timm_vit").into_iter();
        let wrapped = wrapped.map(|(name, tensor)| (format!("{wrapper}{name}"), tensor));
        let pretrained = Pretrained::open(saved(directory.path(), &wrapped.collect()));
        let weights = pretrained.unwrap().weights(Seed::new(0));
        vit(&timm_vit(9), &weights);
        weights.check_exact(|_| false).unwrap();
        let below = wrapper.trim_end_matches('.');
        assert_eq!(
            weights.notes(),
            [format!("format timm-vit, 32 tensors, below `{below}`")]
        );
    }
}

#[test]
fn below_a_prefix_are_none_of_the_files_and_a_line_says_so() {
    let weights = weights("timm_vit");
    VisionTransformer::new(&timm_vit(9), vb(&weights).pp("backbone")).unwrap();
    let line = "nothing of the file was used: no weight was asked for by a ViT's name, ";
    assert!(weights.notes()[1].starts_with(line), "{:?}", weights.notes());
    let error = weights.check_exact(|_| false).unwrap_err();
    assert!(
        matches!(&error, Error::WeightsDiffer { missing, left_over, .. } if missing.len() == 32 && left_over.len() == 32),
        "{error}"
    );
}

#[test]
fn stand_for_variables_that_are_trained() {
    let weights = weights("open_clip");
    let vit = vit(&small(Config::clip_base(9)), &weights);
    let params = Params::from_varmap(weights.varmap());
    let logits = vit.forward_t(&recorded("open_clip")["input"], true).unwrap();
    // An error where one has no gradient.
    masksub::grad::backward(&logits.sqr().unwrap().mean_all().unwrap(), &params).unwrap();
    assert_eq!(params.names().count(), 41);
}

#[test]
fn another_dtype_and_builder_are_converted_to() {
    let weights = weights("timm_vit");
    VisionTransformer::new(&timm_vit(9), weights.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let before = tensors("timm_vit")["norm.weight"].to_dtype(DType::F64).unwrap();
    assert_eq!(numbers(&var(&weights, "norm.weight")), numbers(&before));
    assert_eq!(var(&weights, "norm.weight").dtype(), DType::F64);
}
