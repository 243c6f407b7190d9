//! The training step: two halves against the joint loss, what a step leaves alone, and whose models and optimizers fit.

#[path = "../common/mod.rs"]
mod common;

use std::cell::Cell;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var, D};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, Module, ModuleT, Optimizer, ParamsAdamW, SGD};
use common::{bits, by_name, distance, gradient_distance, images, labels, numbers, randn, tiny, tiny_forms, vit, CPU};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{
    grad, BlockMasking, Criterion, DropSub, DropToken, Error, Fill, Forward, Grid, Mask, MaskGenerator, MaskSub,
    Params, Pass, PatchDrop, PathSub, Plain, RandomMasking, Seed, Step, StepKey, SubBranch, SubModelLoss, TokenModel,
    Weights,
};

fn key() -> StepKey {
    Seed::new(5).at(3)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

fn drop_token() -> DropToken<RandomMasking> {
    DropToken::new(half())
}

/// A ViT whose passes draw at every place they can.
fn dropping(form: Config) -> Config {
    Config {
        dropout: 0.2,
        drop_path: 0.3,
        ..tiny(form)
    }
}

fn adam(params: &Params, lr: f64) -> AdamW {
    let adam = ParamsAdamW {
        lr,
        weight_decay: 0.,
        ..Default::default()
    };
    AdamW::new(params.vars(), adam).unwrap()
}

mod two_halves {
    use super::*;

    /// The gradients of the joint loss from one backward through both branches.
    fn joint<S: SubBranch<VisionTransformer>>(
        model: &MaskSub<VisionTransformer, S>,
        params: &Params,
        xs: &Tensor,
        weight: f64,
        main_loss: impl Fn(&Tensor) -> Tensor,
        sub_loss: SubModelLoss,
    ) -> GradStore {
        let pair = model.forward_pair(xs, key()).unwrap();
        let main = (main_loss(&pair.main) * (1. - weight)).unwrap();
        let sub = (sub_loss.forward(&pair.sub, &pair.main).unwrap() * weight).unwrap();
        grad::backward(&(main + sub).unwrap(), params).unwrap()
    }

    #[test]
    fn give_the_gradients_of_the_joint_loss() {
        let (xs, ys) = (images(6, "joint"), labels(6, 5));
        for (name, form) in tiny_forms(5) {
            let cfg = dropping(form);
            let cfg = Config { embed_dim: 24, ..cfg };
            for sub_loss in [
                SubModelLoss::soft_cross_entropy(),
                SubModelLoss::kl().with_temperature(2.).unwrap(),
                SubModelLoss::bce(),
            ] {
                for weight in [0.1, 0.5, 0.9] {
                    let (vit, params) = vit(&cfg, 1);
                    let model = MaskSub::new(vit, drop_token())
                        .with_sub_loss(sub_loss)
                        .with_params(params.clone());
                    let model = model.with_weight(weight).unwrap();
                    let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
                    let main_loss = |logits: &Tensor| cross_entropy(logits, &ys).unwrap();
                    let joint = joint(&model, &params, &xs, weight, main_loss, sub_loss);
                    let error = gradient_distance(&by_name(&step.grads, &params), &by_name(&joint, &params));
                    assert!(error < 1e-5, "{name}, {sub_loss:?}, w = {weight}: {error:.1e}");
                }
            }
        }
    }

    #[test]
    fn differ_from_a_step_whose_target_is_attached() {
        // What the comparison above would say if the target were not detached.
        let (xs, ys) = (images(6, "joint"), labels(6, 5));
        let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 1);
        let model = MaskSub::new(vit, drop_token()).with_params(params.clone());
        let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
        let pair = model.forward_pair(&xs, key()).unwrap();
        let target = candle_nn::ops::softmax(&pair.main, D::Minus1).unwrap();
        let sub = Criterion::cross_entropy();
        let attached = {
            let log_p = candle_nn::ops::log_softmax(&pair.sub, D::Minus1).unwrap();
            ((target * log_p).unwrap().sum_all().unwrap() / -6.).unwrap()
        };
        let detached = sub
            .forward(&pair.sub, &candle_nn::ops::softmax(&pair.main, D::Minus1).unwrap())
            .unwrap();
        let main = cross_entropy(&pair.main, &ys).unwrap();
        let ours = by_name(&step.grads, &params);
        let error = |sub: Tensor| {
            let joint = ((&main + sub).unwrap() * 0.5).unwrap();
            gradient_distance(&ours, &by_name(&grad::backward(&joint, &params).unwrap(), &params))
        };
        assert!(error(detached) < 1e-5);
        assert!(error(attached) > 1e-2);
    }

    #[test]
    fn report_the_losses_and_logits_of_the_joint_pass() {
        let (xs, ys) = (images(4, "report"), labels(4, 5));
        let (vit, params) = vit(&dropping(Config::mae_base(5)), 2);
        let loss = SubModelLoss::kl().with_temperature(3.).unwrap();
        let model = MaskSub::new(vit, drop_token()).with_sub_loss(loss).with_params(params);
        let model = model.with_weight(0.3).unwrap();
        let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
        let pair = model.forward_pair(&xs, key()).unwrap();
        assert_eq!(bits(&step.main_logits), bits(&pair.main));
        assert_eq!(step.mask, pair.mask);
        assert_eq!(step.mask.unwrap().num_keep(), 8);
        // Both losses unweighted.
        let main = numbers(&cross_entropy(&pair.main, &ys).unwrap())[0];
        let sub = numbers(&loss.forward(&pair.sub, &pair.main).unwrap())[0];
        assert!((step.main_loss - main).abs() < 1e-6);
        assert!((step.sub_loss.unwrap() - sub).abs() < 1e-6);
    }

    #[test]
    fn run_main_and_sub_with_draws_of_their_own() {
        // Nothing is masked, so only dropout and drop path tell the branches apart.
        let (vit, _) = vit(&dropping(Config::deit3_tiny(5)), 1);
        let pair = |model: &MaskSub<&VisionTransformer, DropToken<RandomMasking>>, key| {
            let pair = model.forward_pair(&images(4, "draws"), key).unwrap();
            (bits(&pair.main), bits(&pair.sub))
        };
        let model = MaskSub::new(&vit, DropToken::new(RandomMasking::new(0.).unwrap()));
        let (main, sub) = pair(&model, key());
        assert_ne!(main, sub);
        assert_eq!(pair(&model, key()), (main.clone(), sub.clone()));
        let (next_main, next_sub) = pair(&model, Seed::new(5).at(4));
        assert!(next_main != main && next_sub != sub);
    }

    #[test]
    fn agree_where_nothing_is_dropped() {
        for (name, cfg) in tiny_forms(5) {
            let (vit, _) = vit(&cfg, 3);
            let pair = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.).unwrap()))
                .forward_pair(&images(3, "ratio 0"), key())
                .unwrap();
            assert_eq!(bits(&pair.main), bits(&pair.sub), "{name}");
        }
        let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 3);
        let branch = PatchDrop::new(RandomMasking::new(0.).unwrap(), 8)
            .unwrap()
            .with_fill(Fill::Noise);
        let pair = MaskSub::new(vit, branch)
            .forward_pair(&images(3, "ratio 0"), key())
            .unwrap();
        assert_eq!(bits(&pair.main), bits(&pair.sub));
    }
}

