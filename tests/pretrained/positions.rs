//! Position embeddings and tables, resized for another grid.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::pretrained::{self, Layout, Pretrained, Resize};
use masksub::{Error, Grid, Seed, Weights};

use super::{checkpoint, model_file, refusal, saved, small, tensors, timm_vit, var, vb, vit, weights};
use crate::common::{bits, distance, numbers, randn, random_values, CPU};

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
            "pos_embed: 4 x 4 -> 6 x 6 positions, antialiased bicubic"
        ]
    );
}

/// A checkpoint whose positions tell their row, and that of the class token is 100.
fn by_rows(directory: &Path) -> PathBuf {
    let mut tensors = tensors("timm_vit");
    let rows: Vec<f32> = (0..17)
        .map(|at: i32| if at == 0 { 100.0 } else { ((at - 1) / 4) as f32 })
        .collect();
    let rows = Tensor::from_vec(rows, (1, 17, 1), &CPU).unwrap();
    tensors.insert(
        "pos_embed".into(),
        rows.broadcast_as((1, 17, 48)).unwrap().contiguous().unwrap(),
    );
    saved(directory, &tensors)
}

#[test]
fn of_a_grid_that_is_no_square_are_resized_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = by_rows(directory.path());
    let cfg = Config {
        image_size: (32, 40),
        ..timm_vit(9)
    };
    let open = || Pretrained::open(&path).unwrap();
    let weights = open().weights(Seed::new(0));
    vit(&cfg, &weights);
    // Wider, every row is what it was.
    let expected = (0..21).flat_map(|at| [if at == 0 { 100.0 } else { f64::from((at - 1) / 5) }; 48]);
    for (ours, expected) in numbers(&var(&weights, "pos_embed")).into_iter().zip(expected) {
        assert!((ours - expected).abs() < 1e-6, "{ours} instead of {expected}");
    }
    let line = "pos_embed: 4 x 4 -> 4 x 5 positions, antialiased bicubic";
    assert_eq!(weights.notes()[1], line);

    // As many positions in another shape are resized, too.
    let cfg = Config {
        image_size: (16, 64),
        ..timm_vit(9)
    };
    let weights = open().weights(Seed::new(0));
    vit(&cfg, &weights);
    let line = "pos_embed: 4 x 4 -> 2 x 8 positions, antialiased bicubic";
    assert_eq!(weights.notes()[1], line);

    // What is said beside it must be the same.
    let same = open().with_grid(Grid::new(2, 8)).weights(Seed::new(0));
    vit(&cfg, &same);
    assert_eq!(bits(&var(&same, "pos_embed")), bits(&var(&weights, "pos_embed")));
    let wrong = refusal(&cfg, &open().with_grid(Grid::new(4, 4)).weights(Seed::new(0)));
    assert_eq!(
        wrong.to_string(),
        "grid is 4 x 4, but must be 2 x 8, the model's own, of 17 positions"
    );
}

// A ViT of candle-transformers asks for a number of positions, and does not say how they lie.
#[test]
fn of_models_of_others_need_their_grid_said_where_it_is_no_square() {
    let directory = tempfile::tempdir().unwrap();
    let path = by_rows(directory.path());
    let ask = |pretrained: Pretrained, positions: usize| {
        let weights = pretrained.weights(Seed::new(0));
        let asked = vb(&weights).get((1, positions, 48), "pos_embed").map_err(Error::from);
        asked.map(|_| weights.notes()[1].clone())
    };
    let open = || Pretrained::open(&path).unwrap();
    let unsaid = ask(open(), 21).unwrap_err();
    let of_grid = matches!(&unsaid, Error::InvalidArgument { argument: "grid", .. });
    assert!(of_grid, "{unsaid}");
    for part in ["with_grid", "20 positions"] {
        assert!(unsaid.to_string().contains(part), "{unsaid}");
    }
    let wrong = ask(open().with_grid(Grid::new(5, 5)), 21).unwrap_err();
    for part in ["5 x 5", "20 positions"] {
        assert!(wrong.to_string().contains(part), "{wrong}");
    }
    for (grid, positions) in [(Grid::new(4, 5), 21), (Grid::new(2, 8), 17)] {
        let line = format!("pos_embed: 4 x 4 -> {grid} positions, antialiased bicubic");
        assert_eq!(ask(open().with_grid(grid), positions).unwrap(), line);
    }
    let taken = "pos_embed: 4 x 4 -> 6 x 6 positions, taken for a square, antialiased bicubic";
    assert_eq!(ask(open(), 37).unwrap(), taken);
}

#[test]
fn are_resized_as_their_writers_do_it_or_as_one_likes() {
    let resized = |pretrained: Pretrained| {
        let weights = pretrained.weights(Seed::new(0));
        vit(&timm_vit(9).with_input(48, 8, 3), &weights);
        let last = weights.notes()[1].rsplit_once("positions, ").unwrap().1.to_string();
        (last, numbers(&var(&weights, "pos_embed")))
    };
    let open = || Pretrained::open(checkpoint("timm_vit")).unwrap();
    let (name, default) = resized(open());
    assert_eq!(name, "antialiased bicubic");
    for (choice, name, differs) in [
        (Resize::AntialiasedBicubic, "antialiased bicubic", false),
        (Resize::Bicubic, "bicubic", true),
        (Resize::AlignedBicubic, "bicubic with aligned corners", true),
        (Resize::AlignedLinear, "linear with aligned corners", true),
    ] {
        let (said, chosen) = resized(open().with_resize(choice));
        let largest = default
            .iter()
            .zip(&chosen)
            .fold(0.0, |max, (a, b)| f64::max(max, (a - b).abs()));
        assert_eq!((&*said, largest > 1e-3), (name, differs), "{largest}");
    }
}

