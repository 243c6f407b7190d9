//! Threads that share weights: one trains, others predict, and nobody waits for ever.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Arc};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;
use masksub::grad;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::accumulate::Accumulator;
use masksub::train::ema::Ema;
use masksub::train::optim::{AdamW, AdamWConfig, Lamb, LambConfig};
use masksub::{Criterion, DropToken, MaskSub, Params, RandomMasking, Seed, Weights};

/// Runs `f`, which must be done in time.
fn within_two_minutes(f: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        f();
        done.send(()).unwrap();
    });
    match ended.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("nothing moves any more"),
        _ => thread.join().unwrap(),
    }
}

fn images(batch: usize) -> Tensor {
    Tensor::rand(-1f32, 1.0, (batch, 3, 16, 16), &Device::Cpu).unwrap()
}

struct Shared {
    weights: Weights,
    config: Config,
}

impl Shared {
    fn new() -> Self {
        let small = Config {
            embed_dim: 256,
            depth: 2,
            num_heads: 4,
            mlp_dim: 1024,
            ..Config::deit3_tiny(10)
        };
        Self {
            weights: Weights::seeded(Seed::new(0)),
            config: small.with_input(16, 4, 3),
        }
    }

    fn model(&self) -> VisionTransformer {
        VisionTransformer::new(&self.config, self.weights.var_builder(DType::F32, &Device::Cpu)).unwrap()
    }

    fn predictor(&self) -> VisionTransformer {
        VisionTransformer::new(&self.config, self.weights.no_grad_builder(DType::F32, &Device::Cpu)).unwrap()
    }
}

/// Trains for as many steps of two micro-batches each, with clipped gradients and averaged weights, which are evaluated
/// now and then, while `predict` is called again and again on another thread.
fn train_beside(steps: usize, predict: impl Fn(&VisionTransformer) + Send + Sync + 'static) {
    let shared = Shared::new();
    let model = shared.model();
    let params = Params::from_varmap(shared.weights.varmap());
    let predictor = shared.predictor();
    let stop = Arc::new(AtomicBool::new(false));
    let predictions = Arc::new(AtomicUsize::new(0));
    let other = std::thread::spawn({
        let (stop, predictions) = (stop.clone(), predictions.clone());
        move || {
            while !stop.load(Relaxed) {
                predict(&predictor);
                predictions.fetch_add(1, Relaxed);
            }
        }
    });
    let mut adamw = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let mut lamb = Lamb::new(&params, LambConfig::default()).unwrap();
    let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
    let mut ema = Ema::new(vars.collect::<Vec<_>>(), 0.9).unwrap();
    let mut accumulator = Accumulator::new(&params);
    let model = MaskSub::new(model, DropToken::new(RandomMasking::new(0.5).unwrap()), &params);
    let (xs, labels) = (images(4), Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu).unwrap());
    for t in 0..steps {
        let criterion = Criterion::cross_entropy();
        for first in [0, 2] {
            let (xs, ys) = (xs.narrow(0, first, 2).unwrap(), labels.narrow(0, first, 2).unwrap());
            let key = Seed::new(0).at(t).with_first_sample(first);
            let step = model.backward(&xs, key, |logits| criterion.forward(logits, &ys));
            accumulator.add(&step.unwrap().grads, 2).unwrap();
        }
        let mut grads = accumulator.take().unwrap();
        grad::clip_grad_norm(&mut grads, &params, 0.1).unwrap();
        if t % 2 == 0 {
            adamw.step(&grads).unwrap();
        } else {
            lamb.step(&grads).unwrap();
        }
        ema.update().unwrap();
        if t % 10 == 9 {
            ema.averaged(|| model.forward_t(&xs, false).unwrap()).unwrap();
        }
    }
    while predictions.load(Relaxed) == 0 {
        std::thread::yield_now();
    }
    stop.store(true, Relaxed);
    other.join().unwrap();
}

#[test]
fn one_thread_trains_while_another_predicts() {
    within_two_minutes(|| {
        let batch = images(64);
        train_beside(60, move |model| {
            model.forward_t(&batch, false).unwrap();
        });
    });
}

#[test]
fn steps_may_be_made_on_rayons_threads() {
    within_two_minutes(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            train_beside(30, |model| {
                model.forward_t(&images(2), false).unwrap();
            });
        });
    });
}

/// A target of the sub-branch, say, or what is served meanwhile.
#[test]
fn averages_move_while_another_thread_predicts_with_them() {
    within_two_minutes(|| {
        let shared = Shared::new();
        let model = shared.model();
        let mut ema = Ema::of(shared.weights.varmap(), 0.9).unwrap();
        let averages = ema.weights();
        let averaged =
            VisionTransformer::new(&shared.config, averages.no_grad_builder(DType::F32, &Device::Cpu)).unwrap();
        let batch = images(64);
        let moved = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let predict = || {
                while !moved.load(Relaxed) {
                    averaged.forward_t(&batch, false).unwrap();
                }
            };
            let predicting = scope.spawn(predict);
            for _ in 0..60 {
                ema.update().unwrap();
            }
            moved.store(true, Relaxed);
            predicting.join().unwrap();
        });
        model.forward_t(&batch, false).unwrap();
    });
}
