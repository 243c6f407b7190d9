//! Position embeddings and tables, resized for another grid.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::{Error, Grid, Seed};

use super::{refusal, saved, small, tensors, timm_vit, var, vit, weights};
use crate::common::{bits, numbers, randn, random_values, CPU};

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
    let expected = (0..21).flat_map(|at| [if at == 0 { 100.0 } else { f64::from((at - 1) / 5) }; 48]);
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