// Even and odd sides: the positions of a square of these could be bent as a table is.
#[test]
fn are_no_tables_of_relative_ones() {
    let directory = tempfile::tempdir().unwrap();
    let odd = timm_vit(9).with_input(24, 8, 3);
    let odd = saved(directory.path(), &random_values(|vb| VisionTransformer::new(&odd, vb)));
    for (path, image_size) in [(checkpoint("timm_vit"), 48), (odd, 40)] {
        let geometric = Pretrained::open(path).unwrap().with_resize(Resize::Geometric);
        let error = refusal(
            &timm_vit(9).with_input(image_size, 8, 3),
            &geometric.weights(Seed::new(0)),
        );
        let of_resize = matches!(&error, Error::InvalidArgument { argument: "resize", .. });
        assert!(of_resize, "{error}");
    }
}

// Hugging Face's two models of DINOv2 differ in it.
#[test]
fn of_dinov2_are_resized_with_antialias_where_it_has_registers() {
    for (name, how) in [("hf_dinov2", "bicubic"), ("hf_dinov2_reg", "antialiased bicubic")] {
        let pretrained = Pretrained::open(model_file(&format!("{name}.safetensors"))).unwrap();
        let weights = pretrained.weights(Seed::new(0));
        vb(&weights).get((1, 37, 24), "pos_embed").unwrap();
        let line = &weights.notes()[1];
        assert!(line.ends_with(&format!("taken for a square, {how}")), "{name}: {line}");
    }
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
    let line = "pos_embed: 24 positions, taken for the model's 4 x 6";
    assert_eq!(weights.notes()[1..], [line]);
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
fn that_the_class_token_has_in_the_model_alone_are_misshapen() {
    for image_size in [32, 48] {
        let form = small(Config::deit3_base(9)).with_input(image_size, 8, 3);
        let cfg = Config {
            class_token_position: true,
            layer_scale: None,
            ..form
        };
        let error = refusal(&cfg, &weights("facebook_deit3"));
        assert!(
            matches!(&error, Error::MisshapenWeight { path, .. } if path == "pos_embed"),
            "{error}"
        );
    }
}

/// Of the class token and of DeiT's distillation token, whether the file's grid is the model's or another one.
#[test]
fn of_tokens_for_which_the_model_has_none_are_added_to_them() {
    let narrow = |form: Config| Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(form)
    };
    let registers = Config {
        num_registers: 4,
        ..narrow(Config::dinov2_small(9))
    };
    let models = [
        (checkpoint("timm_vit"), timm_vit(9)),
        (checkpoint("hf_vit"), small(Config::hf_base(9))),
        (
            model_file("timm_deit_distilled.safetensors"),
            narrow(Config::deit_tiny_distilled(9)),
        ),
        (model_file("hf_dinov2_reg.safetensors"), registers),
    ];
    for (path, with) in models {
        for (height, width) in [(32, 32), (48, 48), (24, 40)] {
            let with = Config {
                image_size: (height, width),
                ..with.clone()
            };
            let without = Config {
                class_token_position: false,
                ..with.clone()
            };
            let images = randn((2, 3, height, width), "images");
            let logits = |cfg: &Config| {
                let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
                let logits = vit(cfg, &weights).forward_t(&images, false).unwrap();
                weights.check_exact(|_| false).unwrap();
                (logits, weights.notes())
            };
            let ((theirs, _), (ours, notes)) = (logits(&with), logits(&without));
            let error = distance(&ours, &theirs);
            assert!(error < 1e-6, "{} {height} x {width}: {error}", path.display());
            let line = "cls_token: with its position, for which the model has none of its own";
            assert!(notes.iter().any(|note| note == line), "{notes:?}");
        }
    }
}

// 15 x 15 offsets are as many as 9 x 25.
#[test]
fn of_tables_with_as_many_offsets_of_another_grid_are_resized() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let square = Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(Config::beitv2_base(9)).with_input(64, 8, 3)
    };
    let seeded = Weights::seeded(Seed::new(1));
    vit(&square, &seeded);
    let table = "blocks.0.attn.relative_position_bias_table";
    let values = randn((228, 3), "table");
    let all = seeded.varmap().data().lock().unwrap().clone();
    all[table].set(&values).unwrap();
    pretrained::save(&path, &square, &seeded.state(), Layout::Timm).unwrap();
    let opened = |cfg: &Config| {
        let weights = Pretrained::open(&path).unwrap().weights(Seed::new(0));
        vit(cfg, &weights);
        (var(&weights, table), weights.notes())
    };
    let (same, notes) = opened(&square);
    assert_eq!(bits(&same), bits(&values));
    assert!(notes.iter().all(|note| !note.contains("offsets")), "{notes:?}");
    let wide = Config {
        image_size: (40, 104),
        ..square
    };
    let (resized, notes) = opened(&wide);
    assert_eq!(resized.dims(), [228, 3]);
    let [before, after] = [&values, &resized].map(|table| table.narrow(0, 0, 225).unwrap());
    assert_ne!(bits(&before), bits(&after));
    let [before, after] = [&values, &resized].map(|table| table.narrow(0, 225, 3).unwrap());
    assert_eq!(bits(&before), bits(&after));
    assert!(
        notes.iter().any(|note| note.contains("15 x 15 -> 9 x 25 offsets")),
        "{notes:?}"
    );
}
