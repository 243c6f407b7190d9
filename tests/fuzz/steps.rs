//! Steps, and what they are made of: sequences, ratios, replicas, frozen parameters, targets.

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use candle_nn::{Func, Module as _};
use masksub::train::replicas::{Combine, Replicas};
use masksub::{
    Criterion, Fill, KeyedRng, MaskRatio, MaskSub, Mutual, Params, PatchDrop, Plain, RandomMasking, Result, Sequences,
    Step, StepKey, SubBranch, SubTarget, Teacher,
};
use rand::Rng as _;
use rand_distr::Distribution as _;

use crate::common::sub_losses;
use crate::draw::{self, count, float, pick, small, tensor, text};
use crate::settings::{generator, key, params};
use crate::Scratch;

/// Marks [B, L]: of the first positions of each sample for the most part, or of any.
fn marks(rng: &mut KeyedRng, batch: usize, len: usize) -> CandleResult<Tensor> {
    let mut values = vec![];
    for _ in 0..batch {
        let (length, any) = (rng.random_range(0..=len), rng.random_bool(0.05));
        values.extend((0..len).map(|at| u8::from(if any { rng.random() } else { at < length.max(1) })));
    }
    let marks = Tensor::from_vec(values, (batch, len), &Device::Cpu)?;
    match rng.random_range(0..20) {
        0 => tensor(rng, &[batch, len]),
        1 => marks.t(),
        2 => marks.narrow(0, 0, 0),
        _ => marks.to_dtype(pick(rng, &[DType::U8, DType::U32, DType::I64, DType::F32])),
    }
}