/// Counts the passes of the model inside, and remembers whether they trained.
struct Counting<M> {
    model: M,
    passes: Cell<usize>,
}

impl<M> Counting<M> {
    fn new(model: M) -> Self {
        let passes = Cell::new(0);
        Self { model, passes }
    }
}

impl<M: TokenModel> TokenModel for Counting<M> {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        self.model.grid(xs)
    }
    fn num_prefix_tokens(&self) -> usize {
        self.model.num_prefix_tokens()
    }
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.passes.set(self.passes.get() + 1);
        self.model.embed(xs, keep, pass)
    }
    fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.model.classify(tokens, pass)
    }
}

mod weight {
    use super::*;

    fn step(weight: f64) -> (Step, usize, Params) {
        let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
        let model = MaskSub::new(Counting::new(vit), drop_token()).with_params(params.clone());
        let model = model.with_weight(weight).unwrap();
        let step = model
            .backward(&images(4, "w"), key(), |logits| cross_entropy(logits, &labels(4, 5)))
            .unwrap();
        (step, model.model().passes.get(), params)
    }

    #[test]
    fn of_0_is_plain_training_bit_for_bit() {
        let (step, passes, params) = step(0.);
        assert_eq!(passes, 1);
        assert!(step.sub_loss.is_none() && step.mask.is_none());
        let (vit, plain_params) = vit(&dropping(Config::deit3_tiny(5)), 4);
        let logits = vit.forward_pass(&images(4, "w"), &mut Pass::train(key())).unwrap();
        let loss = cross_entropy(&logits, &labels(4, 5)).unwrap();
        let plain = by_name(&loss.backward().unwrap(), &plain_params);
        let ours = by_name(&step.grads, &params);
        assert_eq!(ours.len(), plain.len());
        for (name, grad) in &ours {
            assert_eq!(bits(grad), bits(&plain[name]), "{name}");
        }
        assert_eq!(step.main_loss, numbers(&loss)[0]);
        assert_eq!(bits(&step.main_logits), bits(&logits));
    }

    #[test]
    fn of_1_trains_on_the_sub_branch_alone() {
        let (step, passes, params) = step(1.);
        assert_eq!(passes, 2);
        let (vit, other_params) = vit(&dropping(Config::deit3_tiny(5)), 4);
        let pair = MaskSub::new(vit, drop_token())
            .forward_pair(&images(4, "w"), key())
            .unwrap();
        let loss = SubModelLoss::default().forward(&pair.sub, &pair.main).unwrap();
        let expected = by_name(&loss.backward().unwrap(), &other_params);
        assert!(gradient_distance(&by_name(&step.grads, &params), &expected) < 1e-6);
    }

    #[test]
    fn in_between_runs_two_passes() {
        assert_eq!(step(0.5).1, 2);
    }
}

#[test]
fn everything_in_a_step_is_detached() {
    let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
    for params in [Some(params), None] {
        for weight in [0., 0.5, 1.] {
            let model = MaskSub::new(&vit, drop_token()).with_weight(weight).unwrap();
            let model = match &params {
                Some(params) => model.with_params(params.clone()),
                None => model,
            };
            let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
            let step = model.backward(&images(4, "detached"), key(), loss).unwrap();
            assert!(!step.main_logits.track_op());
            for id in step.grads.get_ids() {
                // A gradient that is attached keeps the activations of its pass alive.
                assert!(!step.grads.get_id(*id).unwrap().track_op(), "w = {weight}");
            }
        }
    }
}

