//! Checkpoints of other projects in the crate's models: whose they are, what is resized, replaced, missing or left over.

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, ModuleT, VarBuilder};
use common::{bits, distance, numbers, randn, random_values, shapes_of, CPU};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{Config, Pool, VisionTransformer, WeightNames};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Error, Grid, Params, Seed, Weights};

type Tensors = BTreeMap<String, Tensor>;

/// A checkpoint as a peer wrote it.
fn checkpoint(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    let file = |ending: &str| directory.join(format!("{name}.{ending}"));
    match file("pth").exists() {
        true => file("pth"),
        false => file("safetensors"),
    }
}

fn recorded(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(
        checkpoint("").with_file_name(format!("{name}.expect.safetensors")),
        &CPU,
    )
    .unwrap()
}

/// A checkpoint of these tensors.
fn saved(directory: &Path, tensors: &Tensors) -> PathBuf {
    let path = directory.join("model.safetensors");
    candle_core::safetensors::save(&tensors.clone().into_iter().collect(), &path).unwrap();
    path
}

/// The tensors of a safetensors checkpoint.
fn tensors(name: &str) -> Tensors {
    candle_core::safetensors::load(checkpoint(name), &CPU)
        .unwrap()
        .into_iter()
        .collect()
}

/// The ViT of the recorded checkpoints.
fn small(form: Config) -> Config {
    Config {
        embed_dim: 48,
        depth: 2,
        num_heads: 3,
        mlp_dim: 192,
        ..form.with_input(32, 8, 3)
    }
}

/// A ViT like timm's, with the class token.
fn timm_vit(num_classes: usize) -> Config {
    Config {
        pool: Pool::ClassToken,
        ..small(Config::mae_base(num_classes))
    }
}

fn weights(name: &str) -> Weights {
    Pretrained::open(checkpoint(name)).unwrap().weights(Seed::new(0))
}

fn vb(weights: &Weights) -> VarBuilder<'static> {
    weights.var_builder(DType::F32, &CPU)
}

fn vit(cfg: &Config, weights: &Weights) -> VisionTransformer {
    VisionTransformer::new(cfg, vb(weights)).unwrap()
}

fn refusal(cfg: &Config, weights: &Weights) -> Error {
    Error::from(VisionTransformer::new(cfg, vb(weights)).unwrap_err())
}

/// The variable of that name.
fn var(weights: &Weights, name: &str) -> Tensor {
    weights.varmap().data().lock().unwrap()[name].as_tensor().clone()
}

mod names {
    use super::*;

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
            assert_eq!(weights.notes(), ["format timm-vit, 32 tensors"], "{wrapper}");
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
}

mod formats {
    use super::*;

    #[test]
    fn are_told_from_the_file_alone() {
        for (name, format, text) in [
            ("timm_vit", Format::TimmVit, "timm-vit"),
            ("timm_deit3", Format::TimmDeit3, "timm-deit3"),
            ("timm_clip", Format::TimmClip, "timm-clip"),
            ("timm_swin", Format::TimmSwin, "timm-swin"),
            ("facebook_deit3", Format::FacebookDeit3, "facebook-deit3"),
            ("mae_pretrained", Format::MaePretrained, "mae-pretrained"),
            ("mae_finetuned", Format::MaeFinetuned, "mae-finetuned"),
            ("hf_vit", Format::HfVit, "hf-vit"),
            ("hf_clip", Format::HfClip, "hf-clip"),
            ("open_clip", Format::OpenClip, "open-clip"),
            ("openai_clip", Format::OpenClip, "open-clip"),
            ("microsoft_swin", Format::MicrosoftSwin, "microsoft-swin"),
            ("resnet", Format::ResNet, "resnet"),
        ] {
            let pretrained = Pretrained::open(checkpoint(name)).unwrap();
            assert_eq!(pretrained.format(), format, "{name}");
            assert_eq!(format.to_string(), text);
        }
    }

