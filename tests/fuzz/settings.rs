//! Masks, losses, mixing, schedules, optimizers and averages, of settings that nobody would give.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use masksub::train::accumulate::Accumulator;
use masksub::train::checkpoint::Checkpoint;
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule, SgdConfig};
use masksub::train::schedule::{Constant, Cosine, Schedule};
use masksub::{
    grad, num_keep, BlockMasking, Criterion, Fill, Grid, KeyedRng, Mask, MaskGenerator, Params, RandomMasking, Result,
    Seed, StepKey, Weights,
};
use rand::Rng as _;

use crate::common::{numbers, sub_losses};
use crate::draw::{self, count, float, pick, small, tensor, text};
use crate::Scratch;

/// The key of a step that may be any.
pub fn key(rng: &mut KeyedRng) -> StepKey {
    Seed::new(rng.random()).at(count(rng)).with_first_sample(count(rng))
}

/// A generator of masks.
pub fn generator(rng: &mut KeyedRng) -> Result<Box<dyn MaskGenerator>> {
    Ok(match rng.random() {
        true => Box::new(RandomMasking::new(float(rng))?),
        false => Box::new(BlockMasking::new(float(rng), count(rng))?),
    })
}

fn assert_mask(mask: &Mask) {
    assert!(mask.num_keep() >= 1 && mask.rows().len() == mask.batch());
    for row in mask.rows() {
        let mut sorted = row.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), mask.num_keep());
        assert!(sorted.iter().all(|&at| (at as usize) < mask.grid().len()));
    }
}

/// Masks, and what is done with one.
pub fn masks(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    num_keep(count(rng), float(rng)).map(|kept| assert!(kept > 0)).ok();
    let grid = Grid::new(count(rng), count(rng));
    let mask = match rng.random_range(0..6) {
        0 => {
            let rows: Vec<Vec<u32>> = (0..rng.random_range(0..4))
                .map(|_| (0..rng.random_range(0..4)).map(|_| count(rng) as u32).collect())
                .collect();
            Mask::from_keep_indices(grid, &rows)?
        }
        1 => {
            let batch = small(rng);
            let noise = tensor(rng, &[batch, grid.len().min(64)])?;
            Mask::from_noise(grid, &noise, count(rng))?
        }
        _ => {
            // Otherwise of few samples, or of positions that few have.
            let batch = if rng.random() { small(rng) } else { count(rng) };
            generator(rng)?.generate(batch, grid, key(rng))?
        }
    };
    assert_mask(&mask);
    let ([h, w], device) = ([mask.grid().height, mask.grid().width], &Device::Cpu);
    if mask.batch() * mask.grid().len() > 1 << 16 {
        return Ok(());
    }
    match rng.random_range(0..5) {
        0 => assert_mask(&mask.upsample(count(rng))?),
        1 => {
            let prefix = if rng.random() { small(rng) } else { count(rng) };
            let tokens = tensor(rng, &[mask.batch(), prefix.min(64) + h * w, 3])?;
            let gathered = mask.gather(&tokens, prefix)?;
            assert_eq!(
                gathered.dims(),
                [mask.batch(), prefix + mask.num_keep(), tokens.dims()[2]]
            );
        }
        2 => {
            let tokens = tensor(rng, &[mask.batch(), h * w, 3])?;
            let token = tensor(rng, &[3])?;
            mask.replace(&tokens, &token)?;
        }
        3 => {
            let images = tensor(rng, &[mask.batch(), 2, 2 * h, 3 * w])?;
            let values = Fill::Value((0..rng.random_range(0..4)).map(|_| float(rng) as f32).collect());
            let fill = pick(rng, &[Fill::Zero, Fill::Mean, Fill::Noise, values]);
            mask.fill(&images, &fill, key(rng))?;
        }
        _ => {
            mask.keep_indices(device)?;
            mask.dropped_indices(device)?;
            mask.to_dense(draw::dtype(rng), device)?;
        }
    }
    Ok(())
}

