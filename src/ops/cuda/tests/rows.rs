//! Rows by their numbers.

use super::super::emulator::{assert_close, launch, Buffer};
use super::super::launch::{Element, Rows};
use super::super::rows::{gather, places_by_row, scatter, NONE};
use super::{exact, in_every_order, inputs, ELEMENTS};
use candle_core::{Device, Tensor};

#[test]
fn gathered_rows_and_their_gradients() {
    // One that is there twice, and some that are not.
    let index = [4u32, 0, 4, 6];
    let num_xs = 7;
    let (starts, places) = places_by_row(&index, num_xs);
    assert_eq!(
        (&starts[..], &places[..]),
        (&[0, 1, 1, 1, 1, 3, 3, 4][..], &[1, 0, 2, 3][..])
    );
    for element in ELEMENTS {
        for width in [1, 33, 1030, 2048] {
            let xs = &inputs(element, &[&[num_xs, width]], width as u64)[0];
            let grads = &inputs(element, &[&[index.len(), width]], 99)[0];
            let results = in_every_order(|order| {
                let (mut x, mut g) = (Buffer::of(element, xs), Buffer::of(element, grads));
                let mut at = [&index[..], &starts, &places].map(Buffer::of_u32);
                let [index, starts, places] = at.each_mut().map(Buffer::address);
                let mut ys = Buffer::new(element, 4 * width);
                let mut dxs = Buffer::new(element, num_xs * width);
                let rows = [4, num_xs].map(|rows| Rows::new(rows, width).unwrap());
                let forward = gather(element, rows[0], 7, [x.address(), index, 0, ys.address()]);
                let backward = scatter(element, rows[1], [g.address(), starts, places, dxs.address()]);
                launch(order, [&forward, &backward]);
                vec![ys.values(), dxs.values()]
            });
            let Some(results) = results else { return };
            let exact = exact(std::slice::from_ref(xs), grads, |t| {
                t[0].index_select(&Tensor::new(&index, &Device::Cpu)?, 0)
            });
            for ((what, result), exact) in ["ys", "dxs"].iter().zip(&results).zip(&exact) {
                assert_close(element, what, result, exact, 1e-7);
            }
        }
    }
}

#[test]
fn merged_rows_are_of_one_or_the_other() {
    let index = [1, NONE, 0, NONE];
    for element in ELEMENTS {
        for width in [1, 1500] {
            let args = inputs(element, &[&[2, width], &[4, width]], 3);
            let Some(results) = in_every_order(|order| {
                let mut tensors: Vec<_> = args.iter().map(|tensor| Buffer::of(element, tensor)).collect();
                let [x, others] = [0, 1].map(|i| tensors[i].address());
                let mut index = Buffer::of_u32(&index);
                let mut results = [(); 2].map(|()| Buffer::new(element, 4 * width));
                let [ys, zeros] = results.each_mut().map(Buffer::address);
                let rows = Rows::new(4, width).unwrap();
                let merged = gather(element, rows, 2, [x, index.address(), others, ys]);
                let alone = gather(element, rows, 2, [x, index.address(), 0, zeros]);
                launch(order, [&merged, &alone]);
                results.each_mut().map(Buffer::values).into()
            }) else {
                return;
            };
            let row = |tensor: usize, row| args[tensor].get(row).unwrap();
            let zeros = row(0, 0).zeros_like().unwrap();
            for (result, others) in results.iter().zip([[row(1, 1), row(1, 3)], [zeros.clone(), zeros]]) {
                let [second, last] = others;
                let exact = Tensor::cat(&[row(0, 1), second, row(0, 0), last], 0).unwrap();
                assert_close(Element::F32, "rows", result, &exact, 0.0);
            }
        }
    }
}