#[test]
fn gradients_do_not_keep_the_graph_alive() {
    // Where a variable itself is an operand, candle's backward computes its gradient from the other operand, graph and
    // all: the second weight's from the hidden layer.
    let var = |shape: (usize, usize)| Var::from_tensor(&randn(shape, "graph")).unwrap();
    let (first, second) = (var((768, 8)), var((8, 5)));
    let params = Params::new([
        ("first".to_string(), first.clone()),
        ("second".to_string(), second.clone()),
    ]);
    let net = candle_nn::func({
        let (first, second) = (first.clone(), second.clone());
        move |xs| xs.flatten_from(1)?.matmul(&first)?.tanh()?.matmul(&second)
    });
    let model = MaskSub::wrap(net, PatchDrop::new(half(), 8).unwrap());
    let (xs, ys) = (images(4, "graph"), labels(4, 5));
    let loss = |logits: &Tensor| cross_entropy(logits, &ys);
    let hidden = xs.flatten_from(1).unwrap().matmul(&first).unwrap().tanh().unwrap();
    let own = cross_entropy(&hidden.matmul(&second).unwrap(), &ys)
        .unwrap()
        .backward()
        .unwrap();
    assert!(own.get(&second).unwrap().track_op(), "candle detaches by itself now");

    for weight in [0., 0.5, 1.] {
        let model = model.clone().with_weight(weight).unwrap();
        for model in [model.clone(), model.with_params(params.clone())] {
            let step = model.backward(&xs, key(), loss).unwrap();
            for var in [&first, &second] {
                assert!(!step.grads.get(var).unwrap().track_op(), "w = {weight}");
            }
        }
    }
    let logits = hidden.matmul(&second).unwrap();
    let grads = grad::backward(&loss(&logits).unwrap(), &params).unwrap();
    assert!(!grads.get(&second).unwrap().track_op());
}

mod optimizers {
    use super::*;

    fn train<O: Optimizer>(mut optimizer: O, params: &Params, vit: &VisionTransformer) {
        let (xs, ys) = (images(8, "optimizer"), labels(8, 5));
        let model = MaskSub::new(vit, drop_token()).with_params(params.clone());
        let before: Vec<_> = params.vars().iter().map(|var| bits(var)).collect();
        let mut losses = vec![];
        for t in 0..30 {
            let step = model
                .backward(&xs, Seed::new(1).at(t), |logits| cross_entropy(logits, &ys))
                .unwrap();
            optimizer.step(&step.grads).unwrap();
            losses.push(step.main_loss);
        }
        assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
        for (name, (var, before)) in params.names().zip(params.vars().iter().zip(before)) {
            assert_ne!(bits(var), before, "{name} did not move");
        }
    }

    #[test]
    fn of_candle_step_on_the_gradients() {
        let (sgd_vit, params) = vit(&tiny(Config::mae_base(5)), 4);
        train(SGD::new(params.vars(), 0.1).unwrap(), &params, &sgd_vit);
        let (adam_vit, params) = vit(&tiny(Config::mae_base(5)), 4);
        train(adam(&params, 3e-3), &params, &adam_vit);
    }
}

/// Images [B, 1, 8, 8] of three classes that are told apart by the brightness of their rows, with noise.
fn separable(batch: usize, name: &str) -> (Tensor, Tensor) {
    let ys = labels(batch, 3);
    let rows = Tensor::arange(0f32, 8., &CPU).unwrap().reshape((1, 1, 8, 1)).unwrap();
    let phase = ys.to_dtype(DType::F32).unwrap().reshape((batch, 1, 1, 1)).unwrap();
    let pattern = rows.broadcast_add(&(phase * 2.1).unwrap()).unwrap().sin().unwrap();
    let noise = (randn((batch, 1, 8, 8), name) * 0.3).unwrap();
    (pattern.broadcast_add(&noise).unwrap(), ys)
}

mod any_module {
    use super::*;

    /// Trains a wrapped module for some steps; returns its first and last losses.
    fn train(module: impl ModuleT, weights: &Weights, fill: Fill) -> [(f64, f64); 2] {
        let params = Params::from_varmap(weights.varmap());
        let branch = PatchDrop::new(half(), 4).unwrap().with_fill(fill);
        let model = MaskSub::wrap(module, branch).with_params(params.clone());
        let mut optimizer = adam(&params, 1e-2);
        let mut losses = vec![];
        for t in 0..60 {
            let (xs, ys) = separable(24, &format!("step {t}"));
            let step = model
                .backward(&xs, Seed::new(9).at(t), |logits| cross_entropy(logits, &ys))
                .unwrap();
            let audit = grad::audit(&step.grads, &params).unwrap();
            assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
            optimizer.step(&step.grads).unwrap();
            losses.push((step.main_loss, step.sub_loss.unwrap()));
        }
        [losses[0], losses[59]]
    }

    fn assert_learned([first, last]: [(f64, f64); 2]) {
        assert!(last.0 < 0.3 * first.0, "main loss from {} to {}", first.0, last.0);
        assert!(last.1 < first.1, "sub loss from {} to {}", first.1, last.1);
    }

    fn weights() -> (Weights, candle_nn::VarBuilder<'static>) {
        let weights = Weights::seeded(Seed::new(0));
        let vb = weights.var_builder(DType::F32, &CPU);
        (weights, vb)
    }

