//! More than classification: regression, a class for each token, a class for each pixel, two heads.
//!
//! Each trains, its gradients in f32 are those of a joint loss in f64 that is written out here, and it keeps no more of
//! the graph alive than a classifier does.

use candle_core::{DType, Result, Tensor};
use candle_nn::loss::{cross_entropy, mse};
use candle_nn::{Conv2d, Linear, Module, Optimizer, VarBuilder};
use masksub::{
    grad, DropToken, Forward, Grid, Mask, MaskSub, Mutual, Outputs, Params, Pass, PatchDrop, Seed, SubBranch, SubLoss,
    SubModelLoss, TokenModel, Weights,
};

use super::probe::Probe;
use super::{adam, drop_token, half, key, soft};
use crate::common::{by_name, gradient_distance, labels, randn, CPU};

const CLASSES: usize = 3;
const BATCH: usize = 6;

/// Eight rows of an image are its tokens.
struct Trunk {
    embed: Linear,
    positions: Tensor,
    hidden: Linear,
    probe: Probe,
}

impl Trunk {
    fn new(vb: &VarBuilder) -> Self {
        let normal = candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 };
        Self {
            embed: candle_nn::linear(8, 6, vb.pp("embed")).unwrap(),
            positions: vb.get_with_hints((1, 8, 6), "positions", normal).unwrap(),
            hidden: candle_nn::linear(6, 6, vb.pp("hidden")).unwrap(),
            probe: Probe::default(),
        }
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>) -> Result<Tensor> {
        let tokens = self.embed.forward(&xs.squeeze(1)?)?.broadcast_add(&self.positions)?;
        match keep {
            Some(mask) => Ok(mask.gather(&tokens, 0)?),
            None => Ok(tokens),
        }
    }

    fn features(&self, tokens: &Tensor) -> Result<Tensor> {
        let tokens = self.probe.mark(&tokens.tanh()?)?;
        self.probe.mark(&self.hidden.forward(&tokens)?.tanh()?)
    }
}

/// Trunk and heads; `read` makes the outputs.
struct Net<O> {
    trunk: Trunk,
    class: Linear,
    number: Linear,
    read: fn(&Self, Tensor) -> Result<O>,
}

impl<O> Net<O> {
    fn new(vb: &VarBuilder, read: fn(&Self, Tensor) -> Result<O>) -> Self {
        Self {
            trunk: Trunk::new(vb),
            class: candle_nn::linear(6, CLASSES, vb.pp("class")).unwrap(),
            number: candle_nn::linear(6, 1, vb.pp("number")).unwrap(),
            read,
        }
    }

    fn classes(&self, features: Tensor) -> Result<Tensor> {
        self.class.forward(&features.mean(1)?)
    }
    fn number(&self, features: Tensor) -> Result<Tensor> {
        self.number.forward(&features.mean(1)?)?.squeeze(1)
    }
    fn class_of_each(&self, features: Tensor) -> Result<Tensor> {
        self.class.forward(&features)
    }
    fn both(&self, features: Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.classes(features.clone())?, self.number(features)?))
    }
}

impl<O> TokenModel<O> for Net<O> {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        Ok(Grid::new(xs.dim(2)?, 1))
    }
    fn num_prefix_tokens(&self) -> usize {
        0
    }
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
        self.trunk.embed(xs, keep)
    }
    fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _: &mut Pass) -> Result<O> {
        (self.read)(self, self.trunk.features(tokens)?)
    }
}

/// A class for each pixel of an image, from its surroundings.
struct Segmenter {
    conv: Conv2d,
    head: Conv2d,
    probe: Probe,
}

impl Segmenter {
    fn new(vb: &VarBuilder) -> Self {
        let around = candle_nn::Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        Self {
            conv: candle_nn::conv2d(1, 6, 3, around, vb.pp("conv")).unwrap(),
            head: candle_nn::conv2d(6, CLASSES, 1, Default::default(), vb.pp("head")).unwrap(),
            probe: Probe::default(),
        }
    }
}

impl Forward for Segmenter {
    fn forward_pass(&self, xs: &Tensor, _: &mut Pass) -> Result<Tensor> {
        let features = self.probe.mark(&self.conv.forward(xs)?)?;
        self.head.forward(&self.probe.mark(&features.tanh()?)?)
    }
}