/// Class indices, or probabilities.
fn targets(rng: &mut KeyedRng, batch: usize, classes: usize) -> Result<Tensor> {
    if rng.random() {
        return Ok(tensor(rng, &[batch, classes])?);
    }
    let classes: Vec<i64> = (0..batch).map(|_| count(rng) as i64 % (2 * classes as i64)).collect();
    Ok(Tensor::new(classes, &Device::Cpu)?.to_dtype(pick(rng, &[DType::U32, DType::I64, DType::U8]))?)
}

/// Losses.
pub fn losses(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (batch, classes) = (small(rng), small(rng));
    let logits = Var::from_tensor(&tensor(rng, &[batch, classes])?)?;
    let loss = if rng.random() {
        let criterion = pick(rng, &[Criterion::cross_entropy(), Criterion::bce_with_logits()]);
        let criterion = criterion.with_label_smoothing(float(rng))?;
        let criterion = match rng.random_bool(0.3) {
            true => criterion.with_target_threshold(float(rng))?,
            false => criterion,
        };
        criterion.forward(&logits, &targets(rng, batch, classes)?)?
    } else {
        let loss = pick(rng, &sub_losses());
        let main = tensor(rng, &[batch, classes])?;
        let loss = loss.with_temperature(float(rng))?.forward(&logits, &main)?;
        let finite = |tensor: &Tensor| numbers(tensor).iter().all(|value| value.is_finite());
        if finite(&logits) && finite(&main) {
            assert!(finite(&loss), "{loss} of {logits} and {main}");
        }
        loss
    };
    assert!(loss.dims().is_empty());
    loss.backward()?;
    Ok(())
}

/// Mixup and cutmix.
pub fn mixing(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let classes = count(rng);
    let mix = Mix::new(classes, float(rng) * 10.0, float(rng) * 10.0)?
        .with_prob(float(rng))?
        .with_switch_prob(float(rng))?
        .with_label_smoothing(float(rng))?;
    let [batch, height, width] = [0; 3].map(|_| small(rng));
    let images = tensor(rng, &[batch, 3, height, width])?;
    let labels = targets(rng, batch, classes.clamp(1, 8))?;
    let mixed = mix.apply(&images, &labels, key(rng))?;
    assert!((0.0..=1.0).contains(&mixed.lambda), "{}", mixed.lambda);
    assert_eq!(
        (mixed.images.dims(), mixed.targets.dims()),
        (images.dims(), &[batch, classes][..])
    );
    Ok(())
}

/// Learning rates.
pub fn schedules(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let cosine = Cosine::new(float(rng), count(rng))?;
    let cosine = cosine.with_warmup(count(rng), float(rng))?.with_floor(float(rng))?;
    let cosine = if rng.random() { cosine.after_warmup() } else { cosine };
    let schedule = cosine.per_epoch(count(rng))?.then(count(rng), Constant(0.5));
    for step in [0, 1, 17, count(rng), usize::MAX] {
        let rate = schedule.at(step);
        assert!(rate.is_finite() && rate >= 0.0, "{rate} at {step} of {schedule:?}");
    }
    Ok(())
}

fn rule(rng: &mut KeyedRng) -> Box<dyn Rule> {
    let (lr, weight_decay, eps) = (float(rng), float(rng), float(rng));
    match rng.random_range(0..3) {
        0 => Box::new(AdamWConfig {
            lr,
            beta1: float(rng),
            beta2: float(rng),
            eps,
            weight_decay,
        }),
        1 => Box::new(LambConfig {
            lr,
            beta1: float(rng),
            beta2: float(rng),
            eps,
            weight_decay,
            max_grad_norm: rng.random_bool(0.7).then(|| float(rng)),
        }),
        _ => Box::new(SgdConfig {
            lr,
            momentum: float(rng),
            nesterov: rng.random(),
            weight_decay,
        }),
    }
}