    #[test]
    fn a_closure_trains() {
        for fill in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![0.5])] {
            let (weights, vb) = weights();
            let hidden = candle_nn::linear(64, 16, vb.pp("hidden")).unwrap();
            let head = candle_nn::linear(16, 3, vb.pp("head")).unwrap();
            let net = move |xs: &Tensor| head.forward(&hidden.forward(&xs.flatten_from(1)?)?.relu()?);
            assert_learned(train(net, &weights, fill));
        }
    }

    #[test]
    fn a_sequential_trains() {
        let (weights, vb) = weights();
        let conv = candle_nn::Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let net = candle_nn::seq()
            .add(candle_nn::conv2d(1, 6, 3, conv, vb.pp("conv")).unwrap())
            .add(candle_nn::Activation::Relu)
            .add_fn(|xs| xs.max_pool2d(2))
            .add_fn(|xs| xs.flatten_from(1))
            .add(candle_nn::linear(6 * 16, 3, vb.pp("head")).unwrap());
        assert_learned(train(net, &weights, Fill::Zero));
    }

    #[test]
    fn a_closure_may_ask_whether_it_trains() {
        let weight = Var::from_tensor(&randn((64, 3), "flag")).unwrap();
        let net = candle_nn::func_t(move |xs, train| {
            let logits = xs.flatten_from(1)?.matmul(&weight)?;
            logits.affine(1., if train { 1. } else { 0. })
        });
        let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.).unwrap(), 4).unwrap());
        let xs = separable(4, "flag").0;
        let pair = model.forward_pair(&xs, key()).unwrap();
        let evaluated = numbers(&model.forward_t(&xs, false).unwrap());
        for trained in [pair.main, pair.sub, model.forward_t(&xs, true).unwrap()] {
            assert!(numbers(&trained)
                .iter()
                .zip(&evaluated)
                .all(|(a, b)| (a - b - 1.).abs() < 1e-5));
        }
    }

    /// candle's own batch norm between two convolutions.
    struct ConvNet {
        conv: candle_nn::Conv2d,
        norm: candle_nn::BatchNorm,
        head: candle_nn::Linear,
    }

    impl ModuleT for ConvNet {
        fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
            let hidden = self.norm.forward_t(&self.conv.forward(xs)?, train)?.relu()?;
            self.head.forward(&hidden.avg_pool2d(2)?.flatten_from(1)?)
        }
    }

    fn conv_net(vb: candle_nn::VarBuilder) -> ConvNet {
        let conv = candle_nn::Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        ConvNet {
            // No bias: the batch norm would take its gradient to zero.
            conv: candle_nn::conv2d_no_bias(1, 6, 3, conv, vb.pp("conv")).unwrap(),
            norm: candle_nn::batch_norm(6, 1e-5, vb.pp("norm")).unwrap(),
            head: candle_nn::linear(6 * 16, 3, vb.pp("head")).unwrap(),
        }
    }

    #[test]
    fn a_module_with_batch_norm_trains() {
        let (weights, vb) = weights();
        let net = conv_net(vb);
        let statistics = net.norm.running_mean().clone();
        let before = bits(&statistics);
        let params = Params::from_varmap(weights.varmap());
        assert_eq!(
            params.names().collect::<Vec<_>>(),
            ["conv.weight", "head.bias", "head.weight", "norm.bias", "norm.weight"]
        );
        assert_learned(train(net, &weights, Fill::Zero));
        // The flag arrived: the statistics moved.
        let data = weights.varmap().data().lock().unwrap();
        assert_ne!(bits(&data["norm.running_mean"]), before);
    }

    #[test]
    fn evaluation_is_the_bare_module_bit_for_bit() {
        let xs = separable(5, "evaluation").0;
        let (_weights, vb) = weights();
        let net = conv_net(vb.clone());
        let bare = conv_net(vb);
        let wrapped = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap().with_fill(Fill::Noise));
        let logits = bare.forward_t(&xs, false).unwrap();
        assert_eq!(bits(&wrapped.forward_t(&xs, false).unwrap()), bits(&logits));
        // And is not what training gives: batch norm heeds the flag.
        assert_ne!(bits(&wrapped.forward_t(&xs, true).unwrap()), bits(&logits));
    }
}

mod evaluation {
    use super::*;

    #[test]
    fn is_the_bare_model_bit_for_bit() {
        let xs = images(3, "evaluation");
        for (name, form) in tiny_forms(5) {
            let (vit, _) = vit(&dropping(form), 6);
            let bare = bits(&vit.forward_t(&xs, false).unwrap());
            let branches: [Box<dyn SubBranch<VisionTransformer>>; 4] = [
                Box::new(drop_token()),
                Box::new(PatchDrop::new(half(), 8).unwrap()),
                Box::new(DropSub::new(0.3).unwrap()),
                Box::new(PathSub::new(0.3).unwrap()),
            ];
            for branch in branches {
                let model = MaskSub::new(vit.clone(), branch);
                assert_eq!(bits(&model.forward_t(&xs, false).unwrap()), bare, "{name}");
            }
        }
    }

    #[test]
    fn in_training_mode_a_model_that_draws_is_refused() {
        let xs = images(2, "no key");
        for (dropout, drop_path, what) in [(0.1, 0., "dropout"), (0., 0.1, "drop path")] {
            let cfg = Config {
                dropout,
                drop_path,
                ..tiny(Config::deit3_tiny(5))
            };
            let (vit, _) = vit(&cfg, 6);
            let from_model = vit.forward_t(&xs, true).unwrap_err();
            let from_wrapper = MaskSub::new(vit, drop_token()).forward_t(&xs, true).unwrap_err();
            for error in [from_model, from_wrapper] {
                let error = Error::from(error);
                assert!(
                    matches!(error, Error::DrawsWithoutKey { what: w } if w == what),
                    "{error}"
                );
            }
        }
        let (quiet, _) = vit(&tiny(Config::deit3_tiny(5)), 6);
        let trained = MaskSub::new(&quiet, drop_token()).forward_t(&xs, true).unwrap();
        assert_eq!(bits(&trained), bits(&quiet.forward_t(&xs, false).unwrap()));
    }
}

