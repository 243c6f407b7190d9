//! Teachers: other networks, and averaged copies of this one.

use candle_core::{DType, Tensor};
use candle_nn::{ModuleT, Optimizer};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::ema::Ema;
use masksub::{
    Criterion, DropSub, Error, Forward, MainBranch, MaskSub, MaskedTeacher, Params, Plain, SubModelLoss, SubTarget,
    Teacher, Weights,
};

use super::{close, logits, map, net, random, Linear, CLASSES, PIXELS};
use crate::common::oracle::{cross_entropy as ce, softmax};
use crate::common::{images, labels, numbers, vit, CPU};
use crate::{adam, drop_token, dropping, key};

#[test]
fn a_teacher_that_sees_all() {
    let linear = Linear::new();
    let other = random(&[PIXELS, CLASSES], "teacher");
    let teacher = Teacher(Plain(net(other.clone())));
    let step = linear.step(
        teacher,
        SubModelLoss::soft_cross_entropy(),
        Criterion::cross_entropy(),
        0.3,
    );
    let (sub, w) = (linear.sub(&step), linear.w());
    let target = map(&logits(&linear.main, &numbers(&other)), softmax);
    close(step.sub_loss.unwrap(), ce(&logits(&sub, &w), &target));
    close(step.main_loss, ce(&logits(&linear.main, &w), &linear.one_hot));
    linear.assert_gradient(&step, 1.0, |live, _| {
        0.7 * ce(&logits(&linear.main, live), &linear.one_hot) + 0.3 * ce(&logits(&sub, live), &target)
    });
}

#[test]
fn a_teacher_that_sees_what_is_kept() {
    let xs = images(4, "masked teacher");
    let [student, teacher] = [1, 2].map(|seed| vit(&dropping(Config::deit3_tiny(5)), seed));
    let model = MaskSub::new(student.0, drop_token(), &student.1);
    let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(4, 5));
    let sub_loss = |target: Box<dyn SubTarget>| {
        let step = model.clone().with_target(target).backward(&xs, key(), loss);
        step.unwrap().sub_loss.unwrap()
    };
    let masked = sub_loss(Box::new(MaskedTeacher(teacher.0.clone())));
    let whole = sub_loss(Box::new(Teacher(teacher.0)));

    // Without dropout: in evaluation mode.
    let still = MaskSub::unchecked(vit(&crate::common::tiny(Config::deit3_tiny(5)), 2).0, drop_token());
    let pair = still.forward_pair(&xs, key()).unwrap();
    let sub = model.forward_pair(&xs, key()).unwrap().sub;
    for (ours, target) in [(masked, pair.sub), (whole, pair.main)] {
        let expected = numbers(&SubModelLoss::default().forward(&sub, &target).unwrap())[0];
        assert!((ours - expected).abs() < 1e-6, "{ours} instead of {expected}");
    }
    assert!((masked - whole).abs() > 1e-3);
}

#[test]
fn a_masked_teacher_sees_all_where_nothing_is_masked() {
    let xs = images(4, "masked teacher");
    let [student, teacher] = [1, 2].map(|seed| vit(&dropping(Config::deit3_tiny(5)), seed));
    let sub_loss = |target: Box<dyn SubTarget>| {
        let model = MaskSub::new(&student.0, DropSub::new(0.2).unwrap(), &student.1).with_target(target);
        let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(4, 5));
        model.backward(&xs, key(), loss).unwrap().sub_loss
    };
    let masked = sub_loss(Box::new(MaskedTeacher(teacher.0.clone())));
    assert_eq!(masked, sub_loss(Box::new(Teacher(teacher.0))));
    assert_ne!(masked, sub_loss(Box::new(MainBranch)));
}

#[test]
fn an_averaged_copy_sees_every_update() {
    let (xs, ys) = (images(4, "averaged"), labels(4, 5));
    let cfg = crate::common::tiny(Config::deit3_tiny(5));
    let weights = Weights::seeded(masksub::Seed::new(1));
    let student = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let mut ema = Ema::of(weights.varmap(), 0.6).unwrap();
    let averaged = VisionTransformer::new(&cfg, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap();
    let model = MaskSub::new(student, drop_token(), &params).with_target(Teacher(averaged));
    let mut optimizer = adam(&params, 1e-2);
    for t in 0..3 {
        let key = masksub::Seed::new(2).at(t);
        // The same by hand: the averages in the place of the weights.
        let target = ema.averaged(|| model.model().forward_pass(&xs, &mut masksub::Pass::eval()));
        let target = target.unwrap().unwrap();
        let sub = model.forward_pair(&xs, key).unwrap().sub;
        let expected = numbers(&SubModelLoss::default().forward(&sub, &target).unwrap())[0];
        let step = model.backward(&xs, key, |logits| Criterion::cross_entropy().forward(logits, &ys));
        let step = step.unwrap();
        assert!((step.sub_loss.unwrap() - expected).abs() < 1e-6, "step {t}");
        optimizer.step(&step.grads).unwrap();
        ema.update().unwrap();
    }
    // A run that is taken up again gives it the averages that were saved.
    let predicted = || {
        let step = model.backward(&xs, key(), |logits| Criterion::cross_entropy().forward(logits, &ys));
        step.unwrap().sub_loss.unwrap()
    };
    let (state, saved) = (ema.state().unwrap(), predicted());
    ema.update().unwrap();
    assert_ne!(predicted(), saved);
    ema.load_state(&state).unwrap();
    assert_eq!(predicted(), saved);
    // What the average lacks is told.
    let deeper = Config { depth: 3, ..cfg };
    let error = VisionTransformer::new(&deeper, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap_err();
    assert!(matches!(Error::from(error), Error::MissingWeight { .. }));
}

/// Averages of half-precision weights are f32: their copy sees its inputs in f32, too.
#[test]
fn an_averaged_copy_of_half_precision_weights() {
    let (xs, ys) = (images(4, "averaged"), labels(4, 5));
    let cfg = crate::common::tiny(Config::deit3_tiny(5));
    let weights = Weights::seeded(masksub::Seed::new(1));
    let student = VisionTransformer::new(&cfg, weights.var_builder(DType::BF16, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let ema = Ema::of(weights.varmap(), 0.6).unwrap();
    let averaged = VisionTransformer::new(&cfg, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap();
    let expected = averaged.forward_t(&xs.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap(), false);
    let expected = expected.unwrap();
    let teacher = Teacher(Plain(move |xs: &Tensor| {
        averaged.forward_t(&xs.to_dtype(DType::F32)?, false)
    }));
    let model = MaskSub::new(student, drop_token(), &params).with_target(teacher);
    let xs = xs.to_dtype(DType::BF16).unwrap();
    let step = model.backward(&xs, key(), |logits| Criterion::cross_entropy().forward(logits, &ys));
    let sub = model.forward_pair(&xs, key()).unwrap().sub;
    let expected = numbers(&SubModelLoss::default().forward(&sub, &expected).unwrap())[0];
    assert!((step.unwrap().sub_loss.unwrap() - expected).abs() < 1e-6);
}
