use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::attention as candles;

use super::*;
use crate::nn::attention::varlen::flash_attn_varlen_unfused;
use crate::nn::testing::single;
use crate::ops::testing::relative;

fn var(xs: &Tensor) -> Tensor {
    Var::from_tensor(xs).unwrap().as_tensor().clone()
}

/// By candle-nn's kernel if it is taken, and by the composition.
fn both(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttnMask,
    alibi: Option<f32>,
    cap: Option<f32>,
) -> [Result<Tensor>; 2] {
    [q.clone(), var(q)].map(|q| flash_attn::<f32>(&q, k, v, 0.5, mask.clone(), alibi, cap))
}

fn floats(shape: &[usize]) -> AttnMask {
    AttnMask::Mask(single(shape, 9))
}

#[test]
fn what_does_not_fit_is_refused_with_and_without_a_gradient() {
    type Shapes<'a> = [&'a [usize]; 3];
    let fits: Shapes = [&[1, 3, 4, 2], &[1, 5, 2, 2], &[1, 5, 2, 2]];
    let refuses = |[q, k, v]: Shapes, mask: AttnMask, cap: Option<f32>, expected: &str| {
        let [q, k, v] = [q, k, v].map(|shape| single(shape, 0));
        for refused in both(&q, &k, &v, &mask, None, cap) {
            assert_eq!(refused.unwrap_err().to_string(), expected);
        }
    };
    let none = || AttnMask::None;
    let k = |shape: &'static [usize]| [fits[0], shape, fits[2]];
    let v = |shape: &'static [usize]| [fits[0], fits[1], shape];
    refuses(
        [&[3, 4, 2], fits[1], fits[2]],
        none(),
        None,
        "q has shape [3, 4, 2], but must be [B, S, H, D]",
    );
    for shape in [
        &[1, 5, 3, 2][..],
        &[1, 5, 0, 2],
        &[2, 5, 2, 2],
        &[1, 5, 2, 3],
        &[5, 2, 2],
    ] {
        let of_k = format!("k has shape {shape:?}, but must be [1, T, H', 2] with H' a divisor of 4");
        let shape: &'static [usize] = Box::leak(shape.into());
        refuses(k(shape), none(), None, &of_k);
        refuses(k(shape), AttnMask::causal(), None, &of_k);
        let of_v = format!("v has shape {shape:?}, but must be [1, 5, H', 2] with H' a divisor of 4");
        refuses(v(shape), AttnMask::causal(), None, &of_v);
    }
    let of_v = "v has shape [1, 4, 2, 2], but must be [1, 5, H', 2] with H' a divisor of 4";
    refuses(v(&[1, 4, 2, 2]), none(), None, of_v);
    for shape in [&[3, 4][..], &[2, 1, 3, 5], &[1, 2, 1, 3, 5], &[7]] {
        let expected =
            format!("mask has shape {shape:?}, but must be one that is broadcast to [B, H, S, T] = [1, 4, 3, 5]");
        refuses(fits, floats(shape), None, &expected);
    }
    let hides = AttnMask::Mask(Tensor::ones((3, 5), DType::U8, &Device::Cpu).unwrap());
    refuses(
        fits,
        hides,
        None,
        "mask has dtype U8, but must be f32, f64, f16 or bf16",
    );
    refuses(
        fits,
        none(),
        Some(-1.0),
        "softcap is -1, but must be above 0 and finite",
    );
    let several: Shapes = [&[2, 3, 4, 2], &[2, 2, 2, 2], &[2, 2, 2, 2]];
    let expected = "k has shape [2, 2, 2, 2], but must be [2, T, H', D] with T at least 3, where attention is causal";
    refuses(several, AttnMask::causal(), None, expected);
}

#[test]
fn dtypes_are_told_apart() {
    let [q, k] = [single(&[1, 3, 4, 2], 0), single(&[1, 5, 2, 2], 1)];
    let message = |q: &Tensor, k: &Tensor| {
        let refused = flash_attn::<f32>(q, k, k, 0.5, AttnMask::None, None, None);
        refused.unwrap_err().to_string()
    };
    let of = |xs: &Tensor, dtype| xs.to_dtype(dtype).unwrap();
    assert_eq!(
        message(&q, &of(&k, DType::F64)),
        "k has dtype F64, but must be F32 like q"
    );
    assert!(message(&of(&q, DType::U32), &k).starts_with("q has dtype U32"));
    // Without a gradient, too, numbers of 64 bits are computed with as such.
    let ys = flash_attn::<f64>(
        &of(&q, DType::F64),
        &of(&k, DType::F64),
        &of(&k, DType::F64),
        0.5,
        AttnMask::None,
        None,
        None,
    );
    assert_eq!(ys.unwrap().dtype(), DType::F64);
}

