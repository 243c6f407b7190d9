//! Branches that change dropout and drop path instead of the input.

use candle_core::{Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{ModuleT, Optimizer};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{
    BlockMasking, DropSub, DropToken, Error, Forward, MaskSub, Pass, PatchDrop, PathSub, Plain, RandomMasking, Seed,
    SubBranch,
};

use super::{adam, drop_token, dropping, half, key};
use crate::common::{bits, images, labels, randn, tiny, vit};

#[test]
fn main_draws_are_the_same_whichever_is_chosen() {
    let (vit, _) = vit(&dropping(Config::deit3_tiny(5)), 7);
    let branches: [Box<dyn SubBranch<VisionTransformer>>; 4] = [
        Box::new(drop_token()),
        Box::new(PatchDrop::new(half(), 8).unwrap()),
        Box::new(DropSub::new(0.4).unwrap()),
        Box::new(PathSub::new(0.4).unwrap()),
    ];
    let pairs = branches.map(|branch| {
        let pair = MaskSub::unchecked(vit.clone(), branch)
            .forward_pair(&images(4, "main"), key())
            .unwrap();
        (bits(&pair.main), bits(&pair.sub))
    });
    let plain = bits(&vit.forward_pass(&images(4, "main"), &mut Pass::train(key())).unwrap());
    for (i, (main, sub)) in pairs.iter().enumerate() {
        assert_eq!(main, &plain);
        assert!(
            pairs[..i].iter().all(|(_, other)| other != sub),
            "branch {i} equals another"
        );
    }
}

#[test]
fn masking_and_drop_sub_keep_the_recipes_drop_path() {
    // In a model that only has drop path, DropSub at 0 imposes nothing: its sub pass is a pass with the recipe's
    // drop path and draws of its own. PathSub at 0 has none.
    let cfg = Config {
        drop_path: 0.5,
        ..tiny(Config::mae_base(5))
    };
    let (vit, _) = vit(&cfg, 7);
    let xs = images(6, "recipe");
    let recipe = bits(&vit.forward_pass(&xs, &mut Pass::train_sub(key())).unwrap());
    let sub = |branch: &dyn SubBranch<VisionTransformer>| {
        let (logits, mask) = branch.sub(&vit, &xs, &mut Pass::train_sub(key())).unwrap();
        (bits(&logits), mask.is_some())
    };
    assert_eq!(sub(&DropSub::new(0.0).unwrap()), (recipe.clone(), false));
    let nothing_masked = DropToken::new(RandomMasking::new(0.0).unwrap());
    assert_eq!(sub(&nothing_masked), (recipe.clone(), true));
    let none = bits(&vit.forward_t(&xs, false).unwrap());
    assert_eq!(sub(&PathSub::new(0.0).unwrap()), (none, false));
    assert_ne!(sub(&PathSub::new(0.4).unwrap()).0, recipe);
}

/// A model that consults its pass for nothing.
struct Deaf(Tensor);

impl Forward for Deaf {
    fn forward_pass(&self, xs: &Tensor, _pass: &mut Pass) -> Result<Tensor> {
        xs.flatten_from(1)?.matmul(&self.0)
    }
}

#[test]
fn without_effect_are_refused() {
    let model = Deaf(Var::from_tensor(&randn((768, 5), "deaf")).unwrap().as_tensor().clone());
    let loss = |logits: &Tensor| cross_entropy(logits, &labels(2, 5));
    let by_drop_sub = MaskSub::unchecked(&model, DropSub::new(0.2).unwrap()).backward(&images(2, "deaf"), key(), loss);
    let error = by_drop_sub.unwrap_err();
    assert!(
        matches!(
            error,
            Error::BranchWithoutEffect {
                branch: "DropSub",
                what: "dropout"
            }
        ),
        "{error}"
    );
    let error = MaskSub::unchecked(&model, PathSub::new(0.2).unwrap())
        .forward_pair(&images(2, "deaf"), key())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::BranchWithoutEffect {
                branch: "PathSub",
                what: "drop path"
            }
        ),
        "{error}"
    );
    let wrapped = MaskSub::unchecked(
        Plain(candle_nn::func(|xs| xs.flatten_from(1))),
        DropSub::new(0.2).unwrap(),
    );
    assert!(matches!(
        wrapped.forward_pair(&images(2, "deaf"), key()).unwrap_err(),
        Error::BranchWithoutEffect { .. }
    ));
    // At weight 0 it is never asked.
    let plain = MaskSub::unchecked(&model, DropSub::new(0.2).unwrap())
        .with_weight(0.0)
        .unwrap();
    plain.backward(&images(2, "deaf"), key(), loss).unwrap();
}