/// Samples of different lengths.
pub fn sequences(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (batch, len, device) = (small(rng), small(rng), &Device::Cpu);
    let sequences = Sequences::new(&marks(rng, batch, len)?)?.keeping(&marks(rng, batch, len)?)?;
    let mask = match rng.random_bool(0.2) {
        true => sequences.whole(),
        false => sequences.draw(&*generator(rng)?, key(rng))?,
    };
    for (row, &length) in mask.rows().zip(sequences.lengths()) {
        assert!(!row.is_empty() && row.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(row.iter().all(|&at| (at as usize) < length));
    }
    let dtype = draw::dtype(rng);
    match rng.random_range(0..4) {
        0 => mask.attention_mask(dtype, device)?,
        1 => mask.attention_bias(dtype, device)?,
        2 => mask.to_dense(dtype, device)?,
        _ => mask.gather(&tensor(rng, &[batch, 1 + len, 3])?, 1)?,
    };
    Ok(())
}

/// Mask ratios that change.
pub fn ratios(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let ratio = match rng.random_range(0..4) {
        0 => MaskRatio::fixed(float(rng))?,
        1 => MaskRatio::linear(float(rng), float(rng), count(rng))?,
        2 => MaskRatio::cosine(float(rng), float(rng), count(rng))?,
        _ => {
            let factor = float(rng);
            let drawn = rand_distr::Uniform::new(-0.1f64, 1.1).expect("bounds");
            MaskRatio::drawn(drawn.map(move |at| at * factor))
        }
    };
    let ratio = match rng.random() {
        true => ratio.with_warm_down(count(rng), count(rng)),
        false => ratio,
    };
    for _ in 0..3 {
        let at = ratio.at(key(rng))?;
        assert!((0.0..1.0).contains(&at), "{at}");
    }
    Ok(())
}

/// What replicas share, and names that are frozen.
pub fn replicas(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (params, _) = params(rng)?;
    let any = text(rng);
    let name = pick(rng, &["blocks.0".to_string(), "blocks".into(), any]);
    params.clone().freeze([name]).ok();

    let replicas = Replicas::new(count(rng))?;
    replicas.samples_of(count(rng)).ok();
    if let Ok(mut positions) = replicas.positions(count(rng), count(rng)) {
        positions.next();
    }
    let batch = small(rng) * replicas.count().min(16);
    let xs = tensor(rng, &[batch, 2])?;
    let shares: Vec<Tensor> = (0..replicas.count().min(20))
        .map(|replica| replicas.share(&xs, replica))
        .collect::<Result<_>>()?;
    replicas.share(&xs, count(rng)).ok();
    assert_eq!(replicas.interleave(&shares)?.dims(), xs.dims());
    let mut lists: Vec<Vec<Tensor>> = shares.into_iter().map(|share| vec![share]).collect();
    if rng.random_bool(0.2) {
        lists.push(vec![]);
    }
    pick(rng, &[Combine::First, Combine::Mean]).of(&lists)?;
    Ok(())
}

/// The loss of the main branch, which may be anything.
fn main_loss(
    rng: &mut KeyedRng,
    batch: usize,
    classes: usize,
) -> CandleResult<impl Fn(&Tensor) -> CandleResult<Tensor>> {
    let (which, targets) = (rng.random_range(0..12), tensor(rng, &[batch, classes])?);
    Ok(move |logits: &Tensor| match which {
        0 => Ok(logits.clone()),
        1 => logits.detach().sum_all(),
        2 => logits.sum_all()? * f64::NAN,
        3 => Criterion::bce_with_logits().forward(logits, &targets),
        _ => Criterion::cross_entropy().forward(logits, &targets),
    })
}

fn step<S, T>(
    model: MaskSub<Plain<Func<'static>>, S, Tensor, masksub::SubModelLoss, T>,
    rng: &mut KeyedRng,
    images: &Tensor,
    classes: usize,
    key: StepKey,
) -> Result<Step>
where
    S: SubBranch<Plain<Func<'static>>>,
    T: SubTarget,
{
    let loss = main_loss(rng, images.dims().first().copied().unwrap_or(1), classes)?;
    let loss_of_sub = pick(rng, &sub_losses()).with_temperature(float(rng).abs().max(0.1))?;
    let loss_of_sub = match rng.random_range(0..8) {
        0 => loss_of_sub.where_kept(),
        1 => loss_of_sub.with_confidence(float(rng))?,
        2 => loss_of_sub.with_class_dim(count(rng))?,
        _ => loss_of_sub,
    };
    let model = match rng.random_bool(0.2) {
        true => model.with_weight(float(rng))?,
        false => model,
    };
    model.with_sub_loss(loss_of_sub).backward(images, key, loss)
}

/// Steps of one linear layer, with blocks hidden that may be none.
pub fn steps(rng: &mut KeyedRng, _: &Scratch) -> Result<()> {
    let (batch, classes, side) = (small(rng), small(rng), 4 * rng.random_range(1..4));
    let images = tensor(rng, &[batch, 1, side, side])?;
    let net = |weight: Tensor| candle_nn::func(move |xs: &Tensor| xs.flatten_from(1)?.matmul(&weight.t()?));
    let weight = Var::from_tensor(&tensor(rng, &[classes, side * side])?)?;
    let params = Params::new([("weight".to_string(), weight.clone())]);
    let block = if rng.random_bool(0.8) {
        pick(rng, &[1, 2, 4])
    } else {
        count(rng)
    };
    let masking = match rng.random_bool(0.3) {
        true => generator(rng)?,
        false => Box::new(RandomMasking::new(0.5)?),
    };
    let branch = PatchDrop::new(masking, block)?.with_fill(pick(rng, &[Fill::Zero, Fill::Mean, Fill::Noise]));
    let model = MaskSub::wrap(net(weight.as_tensor().clone()), branch, &params);
    let key = key(rng);
    let step = match rng.random_range(0..3) {
        0 => step(model, rng, &images, classes, key)?,
        1 => step(model.with_target(Mutual::new(float(rng))?), rng, &images, classes, key)?,
        _ => {
            let teacher = net(tensor(rng, &[classes, side * side])?);
            teacher.forward(&images)?;
            step(model.with_target(Teacher(Plain(teacher))), rng, &images, classes, key)?
        }
    };
    assert!(step.main_loss.is_finite() && step.sub_loss.is_none_or(f64::is_finite));
    assert!(step.grads.get(weight.as_tensor()).is_some());
    Ok(())
}
