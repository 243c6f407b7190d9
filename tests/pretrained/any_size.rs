//! Images of any size in one model: as in a model that was made for their size from the same file.

use candle_core::{DType, Tensor, Var};
use candle_nn::ModuleT;
use masksub::models::vit::{Config, Pool, Rotary, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::{grad, DropToken, Error, Mask, MaskSub, Params, Pass, RandomMasking, Seed, TokenModel, Weights};

use super::{model_file, refusal, small, vit};
use crate::common::{bits, distance, numbers, randn, CPU};

fn narrow(form: Config) -> Config {
    Config {
        embed_dim: 24,
        mlp_dim: 24 * form.mlp_dim / form.embed_dim,
        ..small(form.clone())
    }
}

fn models() -> [(&'static str, Config); 4] {
    let class_token = |cfg| Config {
        pool: Pool::ClassToken,
        ..cfg
    };
    let eva = Config {
        rotary: Some(Rotary::Eva { grid: 4 }),
        ..narrow(Config::eva02_tiny(9))
    };
    [
        ("timm_vit_antialias", class_token(narrow(Config::mae_base(9)))),
        ("timm_reg4", class_token(narrow(Config::dinov2_reg4_small(9)))),
        ("timm_siglip", {
            let cfg = narrow(Config::siglip_base(9));
            Config {
                activation: masksub::models::vit::Activation::Gelu,
                ..cfg
            }
        }),
        ("timm_eva02", eva),
    ]
}

fn open(name: &str) -> Weights {
    let path = model_file(&format!("{name}.safetensors"));
    Pretrained::open(path).unwrap().weights(Seed::new(0))
}

fn dynamic(cfg: &Config) -> Config {
    Config {
        dynamic_image_size: true,
        ..cfg.clone()
    }
}

fn sized(cfg: &Config, images: &Tensor) -> Config {
    let (_, _, height, width) = images.dims4().unwrap();
    Config {
        image_size: (height, width),
        ..cfg.clone()
    }
}

#[test]
fn are_what_timm_gives_and_what_a_model_of_their_size_gives() {
    for (name, cfg) in models() {
        let recorded = model_file(&format!("{name}.expect.safetensors"));
        let recorded = candle_core::safetensors::load(recorded, &CPU).unwrap();
        let weights = open(name);
        let any = vit(&dynamic(&cfg), &weights);
        weights.check_exact(|_| false).unwrap();
        for (input, logits) in [
            ("input", "logits_eval"),
            ("input_resized", "logits_resized"),
            ("input_rectangular", "logits_rectangular"),
        ] {
            let images = &recorded[input];
            // Twice: what positions become is kept from the first time.
            for _ in 0..2 {
                let ours = any.forward_t(images, false).unwrap();
                assert!(distance(&ours, &recorded[logits]) < 1e-5, "{name}: {logits}");
            }
            let own = vit(&sized(&cfg, images), &open(name));
            let [ours, own] = [&any, &own].map(|model| model.features(images).unwrap());
            assert!(distance(&ours.pooled, &own.pooled) < 1e-6, "{name}: {input}");
        }
    }
}

// Rotary positions follow the image's grid, and there are no others.
#[test]
fn of_dinov3_are_what_a_model_of_their_size_gives() {
    let name = "timm_dinov3";
    let cfg = Config {
        pool: Pool::FinalNormThenMean,
        ..narrow(Config::dinov3_small(9))
    };
    let any = vit(&dynamic(&cfg), &open(name));
    for size in [(32, 32), (48, 48), (32, 56), (24, 8)] {
        let images = randn((2, 3, size.0, size.1), "images");
        let own = vit(&sized(&cfg, &images), &open(name));
        let [ours, own] = [&any, &own].map(|model| model.forward_t(&images, false).unwrap());
        assert!(distance(&ours, &own) < 1e-6, "{size:?}");
    }
}

#[test]
fn lose_tokens_as_in_a_model_of_their_size() {
    for (name, cfg) in models() {
        let images = randn((2, 3, 32, 56), "images");
        let pair = |cfg: &Config| {
            let weights = open(name);
            let model = vit(cfg, &weights);
            let branch = DropToken::new(RandomMasking::new(0.5).unwrap());
            let model = MaskSub::new(model, branch, Params::from_varmap(weights.varmap()));
            let pair = model.forward_pair(&images, Seed::new(3).at(1)).unwrap();
            (pair.main, pair.sub)
        };
        let (ours, own) = (pair(&dynamic(&cfg)), pair(&sized(&cfg, &images)));
        assert!(distance(&ours.0, &own.0) < 1e-6, "{name}");
        assert!(distance(&ours.1, &own.1) < 1e-6, "{name}");
        assert_ne!(bits(&ours.0), bits(&ours.1), "{name}");
    }
}

// By finite differences: one entry in each row of the table.
#[test]
fn train_the_positions_of_the_configured_size() {
    let (name, cfg) = models()[0].clone();
    let weights = open(name);
    let model = VisionTransformer::new(&dynamic(&cfg), weights.var_builder(DType::F64, &CPU)).unwrap();
    let images = randn((2, 3, 48, 40), "images").to_dtype(DType::F64).unwrap();
    let loss = || {
        model
            .forward_t(&images, false)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let grads = grad::backward(&loss(), &Params::from_varmap(weights.varmap())).unwrap();
    let pos_embed: Var = weights.varmap().data().lock().unwrap()["pos_embed"].clone();
    let (table, of_table) = (
        pos_embed.as_tensor().copy().unwrap(),
        numbers(grads.get(&pos_embed).unwrap()),
    );
    let largest = of_table.iter().fold(0f64, |most, value| most.max(value.abs()));
    for row in 0..17 {
        let at = 24 * row + row;
        let moved = |by: f64| {
            let mut values = numbers(&table);
            values[at] += by;
            pos_embed
                .set(&Tensor::from_vec(values, (1, 17, 24), &CPU).unwrap())
                .unwrap();
            numbers(&loss())[0]
        };
        let step = 1e-5;
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (slope - of_table[at]).abs() < 1e-6 * largest,
            "{row}: {slope} {}",
            of_table[at]
        );
    }
}

#[test]
fn are_patches_of_the_configured_channels_all_the_same() {
    let (name, cfg) = models()[0].clone();
    let model = vit(&dynamic(&cfg), &open(name));
    for shape in [(1, 3, 32, 36), (1, 3, 4, 32), (1, 1, 32, 32)] {
        let error = model.forward_t(&randn(shape, "images"), false).unwrap_err().to_string();
        assert!(error.contains("[B, 3, H, W]"), "{error}");
    }
    let tables = dynamic(&narrow(Config::beitv2_base(9)));
    let error = refusal(&tables, &open("timm_beit")).to_string();
    assert!(error.starts_with("dynamic_image_size is true"), "{error}");
}

/// Tokens do not tell their grid: where a block takes positions on it, whoever classifies them says it, and where none
/// does, nobody needs to.
#[test]
fn of_which_nothing_tells_the_grid_are_refused_where_blocks_take_positions() {
    let images = randn((2, 3, 48, 32), "images");
    for (name, cfg) in models() {
        let model = vit(&dynamic(&cfg), &open(name));
        let mut pass = Pass::eval();
        let tokens = model.embed(&images, None, &mut pass).unwrap();
        let expected = model.classify(&tokens, None, &mut pass).unwrap();
        let blind = model.classify(&tokens, None, &mut Pass::eval());
        if cfg.rotary.is_none() {
            assert_eq!(bits(&blind.unwrap()), bits(&expected), "{name}");
            continue;
        }
        let error = Error::from(blind.unwrap_err());
        assert!(
            matches!(error, Error::InvalidArgument { argument: "pass", .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("the one that `embed` got"), "{error}");
        // A mask tells it as well.
        let grid = model.grid(&images).unwrap();
        let all: Vec<u32> = (0..grid.len() as u32).collect();
        let mask = Mask::from_keep_indices(grid, &[all.clone(), all]).unwrap();
        let told = model.classify(&tokens, Some(&mask), &mut Pass::eval()).unwrap();
        assert!(distance(&told, &expected) < 1e-6, "{name}");
    }
}