mod other_branches {
    use super::*;

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
            let pair = MaskSub::new(vit.clone(), branch)
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
        assert_eq!(sub(&DropSub::new(0.).unwrap()), (recipe.clone(), false));
        let nothing_masked = DropToken::new(RandomMasking::new(0.).unwrap());
        assert_eq!(sub(&nothing_masked), (recipe.clone(), true));
        let none = bits(&vit.forward_t(&xs, false).unwrap());
        assert_eq!(sub(&PathSub::new(0.).unwrap()), (none, false));
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
        let by_drop_sub = MaskSub::new(&model, DropSub::new(0.2).unwrap()).backward(&images(2, "deaf"), key(), loss);
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
        let error = MaskSub::new(&model, PathSub::new(0.2).unwrap())
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
        let wrapped = MaskSub::wrap(candle_nn::func(|xs| xs.flatten_from(1)), DropSub::new(0.2).unwrap());
        assert!(matches!(
            wrapped.forward_pair(&images(2, "deaf"), key()).unwrap_err(),
            Error::BranchWithoutEffect { .. }
        ));
        // At weight 0 it is never asked.
        let plain = MaskSub::new(&model, DropSub::new(0.2).unwrap())
            .with_weight(0.)
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
            let model = MaskSub::new(vit, branch).with_params(params.clone());
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
}

/// A token model of the test's own: tokens are rows of the image, two prefix tokens, mean of all.
struct Rows {
    embed: candle_nn::Linear,
    prefix: Tensor,
    positions: Tensor,
    head: candle_nn::Linear,
}

impl Rows {
    fn new(vb: candle_nn::VarBuilder) -> Self {
        let normal = candle_nn::Init::Randn { mean: 0., stdev: 1. };
        Self {
            embed: candle_nn::linear(8, 6, vb.pp("embed")).unwrap(),
            prefix: vb.get_with_hints((1, 2, 6), "prefix", normal).unwrap(),
            positions: vb.get_with_hints((1, 8, 6), "positions", normal).unwrap(),
            head: candle_nn::linear(6, 3, vb.pp("head")).unwrap(),
        }
    }
}

impl TokenModel for Rows {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        Ok(Grid::new(xs.dim(2)?, 1))
    }
    fn num_prefix_tokens(&self) -> usize {
        2
    }
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _pass: &mut Pass) -> Result<Tensor> {
        let tokens = self.embed.forward(&xs.squeeze(1)?)?.broadcast_add(&self.positions)?;
        let prefix = self.prefix.broadcast_as((xs.dim(0)?, 2, 6))?;
        let tokens = Tensor::cat(&[&prefix, &tokens], 1)?;
        match keep {
            Some(mask) => Ok(mask.gather(&tokens, 2)?),
            None => Ok(tokens),
        }
    }
    fn classify(&self, tokens: &Tensor, _pass: &mut Pass) -> Result<Tensor> {
        self.head.forward(&tokens.tanh()?.mean(1)?)
    }
}

mod models {
    use super::*;

    #[test]
    fn of_the_users_own_train() {
        let weights = Weights::seeded(Seed::new(1));
        let model = Rows::new(weights.var_builder(DType::F32, &CPU));
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(model, drop_token()).with_params(params.clone());
        let mut optimizer = adam(&params, 3e-2);
        let mut losses = vec![];
        for t in 0..80 {
            let (xs, ys) = separable(24, &format!("rows {t}"));
            let step = model
                .backward(&xs, Seed::new(9).at(t), |logits| cross_entropy(logits, &ys))
                .unwrap();
            assert_eq!(step.mask.unwrap().num_keep(), 4);
            optimizer.step(&step.grads).unwrap();
            losses.push(step.main_loss);
        }
        assert!(losses[79] < 0.5 * losses[0], "from {} to {}", losses[0], losses[79]);
    }

    #[test]
    fn may_be_borrowed_boxed_and_shared() {
        let xs = images(2, "pointers");
        let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
        let expected = bits(
            &MaskSub::new(vit.clone(), drop_token())
                .forward_pair(&xs, key())
                .unwrap()
                .sub,
        );
        fn sub<M: TokenModel>(model: M, xs: &Tensor) -> Vec<u32> {
            bits(&MaskSub::new(model, drop_token()).forward_pair(xs, key()).unwrap().sub)
        }
        fn whole<M: Forward>(model: M, xs: &Tensor) -> Vec<u32> {
            let branch = PatchDrop::new(half(), 8).unwrap();
            bits(&MaskSub::new(model, branch).forward_pair(xs, key()).unwrap().sub)
        }
        assert_eq!(sub(&vit, &xs), expected);
        assert_eq!(sub(Box::new(vit.clone()), &xs), expected);
        assert_eq!(sub(Arc::new(vit.clone()), &xs), expected);
        let object: Box<dyn TokenModel> = Box::new(vit.clone());
        assert_eq!(sub(object, &xs), expected);

        let expected = whole(vit.clone(), &xs);
        assert_eq!(whole(&vit, &xs), expected);
        assert_eq!(whole(Arc::new(vit.clone()), &xs), expected);
        let object: Box<dyn Forward> = Box::new(vit.clone());
        assert_eq!(whole(object, &xs), expected);
    }

    /// Forgets to drop tokens.
    struct Forgetful(Rows);

    impl TokenModel for Forgetful {
        fn grid(&self, xs: &Tensor) -> Result<Grid> {
            self.0.grid(xs)
        }
        fn num_prefix_tokens(&self) -> usize {
            self.0.num_prefix_tokens()
        }
        fn embed(&self, xs: &Tensor, _keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
            self.0.embed(xs, None, pass)
        }
        fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor> {
            self.0.classify(tokens, pass)
        }
    }

    #[test]
    fn that_forget_to_drop_tokens_are_found_out() {
        let weights = Weights::seeded(Seed::new(1));
        let model = Forgetful(Rows::new(weights.var_builder(DType::F32, &CPU)));
        let error = MaskSub::new(model, drop_token())
            .forward_pair(&separable(3, "forgetful").0, key())
            .unwrap_err();
        assert!(
            matches!(&error, Error::Shape { got, .. } if *got == [3, 10, 6]),
            "{error}"
        );
        assert!(error.to_string().contains("embed"), "{error}");
    }
}

