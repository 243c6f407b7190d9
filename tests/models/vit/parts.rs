//! Parts of a ViT that go together, and those that do not.

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::vit::{Config, Pool, Rotary, TwoHeads, VisionTransformer};
use masksub::{DropToken, Error, Grid, Mask, MaskSub, Pass, Seed, SubModelLoss, TokenModel, Weights};

use super::{half, key};
use crate::common::{distance, images, labels, tiny, vit, CPU};

fn refusal(cfg: &Config) -> String {
    let vb = Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU);
    match VisionTransformer::new(cfg, vb) {
        Ok(_) => panic!("{cfg:?} is accepted"),
        Err(error) => Error::from(error).to_string(),
    }
}

#[test]
fn pooling_reads_tokens_that_there_are() {
    let siglip = tiny(Config::siglip_base(5));
    for pool in [Pool::ClassToken, Pool::ClassAndMean, Pool::ClassAndDistillation] {
        let message = refusal(&Config { pool, ..siglip.clone() });
        assert!(
            message.starts_with(&format!("pool is {pool:?}, but must be")),
            "{message}"
        );
    }
    let pool = Pool::ClassAndDistillation;
    let message = refusal(&Config {
        pool,
        ..tiny(Config::mae_base(5))
    });
    assert!(
        message.contains("class_token is true, distillation_token false"),
        "{message}"
    );
}

#[test]
fn positions_fit_heads_and_tokens() {
    // Heads of 24 / 4 = 6.
    let eva = tiny(Config::eva02_tiny(5));
    let message = refusal(&Config {
        num_heads: 4,
        ..eva.clone()
    });
    assert!(
        message.starts_with("num_heads is 4, but must be one that leaves heads of a multiple of 4, not 6"),
        "{message}"
    );
    let message = refusal(&Config {
        rotary: Some(Rotary::Eva { grid: 0 }),
        ..eva
    });
    assert!(message.starts_with("rotary is 0"), "{message}");
    let beit = tiny(Config::beitv2_base(5));
    for cfg in [
        Config {
            num_registers: 2,
            ..beit.clone()
        },
        Config {
            distillation_token: true,
            ..beit.clone()
        },
        Config {
            class_token: false,
            ..beit
        },
    ] {
        assert!(refusal(&cfg).starts_with("relative_positions is true with "));
    }
}

/// Without the mask, blocks would turn the kept tokens by the positions of others.
#[test]
fn blocks_that_take_positions_want_the_mask() {
    let mask = Mask::from_keep_indices(Grid::new(4, 4), &[[1u32, 5, 3]]).unwrap();
    for (cfg, wanted) in [
        (Config::eva02_tiny(5), true),
        (Config::beitv2_base(5), true),
        (Config::deit3_tiny(5), false),
    ] {
        let (vit, _) = vit(&tiny(cfg), 0);
        let mut pass = Pass::eval();
        let tokens = vit.embed(&images(1, "parts"), Some(&mask), &mut pass).unwrap();
        let without = vit.classify(&tokens, None, &mut pass);
        assert_eq!(without.is_err(), wanted);
        if let Err(error) = without {
            let expected =
                "tokens has shape [1, 4, 24], but must be [1, 1 + 16, 24], or fewer with the mask that `embed` \
                            got as `keep`: this model's blocks take positions";
            assert_eq!(Error::from(error).to_string(), expected);
        }
        let doubled = Tensor::cat(&[&tokens; 5], 1).unwrap();
        let error = Error::from(vit.classify(&doubled, None, &mut pass).unwrap_err()).to_string();
        assert!(error.ends_with("no more tokens than there are patches"), "{error}");
        vit.classify(&tokens, Some(&mask), &mut pass).unwrap();
    }
}

#[test]
fn two_heads_are_matched_each_by_itself() {
    assert!(matches!(
        TwoHeads::new(vit(&tiny(Config::deit3_tiny(5)), 0).0),
        Err(Error::InvalidArgument { argument: "pool", .. })
    ));
    let (vit, params) = vit(&tiny(Config::deit_tiny_distilled(5)), 0);
    let xs = images(3, "heads");
    let model = MaskSub::new(TwoHeads::new(vit.clone()).unwrap(), DropToken::new(half()), &params);
    let pair = model.forward_pair(&xs, key(0)).unwrap();
    let (class, distilled) = &pair.main;
    assert!(distance(class, distilled) > 1e-2);
    let mean = ((class + distilled).unwrap() * 0.5).unwrap();
    assert!(distance(&mean, &vit.forward_t(&xs, false).unwrap()) < 1e-6);
    // The sub loss is the sum of the heads', and no gradient is missing.
    let loss = |(class, distilled): &(Tensor, Tensor)| {
        cross_entropy(class, &labels(3, 5))? + cross_entropy(distilled, &labels(3, 5))?
    };
    let step = model.backward(&xs, key(0), loss).unwrap();
    let of_head = |sub: &Tensor, main: &Tensor| {
        let loss = SubModelLoss::default().forward(sub, main).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    };
    let expected = of_head(&pair.sub.0, class) + of_head(&pair.sub.1, distilled);
    assert!(
        (step.sub_loss.unwrap() - expected).abs() < 1e-5,
        "{:?} {expected}",
        step.sub_loss
    );
}