/// A task: a model in any dtype, its branch, its losses, and the same written out in candle's operations.
struct Task<M, S, O> {
    model: fn(&VarBuilder) -> M,
    /// Parameters that its head does not read.
    unused: &'static str,
    probe: fn(&M) -> &Probe,
    branch: fn() -> S,
    main: fn(&O, &Targets) -> Result<Tensor>,
    sub: fn() -> Box<dyn SubLoss<O>>,
    oracle: fn(&O, &O, &Mask) -> Result<Tensor>,
}

/// What can be learnt of the images.
struct Targets {
    classes: Tensor,
    numbers: Tensor,
    pixels: Tensor,
}

fn data(step: usize) -> (Tensor, Targets) {
    let classes = labels(BATCH, CLASSES);
    let noise = randn((BATCH, 1, 8, 8), &format!("tasks {step}"));
    let shift = classes.to_dtype(DType::F32).unwrap().reshape((BATCH, 1, 1, 1)).unwrap();
    let xs = (noise * 0.3).unwrap().broadcast_add(&(shift - 1.0).unwrap()).unwrap();
    let row_means = xs.mean((1, 3)).unwrap();
    let targets = Targets {
        numbers: row_means.mean(1).unwrap(),
        pixels: xs.squeeze(1).unwrap().gt(0.0).unwrap().to_dtype(DType::U32).unwrap(),
        classes,
    };
    (xs, targets)
}

fn rows(xs: &Tensor) -> Result<Tensor> {
    xs.reshape(((), CLASSES))
}

/// The kept positions of [B, L, C], picked one by one.
fn kept(xs: &Tensor, mask: &Mask) -> Result<Tensor> {
    let rows = mask.rows().enumerate();
    let samples = rows.map(|(b, keep)| {
        let picked: Result<Vec<_>> = keep.iter().map(|&at| xs.get(b)?.get(at as usize)).collect();
        Tensor::stack(&picked?, 0)
    });
    Tensor::stack(&samples.collect::<Result<Vec<_>>>()?, 0)
}

impl<M, S: SubBranch<M, O>, O: Outputs> Task<M, S, O> {
    fn masksub(&self, dtype: DType) -> (MaskSub<M, S, O, Erased<O>>, Params) {
        let weights = Weights::seeded(Seed::new(4));
        let model = (self.model)(&weights.var_builder(dtype, &CPU));
        let params = Params::from_varmap(weights.varmap()).filter(|name| !self.is_unused(name));
        let model = MaskSub::new(model, (self.branch)(), &params).with_sub_loss(Erased((self.sub)()));
        (model, params)
    }

    fn is_unused(&self, name: &str) -> bool {
        self.unused.split_whitespace().any(|unused| name.starts_with(unused))
    }

    /// Checks all three; returns how many activations were alive at most.
    fn check(&self, what: &str) -> usize {
        let (model, params) = self.masksub(DType::F32);
        let (xs, targets) = data(0);
        let step = model
            .backward(&xs, key(), |logits| (self.main)(logits, &targets))
            .unwrap();
        let probe = (self.probe)(model.model());
        assert_eq!(probe.alive(), 0, "{what}: a step's graph is gone");
        let most = probe.most();
        assert!(step.main_logits.tensors().iter().all(|logits| !logits.track_op()));

        let (wide, wide_params) = self.masksub(DType::F64);
        let pair = wide.forward_pair(&xs.to_dtype(DType::F64).unwrap(), key()).unwrap();
        assert_eq!(pair.mask, step.mask);
        let main = (self.main)(&pair.main, &targets.in_f64()).unwrap();
        let sub = (self.oracle)(&pair.sub, &pair.main, &pair.mask.unwrap()).unwrap();
        for (ours, theirs) in [(step.main_loss, &main), (step.sub_loss.unwrap(), &sub)] {
            let theirs = theirs.to_scalar::<f64>().unwrap();
            assert!(
                (ours - theirs).abs() < 1e-5 * (1.0 + theirs.abs()),
                "{what}: {ours} and {theirs}"
            );
        }
        let joint = grad::backward(&((main + sub).unwrap() * 0.5).unwrap(), &wide_params).unwrap();
        let error = gradient_distance(&by_name(&step.grads, &params), &by_name(&joint, &wide_params));
        assert!(error < 1e-5, "{what}: {error:e}");

        let mut optimizer = adam(&params, 2e-2);
        let mut losses = vec![];
        for t in 0..60 {
            let (xs, targets) = data(t);
            let step = model
                .backward(&xs, Seed::new(9).at(t), |logits| (self.main)(logits, &targets))
                .unwrap();
            optimizer.step(&step.grads).unwrap();
            losses.push(step.main_loss);
        }
        assert!(
            losses[59] < 0.5 * losses[0],
            "{what}: from {} to {}",
            losses[0],
            losses[59]
        );
        most
    }
}