/// A linear model with a batch norm of the crate's kind: it stages its statistics in the pass.
struct Staging {
    weight: Var,
    running: Var,
}

impl Staging {
    fn new() -> Self {
        Self {
            weight: Var::from_tensor(&randn((4, 3), "staging")).unwrap(),
            running: Var::zeros(4, DType::F32, &CPU).unwrap(),
        }
    }

    fn params(&self) -> Params {
        Params::new([("weight".to_string(), self.weight.clone())])
    }

    fn state(&self) -> (Vec<u32>, Vec<u32>) {
        (bits(&self.weight), bits(&self.running))
    }
}

impl Forward for Staging {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        pass.update_running(&self.running, &xs.mean((0, 2, 3))?, 0.5);
        xs.mean((2, 3))?.matmul(&self.weight)
    }
}

mod acceptance {
    use super::*;

    fn patch_drop() -> PatchDrop<RandomMasking> {
        PatchDrop::new(half(), 2).unwrap()
    }

    fn xs() -> Tensor {
        (randn((3, 4, 4, 4), "acceptance") + 1.).unwrap()
    }

    /// What the running average becomes: half of itself and half of the mean, main then sub.
    fn expected(mask: &Mask) -> Vec<f64> {
        let hidden = mask.fill(&xs(), &Fill::Zero, key()).unwrap();
        let mean = |xs: &Tensor| numbers(&xs.mean((0, 2, 3)).unwrap());
        let after_main = mean(&xs()).into_iter().map(|mean| 0.5 * mean);
        after_main
            .zip(mean(&hidden))
            .map(|(running, mean)| 0.5 * running + 0.5 * mean)
            .collect()
    }

    #[test]
    fn commits_main_then_sub() {
        let model = Staging::new();
        let masked = MaskSub::new(&model, patch_drop()).with_params(model.params());
        let step = masked
            .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
            .unwrap();
        let expected = expected(&step.mask.unwrap());
        assert!(numbers(&model.running)
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn of_a_pair_is_for_the_caller_to_give() {
        let model = Staging::new();
        let masked = MaskSub::new(&model, patch_drop());
        let before = model.state();
        drop(masked.forward_pair(&xs(), key()).unwrap());
        assert_eq!(model.state(), before);
        let pair = masked.forward_pair(&xs(), key()).unwrap();
        assert_eq!(model.state(), before);
        let expected = expected(pair.mask.as_ref().unwrap());
        pair.accept().unwrap();
        assert!(numbers(&model.running)
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn is_refused_to_a_loss_that_is_not_finite() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let model = Staging::new();
            let before = model.state();
            let masked = MaskSub::new(&model, patch_drop()).with_params(model.params());
            let error = masked
                .backward(&xs(), key(), |logits| logits.sum_all()? * value)
                .unwrap_err();
            assert!(
                matches!(error, Error::NonFiniteLoss { branch: "main", value: v } if v.to_bits() == value.to_bits() || v.is_nan()),
                "{error}"
            );
            assert_eq!(model.state(), before);
        }
        // Undefined in the sub-branch alone: there the fill is not 0 but NaN.
        let model = Staging::new();
        let before = model.state();
        let branch = patch_drop().with_fill(Fill::Value(vec![f32::NAN; 4]));
        let masked = MaskSub::new(&model, branch).with_params(model.params());
        let error = masked
            .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
            .unwrap_err();
        assert!(matches!(error, Error::NonFiniteLoss { branch: "sub", .. }), "{error}");
        assert_eq!(model.state(), before);
    }

    #[test]
    fn is_refused_to_a_step_that_fails_otherwise() {
        let model = Staging::new();
        let before = model.state();
        let unused = Var::zeros(2, DType::F32, &CPU).unwrap();
        let vars = [
            ("weight".to_string(), model.weight.clone()),
            ("unused".to_string(), unused),
        ];
        let masked = MaskSub::new(&model, patch_drop()).with_params(Params::new(vars));
        let error = masked
            .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
            .unwrap_err();
        assert!(matches!(error, Error::MissingGradients { .. }), "{error}");
        let masked = MaskSub::new(&model, patch_drop());
        masked
            .backward(&xs(), key(), |_| candle_core::bail!("no loss today"))
            .unwrap_err();
        assert_eq!(model.state(), before);
    }

    #[test]
    fn is_not_asked_in_evaluation() {
        let model = Staging::new();
        let before = model.state();
        let masked = MaskSub::new(&model, patch_drop());
        masked.forward_t(&xs(), false).unwrap();
        assert_eq!(model.state(), before);
        // In training mode a candle module updates at once, and so does this one.
        masked.forward_t(&xs(), true).unwrap();
        assert_ne!(model.state(), before);
    }

    #[test]
    fn at_weight_0_commits_the_main_pass() {
        let model = Staging::new();
        let masked = MaskSub::new(&model, patch_drop()).with_weight(0.).unwrap();
        masked
            .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
            .unwrap();
        let mean = numbers(&xs().mean((0, 2, 3)).unwrap());
        assert!(numbers(&model.running)
            .iter()
            .zip(&mean)
            .all(|(a, b)| (a - 0.5 * b).abs() < 1e-6));
    }
}

mod errors_of_others {
    use super::*;

    /// An error type of the user's own.
    #[derive(Debug)]
    struct OutOfCoffee;

    impl std::fmt::Display for OutOfCoffee {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("out of coffee")
        }
    }

    impl std::error::Error for OutOfCoffee {}

    struct Broken;

    impl Forward for Broken {
        fn forward_pass(&self, _: &Tensor, _: &mut Pass) -> Result<Tensor> {
            Err(candle_core::Error::wrap(OutOfCoffee))
        }
    }

    impl MaskGenerator for Broken {
        fn generate(&self, _: usize, _: Grid, _: StepKey) -> Result<Mask> {
            Err(candle_core::Error::Io(std::io::Error::other(OutOfCoffee)))
        }
    }

    fn ours() -> candle_core::Error {
        candle_core::Error::from(RandomMasking::new(2.).unwrap_err())
    }

    #[test]
    fn come_back_from_closures() {
        let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
        let model = MaskSub::new(&vit, drop_token());
        let xs = images(2, "errors");
        let error = model
            .backward(&xs, key(), |_| Err(candle_core::Error::wrap(OutOfCoffee)))
            .unwrap_err();
        assert_eq!(error.to_string(), "out of coffee");
        let error = model.backward(&xs, key(), |_| Err(ours())).unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidArgument {
                    argument: "mask_ratio",
                    ..
                }
            ),
            "{error}"
        );
        let error = model
            .backward(&xs, key(), |_| Err(ours().context("in the loss").bt()))
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidArgument {
                    argument: "mask_ratio",
                    ..
                }
            ),
            "{error}"
        );
        // A loss of ours on targets that do not fit.
        let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(3, 5));
        let error = model.backward(&xs, key(), loss).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    argument: "targets",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn come_back_from_models_and_generators() {
        let xs = images(2, "errors");
        let error = MaskSub::new(Broken, PatchDrop::new(half(), 4).unwrap())
            .forward_pair(&xs, key())
            .unwrap_err();
        assert_eq!(error.to_string(), "out of coffee");
        let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
        let error = MaskSub::new(&vit, DropToken::new(Broken))
            .forward_pair(&xs, key())
            .unwrap_err();
        assert_eq!(error.to_string(), "out of coffee");
        // With its type.
        let Error::Candle(candle_core::Error::Io(io)) = error else {
            panic!("{error}");
        };
        assert!(io.downcast::<OutOfCoffee>().is_ok());
    }
}