#[test]
fn the_function_for_one_sequence_refuses_several() {
    let [q, k] = [single(&[2, 3, 4, 2], 0), single(&[2, 5, 2, 2], 1)];
    for q in [q.clone(), var(&q)] {
        let refused = causal::run_causal_attn_cpu::<f32>(&q, &k, &k, 0.5, 0, None, None);
        let expected = "q has shape [2, 3, 4, 2], but must be [1, S, H, D]";
        assert_eq!(refused.unwrap_err().to_string(), expected);
    }
}

/// What candle-nn's kernels take for contiguous, and what they have nothing to compute of.
#[test]
fn layouts_and_edges_make_no_difference() {
    let swapped = |shape: [usize; 4], seed| {
        single(&[shape[0], shape[1], shape[3], shape[2]], seed)
            .transpose(2, 3)
            .unwrap()
    };
    for batch in [1, 2] {
        for mask in [AttnMask::None, AttnMask::causal(), floats(&[3, 3])] {
            let [q, k, v] = [
                swapped([batch, 3, 4, 2], 0),
                swapped([batch, 3, 2, 2], 1),
                swapped([batch, 3, 2, 2], 2),
            ];
            let [q0, k0, v0] = [&q, &k, &v].map(|xs| xs.contiguous().unwrap());
            let want = both(&q0, &k0, &v0, &mask, None, None).map(Result::unwrap);
            for (got, want) in both(&q, &k, &v, &mask, None, None).into_iter().zip(&want) {
                assert_eq!(relative(&got.unwrap(), want), 0.0, "B = {batch}, {mask:?}");
            }
            assert!(relative(&want[0], &want[1]) < 1e-6, "B = {batch}, {mask:?}");
        }
    }
    for [batch, queries, keys, width] in [
        [1, 3, 0, 2],
        [2, 3, 0, 2],
        [1, 0, 3, 2],
        [0, 3, 3, 2],
        [1, 3, 3, 0],
        [1, 1, 0, 2],
    ] {
        let (q, k) = (
            single(&[batch, queries, 4, width], 0),
            single(&[batch, keys, 2, width], 1),
        );
        for ys in both(&q, &k, &k, &AttnMask::None, None, None) {
            let ys = ys.unwrap();
            assert_eq!(ys.dims(), [batch, 4, queries, width]);
            assert_eq!(ys.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
    }
    // An offset beyond all keys hides none.
    let (q, k) = (single(&[1, 3, 4, 2], 0), single(&[1, 5, 2, 2], 1));
    let want = flash_attn::<f32>(&q, &k, &k, 0.5, AttnMask::None, None, None).unwrap();
    for ys in both(&q, &k, &k, &AttnMask::causal_with_offset(usize::MAX), None, None) {
        assert!(relative(&ys.unwrap(), &want) < 1e-6);
    }
}

/// Where candle-nn mends it, its kernel may be taken again.
#[test]
fn a_cap_of_a_single_query_brings_no_slope_with_it() {
    let (q, k, v) = (
        single(&[1, 1, 4, 2], 0),
        single(&[1, 5, 2, 2], 1),
        single(&[1, 5, 2, 2], 2),
    );
    let [got, want] = both(&q, &k, &v, &AttnMask::causal(), None, Some(2.0)).map(Result::unwrap);
    assert!(relative(&got, &want) < 1e-6);
    let candles = candles::flash_attn::<f32>(&q, &k, &v, 0.5, AttnMask::causal(), None, Some(2.0)).unwrap();
    assert!(relative(&candles, &want) > 0.01);
}

/// Slopes and distances are of f32 where queries are of half precision.
#[test]
fn alibi_is_not_rounded_to_half() {
    let [q, k, v] = [0, 1, 2].map(|seed| single(&[2, 300, 2, 4], seed).to_dtype(DType::BF16).unwrap());
    let attend = |of: &dyn Fn(&Tensor) -> Tensor, mask: AttnMask| {
        flash_attn::<f32>(&of(&q), &of(&k), &of(&v), 0.5, mask, Some(0.3), None).unwrap()
    };
    for mask in [AttnMask::causal(), AttnMask::None] {
        let got = attend(&Tensor::clone, mask.clone());
        let want = attend(&|xs| xs.to_dtype(DType::F64).unwrap(), mask);
        // A half unit in the last place of the result, and no more.
        let error = relative(&got, &want);
        assert!(error < 2f64.powi(-9), "{error:e}");
    }
}

#[test]
fn packed_sequences_that_do_not_fit_are_refused_with_and_without_a_gradient() {
    let lengths = |lengths: &[u32]| Tensor::new(lengths, &Device::Cpu).unwrap();
    let (three, five) = (lengths(&[1, 2]), lengths(&[2, 3]));
    let slopes = single(&[4], 3);
    type Setting<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>, Option<usize>, Option<usize>);
    let refuses = |shapes: [&[usize]; 3], setting: Setting, expected: &str| {
        let [q, k, v] = shapes.map(|shape| single(shape, 0));
        let (of_q, of_k, slopes, left, right) = setting;
        for q in [q.clone(), var(&q)] {
            for of in [varlen::flash_attn_varlen_cpu, flash_attn_varlen_unfused] {
                let refused = of(&q, &k, &v, slopes, of_q, of_k, 2, 3, 0.5, true, left, right);
                assert_eq!(refused.unwrap_err().to_string(), expected);
            }
        }
    };
    let fits: [&[usize]; 3] = [&[3, 4, 2], &[5, 2, 2], &[5, 2, 2]];
    let plain: Setting = (&three, &five, None, None, None);
    refuses(
        [&[3, 8], fits[1], fits[2]],
        plain,
        "q has shape [3, 8], but must be [positions, H, D]",
    );
    for shape in [&[5, 3, 2][..], &[5, 0, 2], &[5, 2, 3], &[5, 4]] {
        let expected = format!("k has shape {shape:?}, but must be [positions, H', 2] with H' a divisor of 4");
        refuses([fits[0], shape, fits[2]], plain, &expected);
        let expected = format!("v has shape {shape:?}, but must be [5, H', 2] with H' a divisor of 4");
        refuses([fits[0], fits[1], shape], plain, &expected);
    }
    let expected = "v has shape [4, 2, 2], but must be [5, H', 2] with H' a divisor of 4";
    refuses([fits[0], fits[1], &[4, 2, 2]], plain, expected);
    let expected = "seqlens_k is 1, but must be at least 2, the number of its queries, where attention is causal";
    refuses(fits, (&three, &lengths(&[4, 1]), None, None, None), expected);
    let expected = "seqlens_q is [2, 3], but must be lengths whose sum is 3, the positions of q";
    refuses(fits, (&five, &five, None, None, None), expected);
    let expected = "seqlens_k has shape [1], but must be [2] like seqlens_q";
    refuses(fits, (&three, &lengths(&[5]), None, None, None), expected);
    let signed = three.to_dtype(DType::I64).unwrap();
    refuses(
        fits,
        (&signed, &five, None, None, None),
        "seqlens_q has dtype I64, but must be u32",
    );
    let square = three.reshape((1, 2)).unwrap();
    refuses(
        fits,
        (&square, &five, None, None, None),
        "seqlens_q has shape [1, 2], but must be [B]",
    );
    let expected = "window_size_right is 1, but must be none without a window_size_left";
    refuses(fits, (&three, &five, None, None, Some(1)), expected);
    let few = single(&[2], 3);
    refuses(
        fits,
        (&three, &five, Some(&few), None, None),
        "alibi_slopes has shape [2], but must be [4]",
    );
    let expected =
        "alibi_slopes is a tensor with a gradient, but must be detached: its gradient would be lost silently";
    refuses(fits, (&three, &five, Some(&var(&slopes)), None, None), expected);
}

#[test]
fn packed_sequences_have_windows_of_any_width_and_may_be_empty() {
    let lengths = |lengths: &[u32]| Tensor::new(lengths, &Device::Cpu).unwrap();
    let (three, five) = (lengths(&[1, 2]), lengths(&[2, 3]));
    let (q, k) = (single(&[3, 4, 2], 0), single(&[5, 2, 2], 1));
    let attend = |q: &Tensor, k: &Tensor, [of_q, of_k]: [&Tensor; 2], window: Option<usize>| {
        [q.clone(), var(q)]
            .map(|q| varlen::flash_attn_varlen_cpu(&q, k, k, None, of_q, of_k, 2, 3, 0.5, false, window, window))
    };
    let [want, _] = attend(&q, &k, [&three, &five], None);
    let want = want.unwrap();
    for window in [usize::MAX, usize::MAX / 2, i64::MAX as usize + 1, 5] {
        for ys in attend(&q, &k, [&three, &five], Some(window)) {
            assert!(relative(&ys.unwrap(), &want) < 1e-6, "{window}");
        }
    }
    for (q, k, [of_q, of_k]) in [
        (&[0, 4, 2], &[0, 2, 2], [&lengths(&[]), &lengths(&[])]),
        (&[0, 4, 2], &[5, 2, 2], [&lengths(&[0]), &lengths(&[5])]),
        (&[3, 4, 2], &[0, 2, 2], [&lengths(&[3]), &lengths(&[0])]),
        (&[3, 4, 0], &[5, 2, 0], [&three, &five]),
    ] {
        for ys in attend(&single(q, 0), &single(k, 1), [of_q, of_k], None) {
            let ys = ys.unwrap();
            assert_eq!(ys.dims(), q);
            assert_eq!(ys.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
    }
    // Numbers of 64 bits are no matter of the kernel.
    let wide = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap();
    let [ys, _] = attend(&wide(&q), &wide(&k), [&three, &five], None);
    assert!(relative(&ys.unwrap(), &want) < 1e-6);
}