/// A boxed loss, as a type of the user's own.
struct Erased<O>(Box<dyn SubLoss<O>>);

impl<O> SubLoss<O> for Erased<O> {
    fn compare(&self, sub: &O, target: &O, mask: Option<&Mask>) -> Result<Tensor> {
        self.0.compare(sub, target, mask)
    }
}

impl Targets {
    fn in_f64(self) -> Self {
        let numbers = self.numbers.to_dtype(DType::F64).unwrap();
        Self { numbers, ..self }
    }
}

fn classification() -> Task<Net<Tensor>, DropToken<masksub::RandomMasking>, Tensor> {
    Task {
        model: |vb| Net::new(vb, Net::classes),
        unused: "number",
        probe: |net| &net.trunk.probe,
        branch: drop_token,
        main: |logits, targets| cross_entropy(logits, &targets.classes),
        sub: || Box::new(SubModelLoss::default()),
        oracle: |sub, main, _| soft(sub, main),
    }
}

/// What a classifier keeps alive: two activations of one pass.
const MOST: usize = 2;

#[test]
fn classes_of_images() {
    assert_eq!(classification().check("classification"), MOST);
}

#[test]
fn a_number_for_each_image() {
    let task = Task {
        model: |vb| Net::new(vb, Net::number),
        unused: "class",
        main: |predicted: &Tensor, targets| mse(predicted, &targets.numbers),
        sub: || Box::new(|sub: &Tensor, target: &Tensor, _: Option<&Mask>| mse(sub, target)),
        oracle: |sub, main, _| mse(sub, &main.detach()),
        ..classification()
    };
    assert_eq!(task.check("regression"), MOST);
}

#[test]
fn classes_of_tokens() {
    // Each row has the class of its image; the sub-branch predicts those of the kept rows.
    let task = Task {
        model: |vb| Net::new(vb, Net::class_of_each),
        main: |logits: &Tensor, targets| {
            assert_eq!(logits.dims(), [BATCH, 8, CLASSES]);
            let of_rows = targets.classes.unsqueeze(1)?.repeat((1, 8))?.flatten_all()?;
            cross_entropy(&rows(logits)?, &of_rows)
        },
        sub: || Box::new(SubModelLoss::default().where_kept()),
        oracle: |sub, main, mask| {
            assert_eq!(sub.dims(), [BATCH, 4, CLASSES]);
            soft(sub, &kept(main, mask)?)
        },
        ..classification()
    };
    assert_eq!(task.check("token classification"), MOST);
}

/// Both learn from the other branch where the sub-branch has kept a token: of all rows in one, of the kept ones in the other.
#[test]
fn classes_of_tokens_that_learn_from_each_other() {
    let weights = Weights::seeded(Seed::new(4));
    let net = Net::new(&weights.var_builder(DType::F64, &CPU), Net::class_of_each);
    let params = Params::from_varmap(weights.varmap()).filter(|name| !name.starts_with("number"));
    let model = MaskSub::new(net, drop_token(), &params)
        .with_target(Mutual::new(0.4).unwrap())
        .with_sub_loss(SubModelLoss::default().where_kept());
    let (xs, targets) = data(0);
    let xs = xs.to_dtype(DType::F64).unwrap();
    let of_labels = |logits: &Tensor| {
        let of_rows = targets.classes.unsqueeze(1)?.repeat((1, logits.dim(1)?))?;
        cross_entropy(&rows(logits)?, &of_rows.flatten_all()?)
    };
    let step = model.backward(&xs, key(), of_labels).unwrap();

    let pair = model.forward_pair(&xs, key()).unwrap();
    let (main, sub) = (&pair.main, &pair.sub);
    let main_kept = kept(main, pair.mask.as_ref().unwrap()).unwrap();
    let distance = soft(sub, &main_kept).unwrap();
    let expected = distance.to_scalar::<f64>().unwrap();
    assert!((step.sub_loss.unwrap() - expected).abs() < 1e-10);
    let of_distances = (distance + soft(&main_kept, sub).unwrap()).unwrap();
    let of_labels = (of_labels(main).unwrap() + of_labels(sub).unwrap()).unwrap();
    let total = ((of_labels * 0.3).unwrap() + (of_distances * 0.2).unwrap()).unwrap();
    let joint = by_name(&grad::backward(&total, &params).unwrap(), &params);
    let error = gradient_distance(&by_name(&step.grads, &params), &joint);
    assert!(error < 1e-10, "{error:e}");
}

