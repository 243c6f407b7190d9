//! The same seed gives the same run, bit for bit, again and with any number of threads.
//!
//! candle reads RAYON_NUM_THREADS for its matrix products and rayon its pool's size, both once, so this file runs
//! itself in processes of their own.

mod common;

use std::process::Command;

use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use common::{bits, labels, randn, vit};
use masksub::models::vit::Config;
use masksub::{Criterion, DropToken, Fill, MaskSub, PatchDrop, RandomMasking, Seed, SubModelLoss};

/// FNV-1a of bits.
fn hash(state: u64, bits: impl IntoIterator<Item = u32>) -> u64 {
    bits.into_iter().fold(state, |hash, bits| {
        (hash ^ bits as u64).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Ten steps of a ViT that is large enough for its matrix products to be shared among threads; what is left of it all.
fn train(seed: u64) -> u64 {
    let cfg = Config {
        embed_dim: 64,
        depth: 2,
        num_heads: 4,
        mlp_dim: 256,
        dropout: 0.1,
        drop_path: 0.1,
        ..Config::deit3_tiny(10).with_input(16, 4, 1)
    };
    let (vit, params) = vit(&cfg, seed);
    let model =
        MaskSub::new(&vit, DropToken::new(RandomMasking::new(0.5).unwrap()), &params).with_sub_loss(SubModelLoss::kl());
    let filling = PatchDrop::new(RandomMasking::new(0.5).unwrap(), 4)
        .unwrap()
        .with_fill(Fill::Noise);
    let filling = MaskSub::new(&vit, filling, &params);
    let mut optimizer = AdamW::new(params.vars(), ParamsAdamW::default()).unwrap();
    let criterion = Criterion::cross_entropy().with_label_smoothing(0.1).unwrap();
    let mut state = 0xcbf2_9ce4_8422_2325;
    for t in 0..10 {
        let (xs, ys) = (randn((16, 1, 16, 16), &format!("step {t}")), labels(16, 10));
        let loss = |logits: &candle_core::Tensor| criterion.forward(logits, &ys);
        let key = Seed::new(seed).at(t);
        // The last two with noise in the place of half the image.
        let mut step = match t {
            0..8 => model.backward(&xs, key, loss),
            _ => filling.backward(&xs, key, loss),
        }
        .unwrap();
        let norm = masksub::grad::clip_grad_norm(&mut step.grads, &params, 1.0).unwrap();
        optimizer.step(&step.grads).unwrap();
        for value in [step.main_loss, step.sub_loss.unwrap(), norm] {
            state = hash(state, [value.to_bits() as u32, (value.to_bits() >> 32) as u32]);
        }
    }
    params.iter().fold(state, |state, (_, var)| hash(state, bits(var)))
}

#[test]
fn runs_repeat_themselves() {
    let state = train(1);
    assert_eq!(train(1), state);
    assert_ne!(train(2), state);
}

mod in_a_process {
    use super::*;

    #[test]
    fn a_run_ends() {
        println!("state {:016x} on {} threads", train(1), rayon::current_num_threads());
    }
}

/// What a process with so many threads ends with.
fn state_with(threads: usize) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["in_a_process::", "--nocapture"])
        .env("RAYON_NUM_THREADS", threads.to_string())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{threads} threads:\n{stdout}{stderr}");
    let (_, line) = stdout.split_once("state ").expect("a state is printed");
    let (state, rest) = line.split_at(16);
    assert!(rest.starts_with(&format!(" on {threads} threads")), "{stdout}");
    state.to_string()
}

#[test]
fn threads_change_nothing() {
    let states = [1, 2, 4].map(state_with);
    assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
}