    #[test]
    fn of_towers_that_are_saved_alone_are_told_too() {
        let directory = tempfile::tempdir().unwrap();
        let bare = |name: &str, prefix: &str| -> Tensors {
            let bare = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor));
            tensors(name).into_iter().filter_map(bare).collect()
        };
        // `ViTModel`, and what is left of CLIP.
        let path = saved(directory.path(), &bare("hf_vit", "vit."));
        let pretrained = Pretrained::open(&path).unwrap();
        assert_eq!(pretrained.format(), Format::HfVit);
        let weights = pretrained.weights(Seed::new(0));
        vit(&timm_vit(9), &weights);
        weights.check_exact(|name| name.starts_with("head.")).unwrap();
        assert_eq!(weights.drawn(), ["head.bias", "head.weight"]);

        let tower = tensors("hf_clip")
            .into_iter()
            .filter(|(name, _)| name.starts_with("vision_model."));
        let path = saved(directory.path(), &tower.collect());
        assert_eq!(Pretrained::open(&path).unwrap().format(), Format::HfClip);
    }

    // DINOv2 in timm: LayerScale like DeiT-III's, and a position for the class token like everyone's.
    #[test]
    fn of_deit3_are_told_by_their_positions() {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = tensors("timm_deit3");
        tensors.insert("pos_embed".into(), randn((1, 17, 48), "positions"));
        let pretrained = Pretrained::open(saved(directory.path(), &tensors)).unwrap();
        assert_eq!(pretrained.format(), Format::TimmVit);
        let weights = pretrained.weights(Seed::new(0));
        let cfg = Config {
            layer_scale: Some(1e-4),
            ..timm_vit(9)
        };
        vit(&cfg, &weights);
        weights.check_exact(|_| false).unwrap();
    }

    #[test]
    fn that_are_not_known_are_refused_with_the_names() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            // DINOv2, ConvNeXt, a ResNet with a deep stem.
            vec![
                "embeddings.patch_embeddings.projection.weight",
                "encoder.layer.0.norm1.weight",
            ],
            vec!["stem.0.weight", "stages.0.blocks.0.conv_dw.weight"],
            vec!["conv1.0.weight", "bn1.running_mean", "layer1.0.conv1.weight"],
            vec!["weight"],
        ];
        for names in names {
            let tensors = names.iter().map(|name| (name.to_string(), randn((2, 2), name)));
            let path = saved(directory.path(), &tensors.collect());
            let error = Pretrained::open(&path).unwrap_err();
            assert!(matches!(&error, Error::UnknownFormat { .. }), "{error}");
            for part in [path.to_str().unwrap(), names[0], "timm-vit, timm-deit3", "resnet"] {
                assert!(error.to_string().contains(part), "{part}: {error}");
            }
        }
    }

    #[test]
    fn of_another_architecture_are_refused() {
        let resnet_cfg = resnet::Config {
            depths: [1, 1, 2, 1],
            channels: [8, 16, 24, 32],
            ..resnet::Config::resnet18(9)
        };
        let swin_cfg = swin::Config {
            image_size: (64, 64),
            embed_dim: 16,
            depths: vec![2, 2],
            num_heads: vec![2, 4],
            window_size: 4,
            ..swin::Config::tiny(9)
        };
        // As wide as the Swin, so that no shape gives it away.
        let vit_cfg = |weight_names| Config {
            weight_names,
            patch_size: 4,
            embed_dim: 16,
            num_heads: 2,
            ..timm_vit(9)
        };
        let build = |family: &str, vb: VarBuilder| match family {
            "ViT" => VisionTransformer::new(&vit_cfg(WeightNames::Timm), vb).map(drop),
            "ViT of Hugging Face" => VisionTransformer::new(&vit_cfg(WeightNames::HuggingFace), vb).map(drop),
            "Swin" => SwinTransformer::new(&swin_cfg, vb).map(drop),
            _ => ResNet::new(&resnet_cfg, vb).map(drop),
        };
        for (file, theirs, ours) in [
            ("resnet", "ResNet", "ViT"),
            ("resnet", "ResNet", "ViT of Hugging Face"),
            ("resnet", "ResNet", "Swin"),
            ("timm_swin", "Swin", "ViT"),
            ("timm_swin", "Swin", "ViT of Hugging Face"),
            ("microsoft_swin", "Swin", "ResNet"),
            ("hf_vit", "ViT", "ResNet"),
            ("hf_clip", "ViT", "ResNet"),
        ] {
            let error = Error::from(build(ours, vb(&weights(file))).unwrap_err());
            let Error::OtherArchitecture {
                path, family, other, ..
            } = &error
            else {
                panic!("{ours} of {file}: {error}")
            };
            assert_eq!(
                (*family, *other),
                (
                    theirs,
                    &ours[..ours.len().min(3).max(ours.find(' ').unwrap_or(ours.len()))]
                )
            );
            assert!(
                path.contains(file) && error.to_string().contains(path.as_str()),
                "{error}"
            );
        }
        // Between a ViT and a Swin of another width, the first shape tells.
        let error = Error::from(build("Swin", vb(&weights("timm_vit"))).unwrap_err());
        assert!(
            matches!(&error, Error::MisshapenWeight { path, .. } if path == "patch_embed.proj.weight"),
            "{error}"
        );
    }
}