fn segmentation() -> Task<Segmenter, PatchDrop<masksub::RandomMasking>, Tensor> {
    Task {
        model: Segmenter::new,
        unused: "",
        probe: |net| &net.probe,
        branch: || PatchDrop::new(half(), 4).unwrap(),
        main: |logits, targets| {
            let last = logits.permute((0, 2, 3, 1))?;
            cross_entropy(&rows(&last)?, &targets.pixels.flatten_all()?)
        },
        sub: || Box::new(SubModelLoss::default().with_class_dim(1).unwrap()),
        oracle: |sub, main, _| {
            let last = |xs: &Tensor| xs.permute((0, 2, 3, 1))?.contiguous();
            soft(&last(sub)?, &last(main)?)
        },
    }
}

#[test]
fn classes_of_pixels() {
    assert_eq!(segmentation().check("segmentation"), MOST);
}

#[test]
fn classes_of_pixels_where_they_are_seen() {
    let task = Task {
        sub: || Box::new(SubModelLoss::default().with_class_dim(1).unwrap().where_kept()),
        oracle: |sub, main, mask| {
            let (mut subs, mut mains) = (vec![], vec![]);
            for (b, keep) in mask.rows().enumerate() {
                for (y, x) in (0..64).map(|at| (at / 8, at % 8)) {
                    let block = (y / 4 * 2 + x / 4) as u32;
                    if keep.contains(&block) {
                        let pixel = |xs: &Tensor| xs.get(b)?.narrow(1, y, 1)?.narrow(2, x, 1)?.flatten_all();
                        subs.push(pixel(sub)?);
                        mains.push(pixel(main)?);
                    }
                }
            }
            soft(&Tensor::stack(&subs, 0)?, &Tensor::stack(&mains, 0)?)
        },
        ..segmentation()
    };
    assert_eq!(task.check("segmentation of what is kept"), MOST);
}

#[test]
fn two_heads() {
    type Both = (Tensor, Tensor);
    let task: Task<Net<Both>, DropToken<masksub::RandomMasking>, Both> = Task {
        model: |vb| Net::new(vb, Net::both),
        unused: "",
        probe: |net| &net.trunk.probe,
        branch: drop_token,
        main: |(class, number), targets| cross_entropy(class, &targets.classes)? + mse(number, &targets.numbers)?,
        sub: || {
            Box::new(|sub: &Both, target: &Both, _: Option<&Mask>| {
                SubModelLoss::default().forward(&sub.0, &target.0)? + mse(&sub.1, &target.1)?
            })
        },
        oracle: |sub, main, _| soft(&sub.0, &main.0)? + mse(&sub.1, &main.1.detach())?,
    };
    assert_eq!(task.check("two heads"), MOST);
}

/// The same classes twice, in whatever holds them: their losses are added.
#[test]
fn heads_come_in_arrays_lists_and_tuples() {
    fn sub_loss<O: Outputs>(read: fn(&Net<O>, Tensor) -> Result<O>) -> f64 {
        let weights = Weights::seeded(Seed::new(4));
        let net = Net::new(&weights.var_builder(DType::F32, &CPU), read);
        let (xs, targets) = data(0);
        let loss = |logits: &O| cross_entropy(logits.tensors()[0], &targets.classes);
        let step = MaskSub::unchecked(net, drop_token())
            .backward(&xs, key(), loss)
            .unwrap();
        step.sub_loss.unwrap()
    }
    let once = sub_loss::<Tensor>(Net::classes);
    let twice = |net: &Net<_>, features| net.classes(features).map(|logits| [logits.clone(), logits]);
    assert!((sub_loss::<[Tensor; 2]>(twice) - 2.0 * once).abs() < 1e-6);
    let list = |net: &Net<_>, features| net.classes(features).map(|logits| vec![logits; 3]);
    assert!((sub_loss::<Vec<Tensor>>(list) - 3.0 * once).abs() < 1e-6);
    let nested = |net: &Net<_>, features| {
        net.classes(features)
            .map(|logits| (logits.clone(), vec![logits], vec![]))
    };
    assert!((sub_loss::<(Tensor, Vec<Tensor>, Vec<Tensor>)>(nested) - 2.0 * once).abs() < 1e-6);
}
