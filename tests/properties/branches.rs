//! Branches on models that give back what they were given.

use candle_core::{DType, Result, Tensor};
use masksub::{DropToken, Forward, Grid, Mask, Pass, PatchDrop, RandomMasking, SubBranch, TokenModel};
use proptest::prelude::*;

use crate::common::numbers;
use crate::{any_float, any_lying, key, normal, Lying};

/// A model whose logits are its input, or its tokens: each pixel one, behind a prefix of zeros.
struct Transparent {
    prefix: usize,
}

impl Forward for Transparent {
    fn forward_pass(&self, xs: &Tensor, _: &mut Pass) -> Result<Tensor> {
        xs.flatten_from(1)
    }
}

impl TokenModel for Transparent {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        let (_, _, height, width) = xs.dims4()?;
        Ok(Grid::new(height, width))
    }

    fn num_prefix_tokens(&self) -> usize {
        self.prefix
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
        let pixels = xs.flatten_from(2)?.transpose(1, 2)?;
        let (batch, _, channels) = pixels.dims3()?;
        let prefix = Tensor::zeros((batch, self.prefix, channels), xs.dtype(), xs.device())?;
        let tokens = Tensor::cat(&[&prefix, &pixels.contiguous()?], 1)?;
        match keep {
            Some(mask) => Ok(mask.gather(&tokens, self.prefix)?),
            None => Ok(tokens),
        }
    }

    fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
        tokens.flatten_from(1)
    }
}

proptest! {
    #[test]
    fn drop_token_shortens_the_sequence_and_nothing_else(
        batch in 1usize..4, channels in 1usize..4, h in 1usize..5, w in 2usize..5, prefix in 0usize..3, ratio in 0f64..1.0,
        dtype in any_float(), lying in any_lying()
    ) {
        let model = Transparent { prefix };
        let images = normal(&[batch, channels, h, w], dtype, lying, "images");
        let branch = DropToken::new(RandomMasking::new(ratio).unwrap());
        let main = branch.main(&model, &images, &mut Pass::train(key(1))).unwrap();
        prop_assert_eq!(main.dims(), &[batch, (prefix + h * w) * channels][..]);
        let (sub, mask) = branch.sub(&model, &images, &mut Pass::train_sub(key(1))).unwrap();
        let mask = mask.unwrap();
        let from = numbers(&images);
        let mut expected = vec![];
        for (sample, row) in mask.rows().enumerate() {
            expected.extend(vec![0.0; prefix * channels]);
            for &at in row {
                expected.extend((0..channels).map(|c| from[(sample * channels + c) * h * w + at as usize]));
            }
        }
        prop_assert_eq!(numbers(&sub), expected);
    }

    #[test]
    fn patch_drop_fills_blocks_and_nothing_else(
        batch in 1usize..4, channels in 1usize..4, rows in 1usize..4, columns in 2usize..4, block in 1usize..4, ratio in 0f64..1.0,
        dtype in any_float(), lying in any_lying()
    ) {
        let (h, w) = (rows * block, columns * block);
        let images = normal(&[batch, channels, h, w], dtype, lying, "images");
        let branch = PatchDrop::new(RandomMasking::new(ratio).unwrap(), block).unwrap();
        let (sub, mask) = branch.sub(&Transparent { prefix: 0 }, &images, &mut Pass::train_sub(key(2))).unwrap();
        let mask = mask.unwrap();
        prop_assert_eq!(mask.grid(), Grid::new(rows, columns));
        let kept: Vec<&[u32]> = mask.rows().collect();
        for (at, (value, pixel)) in numbers(&sub).into_iter().zip(numbers(&images)).enumerate() {
            let (x, y, sample) = (at % w, at / w % h, at / w / h / channels);
            let is_kept = kept[sample].contains(&((y / block * columns + x / block) as u32));
            prop_assert_eq!(value, if is_kept { pixel } else { 0.0 });
        }
    }
}

/// The same key hides the same, whatever the images are.
#[test]
fn what_is_hidden_does_not_depend_on_the_images() {
    let branch = PatchDrop::new(RandomMasking::new(0.5).unwrap(), 2).unwrap();
    let masks = ["a", "b"].map(|name| {
        let images = normal(&[3, 1, 8, 8], DType::F32, Lying::InOrder, name);
        branch
            .sub(&Transparent { prefix: 0 }, &images, &mut Pass::train_sub(key(3)))
            .unwrap()
            .1
    });
    assert_eq!(masks[0], masks[1]);
}