mod positions {
    use super::*;

    #[test]
    fn of_the_same_grid_are_as_they_were() {
        let weights = weights("timm_vit");
        vit(&timm_vit(9), &weights);
        assert_eq!(
            bits(&var(&weights, "pos_embed")),
            bits(&tensors("timm_vit")["pos_embed"])
        );
        assert_eq!(weights.notes(), ["format timm-vit, 32 tensors"]);
    }

    #[test]
    fn of_the_class_token_stay_where_the_grid_grows() {
        let weights = weights("timm_vit");
        vit(&timm_vit(9).with_input(48, 8, 3), &weights);
        let (before, after) = (tensors("timm_vit")["pos_embed"].clone(), var(&weights, "pos_embed"));
        let class = |positions: &Tensor| bits(&positions.narrow(1, 0, 1).unwrap());
        assert_eq!(class(&after), class(&before));
        assert_eq!(after.dims(), [1, 37, 48]);
        assert_eq!(
            weights.notes(),
            [
                "format timm-vit, 32 tensors",
                "pos_embed: 4 x 4 -> 6 x 6 positions, bicubic"
            ]
        );
    }

    /// A checkpoint whose positions tell their row, and that of the class token is 100.
    fn by_rows(directory: &Path) -> PathBuf {
        let mut tensors = tensors("timm_vit");
        let rows: Vec<f32> = (0..17)
            .map(|at: i32| if at == 0 { 100. } else { ((at - 1) / 4) as f32 })
            .collect();
        let rows = Tensor::from_vec(rows, (1, 17, 1), &CPU).unwrap();
        tensors.insert(
            "pos_embed".into(),
            rows.broadcast_as((1, 17, 48)).unwrap().contiguous().unwrap(),
        );
        saved(directory, &tensors)
    }

    #[test]
    fn of_a_grid_that_is_no_square_need_it_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = by_rows(directory.path());
        let cfg = Config {
            image_size: (32, 40),
            ..timm_vit(9)
        };
        let open = || Pretrained::open(&path).unwrap();
        let unsaid = refusal(&cfg, &open().weights(Seed::new(0)));
        assert!(
            matches!(&unsaid, Error::InvalidArgument { argument: "grid", .. }),
            "{unsaid}"
        );
        assert!(
            unsaid.to_string().contains("with_grid") && unsaid.to_string().contains("20 positions"),
            "{unsaid}"
        );
        let wrong = refusal(&cfg, &open().with_grid(Grid::new(5, 5)).weights(Seed::new(0)));
        assert!(
            wrong.to_string().contains("5 x 5") && wrong.to_string().contains("20 positions"),
            "{wrong}"
        );