#[test]
fn train() {
    let branches: [Box<dyn SubBranch<VisionTransformer>>; 4] = [
        Box::new(DropSub::new(0.2).unwrap()),
        Box::new(PathSub::new(0.2).unwrap()),
        Box::new(PatchDrop::new(half(), 8).unwrap()),
        Box::new(DropToken::new(BlockMasking::new(0.5, 2).unwrap())),
    ];
    for branch in branches {
        let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 7);
        let model = MaskSub::new(vit, branch, &params);
        let mut optimizer = adam(&params, 3e-3);
        let (xs, ys) = (images(8, "train"), labels(8, 5));
        let mut losses = vec![];
        for t in 0..20 {
            let step = model
                .backward(&xs, Seed::new(1).at(t), |logits| cross_entropy(logits, &ys))
                .unwrap();
            optimizer.step(&step.grads).unwrap();
            losses.push(step.main_loss);
        }
        assert!(losses[19] < 0.3 * losses[0], "{losses:?}");
    }
}

/// The unmasked end of a run: every branch then is the main branch, and every parameter still has a gradient.
#[test]
fn at_a_ratio_of_0_are_the_main_branch() {
    use crate::common::{bits, small_resnet, small_swin};
    use masksub::models::{resnet, swin};
    use masksub::{BlockMasking, MaskRatio, MaskToken, Params, Weights};
    let ratio = || MaskRatio::fixed(0.5).unwrap().with_warm_down(3, 2);
    let masking = || RandomMasking::with_ratio(ratio());
    fn check<M, S: SubBranch<M>>(weights: &Weights, model: M, branch: S, xs: &Tensor) {
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(model, branch, &params);
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(2, 5));
        for (step, kept) in [(3, 0.5), (4, 0.75), (5, 1.0), (900, 1.0)] {
            let key = Seed::new(1).at(step);
            let mask = model.backward(xs, key, loss).unwrap().mask.unwrap();
            let share = mask.num_keep() as f64 / mask.grid().len() as f64;
            assert!((share - kept).abs() < 0.13, "{share} at step {step}");
            let pair = model.forward_pair(xs, key).unwrap();
            assert_eq!(bits(&pair.main) == bits(&pair.sub), kept == 1.0);
        }
    }
    let new = || Weights::seeded(Seed::new(3));
    let builder = |weights: &Weights| weights.var_builder(candle_core::DType::F32, &crate::common::CPU);
    for mean in [false, true] {
        let form = if mean {
            Config::mae_base(5)
        } else {
            Config::deit3_tiny(5)
        };
        let weights = new();
        let vit = VisionTransformer::new(&tiny(form), builder(&weights)).unwrap();
        check(&weights, vit, DropToken::new(masking()), &images(2, "ratio 0"));
    }
    let weights = new();
    let vit = VisionTransformer::new(&tiny(Config::deit3_tiny(5)), builder(&weights)).unwrap();
    let blocks = BlockMasking::with_ratio(ratio(), 1).unwrap();
    check(&weights, vit, DropToken::new(blocks), &images(2, "ratio 0"));
    let weights = new();
    let swin = swin::SwinTransformer::new(&small_swin(), builder(&weights)).unwrap();
    let xs = randn((2, 3, 32, 64), "ratio 0");
    check(&weights, swin, MaskToken::new(masking(), 8).unwrap(), &xs);
    let weights = new();
    let resnet = resnet::ResNet::new(&small_resnet(resnet::BlockKind::Basic), builder(&weights)).unwrap();
    let xs = randn((2, 3, 32, 32), "ratio 0");
    check(&weights, resnet, PatchDrop::new(masking(), 8).unwrap(), &xs);
}