mod parameters {
    use super::*;

    fn step(params: Params, vit: &VisionTransformer) -> masksub::Result<Step> {
        let model = MaskSub::new(vit, drop_token()).with_params(params);
        model.backward(&images(2, "parameters"), key(), |logits| {
            cross_entropy(logits, &labels(2, 5))
        })
    }

    #[test]
    fn without_a_gradient_are_named() {
        let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
        let spare = |name: &str| (name.to_string(), Var::zeros(2, DType::F32, &CPU).unwrap());
        let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
        let with_spares = Params::new(vars.chain([spare("aux.weight"), spare("aux.bias"), spare("auxiliary")]));
        let error = step(with_spares.clone(), &vit).unwrap_err();
        let Error::MissingGradients { names, trained } = &error else {
            panic!("{error}");
        };
        assert_eq!(names, &["aux.bias", "aux.weight", "auxiliary"]);
        assert_eq!(*trained, params.len() + 3);
        for part in ["aux.bias", "3 of", "allow_missing"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        // Exempted by name, and what lies below the name, but not what merely begins alike.
        let error = step(with_spares.clone().allow_missing("aux"), &vit).unwrap_err();
        assert!(
            matches!(&error, Error::MissingGradients { names, .. } if names == &["auxiliary"]),
            "{error}"
        );
        step(with_spares.allow_missing("aux").allow_missing("auxiliary"), &vit).unwrap();
    }

    #[test]
    fn that_are_frozen_get_no_gradient_and_do_not_move() {
        let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
        let head = params.clone().filter(|name| name.starts_with("head."));
        let step = step(head.clone(), &vit).unwrap();
        assert_eq!(step.grads.get_ids().count(), 2);
        let before: Vec<_> = params.vars().iter().map(|var| bits(var)).collect();
        // Even to an optimizer over all of them.
        SGD::new(params.vars(), 0.1).unwrap().step(&step.grads).unwrap();
        for ((name, var), before) in params.iter().zip(before) {
            assert_eq!(bits(var) != before, name.starts_with("head."), "{name}");
        }
    }

    #[test]
    fn alone_are_in_the_step() {
        // The image itself is a variable here; its gradient is nobody's business.
        let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 9);
        let xs = Var::from_tensor(&images(2, "variable")).unwrap();
        let model = MaskSub::new(&vit, drop_token()).with_params(params.clone());
        let step = model
            .backward(&xs, key(), |logits| cross_entropy(logits, &labels(2, 5)))
            .unwrap();
        assert_eq!(step.grads.get_ids().count(), params.len());
        assert!(step.grads.get(&xs).is_none());
        // Without parameters, all variables that were reached, and no inputs of the graph.
        let model = MaskSub::new(&vit, drop_token());
        let xs = images(2, "variable");
        let step = model
            .backward(&xs, key(), |logits| cross_entropy(logits, &labels(2, 5)))
            .unwrap();
        assert_eq!(step.grads.get_ids().count(), params.len());
    }

    #[test]
    fn of_a_varmap_are_without_running_statistics() {
        let weights = Weights::seeded(Seed::new(0));
        let vb = weights.var_builder(DType::F32, &CPU);
        candle_nn::batch_norm(3, 1e-5, vb.pp("bn")).unwrap();
        candle_nn::batch_norm(3, 1e-5, vb.clone()).unwrap();
        candle_nn::linear(3, 3, vb.pp("running_mean_of_nothing")).unwrap();
        let params = Params::from_varmap(weights.varmap());
        assert_eq!(
            params.names().collect::<Vec<_>>(),
            [
                "bias",
                "bn.bias",
                "bn.weight",
                "running_mean_of_nothing.bias",
                "running_mean_of_nothing.weight",
                "weight"
            ]
        );
        assert_eq!((params.len(), params.num_elements()), (6, 3 * 5 + 9));
    }
}