        let weights = open().with_grid(Grid::new(4, 5)).weights(Seed::new(0));
        vit(&cfg, &weights);
        // Wider, every row is what it was.
        let expected = (0..21).flat_map(|at| [if at == 0 { 100. } else { f64::from((at - 1) / 5) }; 48]);
        for (ours, expected) in numbers(&var(&weights, "pos_embed")).into_iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-6, "{ours} instead of {expected}");
        }
        assert!(weights
            .notes()
            .contains(&"pos_embed: 4 x 4 -> 4 x 5 positions, bicubic".to_string()));

        // As many positions in another shape are resized, too.
        let cfg = Config {
            image_size: (16, 64),
            ..timm_vit(9)
        };
        let weights = open().with_grid(Grid::new(2, 8)).weights(Seed::new(0));
        vit(&cfg, &weights);
        assert_eq!(weights.notes()[1], "pos_embed: 4 x 4 -> 2 x 8 positions, bicubic");
    }

    #[test]
    fn of_a_checkpoint_that_is_no_square_are_taken_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let cfg = Config {
            image_size: (32, 48),
            ..timm_vit(9)
        };
        let path = saved(directory.path(), &random_values(|vb| VisionTransformer::new(&cfg, vb)));
        let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
        vit(&cfg, &weights);
        assert_eq!(weights.notes().len(), 1);
        let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
        let error = refusal(&timm_vit(9), &weights);
        assert!(
            matches!(&error, Error::MisshapenWeight { path, .. } if path == "pos_embed"),
            "{error}"
        );
    }

    #[test]
    fn in_two_tables_are_misshapen() {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = tensors("timm_vit");
        tensors.insert("pos_embed".into(), randn((2, 17, 48), "positions"));
        let weights = Pretrained::open(saved(directory.path(), &tensors)).unwrap();
        let error = refusal(&timm_vit(9).with_input(48, 8, 3), &weights.weights(Seed::new(0)));
        assert!(
            matches!(&error, Error::MisshapenWeight { path, .. } if path == "pos_embed"),
            "{error}"
        );
    }

    #[test]
    fn with_and_without_the_class_token_are_not_mistaken_for_each_other() {
        for image_size in [32, 48] {
            for (name, class_token_position) in [("timm_vit", false), ("facebook_deit3", true)] {
                let form = small(Config::deit3_base(9)).with_input(image_size, 8, 3);
                let cfg = Config {
                    class_token_position,
                    layer_scale: None,
                    ..form
                };
                let error = refusal(&cfg, &weights(name));
                assert!(
                    matches!(&error, Error::MisshapenWeight { path, .. } if path == "pos_embed"),
                    "{error}"
                );
            }
        }
    }
}

mod the_head {
    use super::*;

    #[test]
    fn of_other_classes_is_drawn_anew() {
        let (cfg, weights) = (small(Config::mae_base(500)), weights("mae_finetuned"));
        vit(&cfg, &weights);
        weights.check_exact(|_| false).unwrap();
        assert_eq!(
            weights.notes(),
            [
                "format mae-finetuned, 32 tensors, below `model`",
                "head: 9 -> 500 classes, drawn anew",
                "left out: epoch, beside the weights"
            ]
        );
        assert_eq!(weights.drawn(), ["head.bias", "head.weight"]);
        // As the seed alone draws it, and as MAE's fine-tuning wants it: with a deviation of 2e-5.
        let seeded = Weights::seeded(Seed::new(0));
        vit(&cfg, &seeded);
        let head = var(&weights, "head.weight");
        assert_eq!(bits(&head), bits(&var(&seeded, "head.weight")));
        let squares: f64 = numbers(&head).iter().map(|value| value * value).sum();
        let std = (squares / head.elem_count() as f64).sqrt();
        assert!((1.9e-5..2.1e-5).contains(&std), "{std}");
    }

    // Random logits would pass for the checkpoint's.
    #[test]
    fn that_a_file_has_lost_needs_leave() {
        let directory = tempfile::tempdir().unwrap();
        for lost in [&["head.weight", "head.bias"][..], &["head.bias"]] {
            let mut tensors = tensors("timm_vit");
            tensors.retain(|name, _| !lost.contains(&name.as_str()));
            let path = saved(directory.path(), &tensors);
            for classes in [9, 4] {
                let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
                vit(&timm_vit(classes), &weights);
                let error = weights.check_exact(|_| false).unwrap_err();
                let Error::WeightsDiffer { missing, left_over, .. } = &error else {
                    panic!("{error}")
                };
                assert!(left_over.is_empty() && missing.len() == lost.len(), "{error}");
                let line = format!("missing, so drawn: {}", missing.join(", "));
                assert!(weights.notes().contains(&line), "{:?}", weights.notes());
                weights.check_exact(|name| name.starts_with("head.")).unwrap();
            }
        }
    }