/// Parameters of any shape, and gradients that may not be theirs.
pub fn params(rng: &mut KeyedRng) -> Result<(Params, GradStore)> {
    let mut grads = GradStore::default();
    let mut vars = BTreeMap::new();
    for i in 0..rng.random_range(0..4) {
        let shape: Vec<usize> = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..5)).collect();
        let dtype = draw::dtype(rng);
        let var = Var::from_tensor(&draw::tensor_of(rng, &shape, dtype)?)?;
        if rng.random_bool(0.9) {
            grads.insert(&var, tensor(rng, &shape)?);
        }
        let name = if rng.random_bool(0.1) {
            text(rng)
        } else {
            format!("blocks.{i}.w")
        };
        vars.insert(name, var);
    }
    Ok((Params::new(vars), grads))
}

/// Optimizers, their groups and their state.
pub fn optimizers(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (params, grads) = params(rng)?;
    let mut groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    if rng.random_bool(0.3) {
        let layer = count(rng);
        groups = groups.with_layer_decay(float(rng), count(rng), |_| layer)?;
    }
    if rng.random_bool(0.3) {
        let scale = float(rng);
        groups = groups.with_lr_scale(|_| scale)?;
    }
    let mut opt = GroupOptimizer::new(groups, rule(rng))?;
    if rng.random_bool(0.2) {
        opt = opt.skip_non_finite();
    }
    opt.step(&grads)?;
    opt.set_learning_rate(float(rng));
    let stepped = opt.step(&grads);
    let state = opt.state()?;
    opt.load_state(&state)?;
    stepped
}

/// Averaged weights, micro-batches and clipping.
pub fn averages(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (params, mut grads) = params(rng)?;
    let mut accumulator = Accumulator::new(&params);
    for _ in 0..rng.random_range(0..4) {
        accumulator.add(&grads, count(rng))?;
    }
    accumulator.take()?;
    grad::audit(&grads, &params)?;
    let norm = grad::clip_grad_norm(&mut grads, &params, float(rng))?;
    assert!(norm.is_finite() && norm >= 0.0, "{norm}");
    let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
    let mut ema = Ema::new(vars.collect::<Vec<_>>(), float(rng))?;
    if rng.random() {
        ema = ema.with_warmup();
    }
    for _ in 0..3 {
        ema.update()?;
    }
    ema.averaged(|| ())?;
    let state = ema.state()?;
    ema.load_state(&state)
}

/// Checkpoints of anything, and back.
pub fn saved(rng: &mut KeyedRng, scratch: &Scratch) -> Result<()> {
    let mut checkpoint = Checkpoint::new(count(rng), Seed::new(rng.random()));
    for _ in 0..rng.random_range(0..3) {
        checkpoint = checkpoint.with_setting(text(rng), text(rng));
        let shape: Vec<usize> = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..4)).collect();
        let dtype = draw::dtype(rng);
        let tensor = draw::tensor_of(rng, &shape, dtype)?;
        checkpoint = checkpoint.with_section(text(rng), [(text(rng), tensor)]);
    }
    let path = scratch.path("saved.safetensors");
    checkpoint.save(&path)?;
    let again = Checkpoint::load(&path)?;
    assert_eq!((again.step(), again.seed()), (checkpoint.step(), checkpoint.seed()));
    assert_eq!(again.settings(), checkpoint.settings());
    Ok(())
}

/// Weights of any shape and beginning.
pub fn weights(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    use candle_nn::Init;
    let weights = Weights::seeded(Seed::new(rng.random()));
    let inits = [
        Init::Const(float(rng)),
        Init::Randn {
            mean: float(rng),
            stdev: float(rng),
        },
        Init::Uniform {
            lo: float(rng),
            up: float(rng),
        },
        candle_nn::init::DEFAULT_KAIMING_NORMAL,
        candle_nn::init::DEFAULT_KAIMING_UNIFORM,
    ];
    let shape: Vec<usize> = (0..rng.random_range(0..4))
        .map(|_| if rng.random_bool(0.8) { small(rng) } else { count(rng) })
        .collect();
    let vb = weights.var_builder(draw::dtype(rng), &Device::Cpu);
    vb.get_with_hints(shape, &text(rng), pick(rng, &inits))?;
    weights.state();
    weights.check_exact(|_| false)
}
