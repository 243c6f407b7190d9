//! Weights that are missing, left over or misshapen.

use masksub::models::vit::{Config, Pool, VisionTransformer, WeightNames};
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed};

use super::{refusal, saved, small, tensors, timm_vit, vit, weights, Tensors};
use crate::common::{randn, shapes_of};

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
    // Of a width that three does not divide, a packed weight that is as large as a part is none of its thirds.
    let cfg = Config {
        embed_dim: 32,
        num_heads: 2,
        ..timm_vit(9)
    };
    let shapes = shapes_of(|vb| VisionTransformer::new(&cfg, vb));
    let made = shapes
        .into_iter()
        .map(|(name, shape)| (name.clone(), randn(shape, &name)));
    let mut packed: Tensors = made.collect();
    packed.insert("blocks.0.attn.qkv.weight".into(), randn((32, 32), "qkv"));
    let weight_names = WeightNames::HuggingFace;
    let error = refusal(&Config { weight_names, ..cfg }, &open(&packed));
    assert!(
        matches!(&error, Error::MisshapenWeight { got, .. } if *got == [32, 32]),
        "{error}"
    );
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