    #[test]
    fn is_replaced_in_every_family() {
        let weights = weights("resnet");
        let cfg = resnet::Config {
            block: BlockKind::Basic,
            depths: [1, 1, 2, 1],
            channels: [8, 16, 24, 32],
            ..resnet::Config::resnet18(4)
        };
        ResNet::new(&cfg, vb(&weights)).unwrap();
        weights.check_exact(|_| false).unwrap();
        assert_eq!(weights.notes()[1], "head: 9 -> 4 classes, drawn anew");
        assert_eq!(weights.drawn(), ["fc.bias", "fc.weight"]);
    }

    #[test]
    fn of_another_width_is_misshapen() {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = tensors("timm_vit");
        tensors.insert("head.weight".into(), randn((9, 40), "head"));
        let weights = Pretrained::open(saved(directory.path(), &tensors))
            .unwrap()
            .weights(Seed::new(0));
        let error = refusal(&timm_vit(9), &weights);
        assert!(
            matches!(&error, Error::MisshapenWeight { got, expected, .. } if *got == [9, 40] && *expected == [9, 48]),
            "{error}"
        );
    }
}

mod what_differs {
    use super::*;

    fn differences(cfg: &Config, name: &str) -> (Vec<String>, Vec<String>) {
        let weights = weights(name);
        vit(cfg, &weights);
        match weights.check_exact(|_| false) {
            Err(Error::WeightsDiffer { missing, left_over, .. }) => (missing, left_over),
            Err(error) => panic!("{error}"),
            Ok(()) => Default::default(),
        }
    }

    #[test]
    fn is_an_error_unless_it_is_allowed() {
        let deeper = Config {
            depth: 3,
            ..timm_vit(9)
        };
        let (missing, left_over) = differences(&deeper, "hf_vit");
        assert!(left_over.is_empty());
        assert_eq!(missing.len(), 12);
        assert!(missing.iter().all(|name| name.starts_with("blocks.2.")), "{missing:?}");

        let weights = weights("hf_vit");
        vit(&deeper, &weights);
        weights.check_exact(|name| name.starts_with("blocks.2.")).unwrap();
        assert!(weights.notes()[1].starts_with("missing, so drawn: blocks.2.attn.proj.bias, "));
    }

    // The file's own names: the model has none.
    #[test]
    fn of_a_deeper_checkpoint_is_left_over_under_its_names() {
        let shallower = Config {
            depth: 1,
            ..timm_vit(9)
        };
        let (missing, left_over) = differences(&shallower, "hf_vit");
        assert!(missing.is_empty());
        assert_eq!(left_over.len(), 16);
        assert!(
            left_over.iter().all(|name| name.starts_with("vit.encoder.layer.1.")),
            "{left_over:?}"
        );
    }

    #[test]
    fn of_another_pooling_is_told_both_ways() {
        let mean = Config {
            pool: Pool::Mean,
            ..timm_vit(9)
        };
        let (missing, left_over) = differences(&mean, "timm_vit");
        assert_eq!(missing, ["fc_norm.bias", "fc_norm.weight"]);
        assert_eq!(left_over, ["norm.bias", "norm.weight"]);
        // LayerScale that the model does not have would be a silent loss.
        let plain = Config {
            layer_scale: None,
            ..small(Config::deit3_base(9))
        };
        let (missing, left_over) = differences(&plain, "timm_deit3");
        assert!(missing.is_empty());
        assert_eq!(
            left_over,
            [
                "blocks.0.ls1.gamma",
                "blocks.0.ls2.gamma",
                "blocks.1.ls1.gamma",
                "blocks.1.ls2.gamma"
            ]
        );
    }