#[test]
fn micro_batches_give_the_gradients_of_the_whole_batch() {
    for (name, form) in tiny_forms(5) {
        let (vit, params) = vit(&dropping(form), 10);
        let model = MaskSub::new(&vit, drop_token()).with_params(params.clone());
        let (xs, ys) = (images(8, "micro"), labels(8, 5));
        let whole = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();

        for sizes in [vec![4, 4], vec![5, 2, 1]] {
            let mut merged = GradStore::default();
            let (mut first, mut main_loss, mut sub_loss) = (0, 0., 0.);
            for &size in &sizes {
                let part = |t: &Tensor| t.narrow(0, first, size).unwrap();
                let step = model
                    .backward(&part(&xs), key().with_first_sample(first), |logits| {
                        cross_entropy(logits, &part(&ys))
                    })
                    .unwrap();
                let share = size as f64 / 8.;
                main_loss += share * step.main_loss;
                sub_loss += share * step.sub_loss.unwrap();
                let mut weighted = GradStore::default();
                for (_, var) in params.iter() {
                    weighted.insert(var, (step.grads.get(var).unwrap() * share).unwrap());
                }
                grad::merge(&mut merged, weighted).unwrap();
                first += size;
            }
            let error = gradient_distance(&by_name(&merged, &params), &by_name(&whole.grads, &params));
            assert!(error < 1e-5, "{name} in {sizes:?}: {error:.1e}");
            assert!((main_loss - whole.main_loss).abs() < 1e-5);
            assert!((sub_loss - whole.sub_loss.unwrap()).abs() < 1e-5);
        }
    }
}

#[test]
fn the_whole_of_it_is_reproducible_within_a_process() {
    let run = || {
        let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
        let model = MaskSub::new(vit, drop_token()).with_params(params.clone());
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
        let step = model.backward(&images(4, "again"), key(), loss).unwrap();
        let grads: Vec<_> = by_name(&step.grads, &params).values().map(bits).collect();
        (grads, step.main_loss, step.sub_loss, step.mask)
    };
    assert_eq!(run(), run());
}

#[test]
fn gradients_of_both_halves_count() {
    // A check on the checks: each half alone is far from the sum.
    let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 4);
    let grads = |weight: f64| {
        let model = MaskSub::new(&vit, drop_token())
            .with_params(params.clone())
            .with_weight(weight)
            .unwrap();
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
        by_name(
            &model.backward(&images(4, "halves"), key(), loss).unwrap().grads,
            &params,
        )
    };
    let (main, both, sub) = (grads(0.), grads(0.5), grads(1.));
    assert!(gradient_distance(&main, &both) > 0.1 && gradient_distance(&sub, &both) > 0.1);
    for (name, both) in &both {
        let halves = ((&main[name] + &sub[name]).unwrap() * 0.5).unwrap();
        assert!(distance(&halves, both) < 1e-4, "{name}");
    }
}

#[test]
fn plain_is_public() {
    // `MaskSub::wrap` is `MaskSub::new` around `Plain`.
    let net = candle_nn::func(|xs| xs.flatten_from(1));
    let model: MaskSub<Plain<_>, _> = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap());
    assert_eq!(model.model().0.forward(&images(1, "plain")).unwrap().dims(), [1, 768]);
    assert_eq!(
        model.into_model().0.forward(&images(1, "plain")).unwrap().dims(),
        [1, 768]
    );
}

/// A branch's parameters' gradients take another way than candle's. Here they meet others of the same variables: of the
/// same branch run twice, of one parameter in two places of it, and of an operation of candle's.
#[test]
fn gradients_of_branches_meet_others() {
    use masksub::ops::{mlp_branch, Activation, Affine, MlpBranch};
    let var = |name: &str, shape: &[usize]| Var::from_tensor(&randn(shape, name)).unwrap();
    let (norm, wide) = (var("norm", &[8]), var("wide", &[16]));
    let (fc1, fc2) = (var("fc1", &[16, 8]), var("fc2", &[8, 16]));
    let branch = MlpBranch {
        norm: Affine {
            weight: &norm,
            bias: &norm,
        },
        eps: 1e-6,
        fc1: Affine {
            weight: &fc1,
            bias: &wide,
        },
        activation: Activation::Gelu,
        fc2: Affine {
            weight: &fc2,
            bias: &norm,
        },
        gamma: Some(&norm),
    };
    let once = mlp_branch(&randn((2, 3, 8), "xs"), &branch, None).unwrap();
    let twice = mlp_branch(&once, &branch, Some(&[2., 0.5])).unwrap();
    let decay = (fc1.sqr().unwrap().sum_all().unwrap() + norm.sqr().unwrap().sum_all().unwrap()).unwrap();
    let loss = (twice.sqr().unwrap().mean_all().unwrap() + decay).unwrap();

    let vars = [("norm", norm), ("wide", wide), ("fc1", fc1), ("fc2", fc2)];
    let plain = loss.backward().unwrap();
    let params = Params::new(vars.iter().map(|(name, var)| (name.to_string(), var.clone())));
    let ours = masksub::grad::backward(&loss, &params).unwrap();
    for (name, var) in &vars {
        let [ours, plain] = [&ours, &plain].map(|grads| numbers(grads.get(var).unwrap()));
        let largest = plain.iter().fold(0f64, |most, x| most.max(x.abs()));
        let apart = ours.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
        assert!(apart < 1e-5 * largest, "{name}: {apart:e} of {largest:e}");
    }
    // What was not asked for stays out.
    let some = masksub::grad::backward(&loss, &params.clone().filter(|name| name == "fc2")).unwrap();
    assert!(some.get(&vars[3].1).is_some() && some.get(&vars[2].1).is_none());
}