    #[test]
    fn as_nobody_knows_it_is_left_over() {
        let directory = tempfile::tempdir().unwrap();
        let mut tensors = tensors("timm_vit");
        tensors.insert("dist_token".into(), randn((1, 1, 48), "token"));
        // The same weight under a second name, too.
        tensors.insert("vit.layernorm.bias".into(), randn(48, "bias"));
        let weights = Pretrained::open(saved(directory.path(), &tensors))
            .unwrap()
            .weights(Seed::new(0));
        vit(&timm_vit(9), &weights);
        let error = weights.check_exact(|_| false).unwrap_err();
        assert!(
            matches!(&error, Error::WeightsDiffer { left_over, .. } if left_over[..] == ["dist_token", "vit.layernorm.bias"]),
            "{error}"
        );
        assert_eq!(weights.notes()[1], "left over: dist_token, vit.layernorm.bias");
        weights.check_exact(|name| name != "norm.bias").unwrap();
    }

    #[test]
    fn belongs_to_the_layout_and_has_a_line_each() {
        let lines = |cfg: Config, name: &str| {
            let weights = weights(name);
            vit(&cfg, &weights);
            weights.check_exact(|_| false).unwrap();
            weights.notes()
        };
        assert_eq!(
            lines(small(Config::mae_base(9)), "mae_pretrained"),
            [
                "format mae-pretrained, 40 tensors, below `model`",
                "not in the file, so drawn: fc_norm.bias, fc_norm.weight, head.bias, head.weight",
                "left out: the decoder, 10 tensors",
                "left out: the norm that mean pooling replaces by fc_norm, 2 tensors",
                "left out: epoch, beside the weights"
            ]
        );
        // With the class token, the final norm is used.
        assert_eq!(
            lines(timm_vit(9), "mae_pretrained"),
            [
                "format mae-pretrained, 40 tensors, below `model`",
                "not in the file, so drawn: head.bias, head.weight",
                "left out: the decoder, 10 tensors",
                "left out: epoch, beside the weights"
            ]
        );
        for (name, total, text) in [("hf_clip", 62, 21), ("open_clip", 50, 17)] {
            assert_eq!(
                lines(small(Config::clip_base(9)), name),
                [
                    format!("format {}, {total} tensors", name.replace('_', "-")),
                    "not in the file, so drawn: head.bias, head.weight".into(),
                    "left out: the projection to the text tower, 2 tensors".into(),
                    format!("left out: the text tower, {text} tensors"),
                ]
            );
        }
    }

    #[test]
    fn in_shape_is_told_by_both_names() {
        let wider = Config {
            mlp_dim: 100,
            ..timm_vit(9)
        };
        let error = refusal(&wider, &weights("hf_vit")).to_string();
        for part in [
            "blocks.0.mlp.fc1.weight",
            "vit.encoder.layer.0.intermediate.dense.weight",
            "[192, 48]",
            "[100, 48]",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    // Three projections that cannot be one, and one that cannot be three.
    #[test]
    fn in_the_projections_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let open = |tensors: &Tensors| {
            let path = saved(directory.path(), tensors);
            Pretrained::open(path).unwrap().weights(Seed::new(0))
        };
        let mut packed = tensors("timm_vit");
        packed.insert("blocks.0.attn.qkv.weight".into(), randn((143, 48), "qkv"));
        for weight_names in [WeightNames::Timm, WeightNames::HuggingFace] {
            let cfg = Config {
                weight_names,
                ..timm_vit(9)
            };
            let error = refusal(&cfg, &open(&packed));
            assert!(
                matches!(&error, Error::MisshapenWeight { got, .. } if *got == [143, 48]),
                "{error}"
            );
        }
        let mut apart = tensors("hf_vit");
        let query = "vit.encoder.layer.1.attention.attention.query.weight";
        for part in [query, "vit.encoder.layer.1.attention.attention.value.weight"] {
            let mut odd = apart.clone();
            odd.insert(part.into(), randn((48, 47), part));
            let error = refusal(&timm_vit(9), &open(&odd));
            assert!(
                matches!(&error, Error::MisshapenWeight { path, .. } if path == "blocks.1.attn.qkv.weight"),
                "{error}"
            );
        }
        // Without one of the three, the model's packed one is missing and the two are left over.
        apart.remove(query).unwrap();
        let weights = open(&apart);
        vit(&timm_vit(9), &weights);
        let Err(Error::WeightsDiffer { missing, left_over, .. }) = weights.check_exact(|_| false) else {
            panic!()
        };
        assert_eq!(
            (missing, left_over.len()),
            (vec!["blocks.1.attn.qkv.weight".to_string()], 2)
        );
    }
}

mod of_candle_transformers {
    use super::*;
    use candle_transformers::models::{clip, resnet as candle_resnet};

    #[test]
    fn clip_gives_its_features() {
        let cfg = small(Config::clip_base(48));
        let theirs = clip::vision_model::ClipVisionConfig {
            embed_dim: cfg.embed_dim,
            activation: clip::text_model::Activation::QuickGelu,
            intermediate_size: cfg.mlp_dim,
            num_hidden_layers: cfg.depth,
            num_attention_heads: cfg.num_heads,
            projection_dim: 32,
            num_channels: 3,
            image_size: 32,
            patch_size: 8,
        };
        let build = |vb: VarBuilder| clip::vision_model::ClipVisionTransformer::new(vb.pp("vision_model"), &theirs);
        let mut values = random_values(build);
        // It asks for it where it is there.
        values.insert("vision_model.embeddings.class_embedding".into(), randn(48, "class"));
        let theirs = build(VarBuilder::from_tensors(
            values.clone().into_iter().collect(),
            DType::F32,
            &CPU,
        ))
        .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pretrained = Pretrained::open(saved(directory.path(), &values)).unwrap();
        assert_eq!(pretrained.format(), Format::HfClip);
        let weights = pretrained.weights(Seed::new(0));
        let ours = vit(&cfg, &weights);
        weights.check_exact(|_| false).unwrap();
        // A head that does nothing.
        let data = weights.varmap().data().lock().unwrap();
        data["head.weight"]
            .set(&Tensor::eye(48, DType::F32, &CPU).unwrap())
            .unwrap();
        let xs = randn((2, 3, 32, 32), "images");
        let (ours, theirs) = (ours.forward_t(&xs, false).unwrap(), theirs.forward(&xs).unwrap());
        assert!(distance(&ours, &theirs) < 1e-5, "{:.1e}", distance(&ours, &theirs));
    }

    #[test]
    fn resnet_gives_its_logits() {
        let values = random_values(|vb| candle_resnet::resnet18(5, vb).map(drop));
        let all = VarBuilder::from_tensors(values.clone().into_iter().collect(), DType::F32, &CPU);
        let theirs = candle_resnet::resnet18(5, all).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pretrained = Pretrained::open(saved(directory.path(), &values)).unwrap();
        assert_eq!(pretrained.format(), Format::ResNet);
        let weights = pretrained.weights(Seed::new(0));
        let ours = ResNet::new(&resnet::Config::resnet18(5), vb(&weights)).unwrap();
        weights.check_exact(|_| false).unwrap();
        assert!(weights.drawn().is_empty());
        let xs = randn((1, 3, 64, 64), "images");
        let (ours, theirs) = (ours.forward_t(&xs, false).unwrap(), theirs.forward(&xs).unwrap());
        assert!(distance(&ours, &theirs) < 1e-5, "{:.1e}", distance(&ours, &theirs));
    }
}

#[test]
fn another_dtype_and_builder_are_converted_to() {
    let weights = weights("timm_vit");
    VisionTransformer::new(&timm_vit(9), weights.var_builder(DType::F64, &Device::Cpu)).unwrap();
    let before = tensors("timm_vit")["norm.weight"].to_dtype(DType::F64).unwrap();
    assert_eq!(numbers(&var(&weights, "norm.weight")), numbers(&before));
    assert_eq!(var(&weights, "norm.weight").dtype(), DType::F64);
}
