//! Masks, and images that they do not fit.

use candle_core::{DType, Tensor};
use masksub::models::swin::{self, SwinTransformer};
use masksub::{
    BlockMasking, Error, Fill, Grid, Mask, MaskGenerator, MaskToken, Pass, PatchDrop, Plain, RandomMasking, Seed,
    SubBranch, Weights,
};

use super::{assert_invalid, assert_misshapen, error_of, half, key};
use crate::common::{randn, CPU};

#[test]
fn of_nothing() {
    assert_invalid(half().generate(0, Grid::new(2, 2), key()), "batch", "0", "at least 1");
    for grid in [Grid::new(0, 4), Grid::new(4, 0), Grid::new(0, 0)] {
        assert_invalid(half().generate(2, grid, key()), "grid", &grid.to_string(), "1 to");
    }
    assert_invalid(
        BlockMasking::new(0.5, 2).unwrap().generate(0, Grid::new(2, 2), key()),
        "batch",
        "0",
        "at least 1",
    );
}

#[test]
fn of_too_much() {
    // More positions than an index can name, and than a usize can count.
    for grid in [
        Grid::new(1 << 20, 1 << 20),
        Grid::new(usize::MAX, 2),
        Grid::new(1 << 33, 1 << 33),
    ] {
        assert_invalid(half().generate(1, grid, key()), "grid", &grid.to_string(), "1 to");
    }
    for grid in [Grid::new(usize::MAX, 1), Grid::new(1 << 20, 1 << 20)] {
        let mask = Mask::from_keep_indices(grid, &[[0]]);
        assert_invalid(mask, "grid", &grid.to_string(), "1 to");
    }
    for batch in [usize::MAX, 1 << 31] {
        let masks = half().generate(batch, Grid::new(2, 2), key());
        assert_invalid(masks, "batch", &batch.to_string(), "at most 1073741823 samples");
    }
    let mask = half().generate(1, Grid::new(2, 2), key()).unwrap();
    let tokens = randn((1, 4, 3), "tokens");
    assert_misshapen(mask.gather(&tokens, usize::MAX), "tokens", &[1, 4, 3], "D]");
    for factor in [usize::MAX, 1 << 31, 1 << 17] {
        assert_invalid(mask.upsample(factor), "factor", &factor.to_string(), "at least 1");
    }
}

#[test]
fn from_indices() {
    let grid = Grid::new(2, 2);
    let from = |rows: &[&[u32]]| Mask::from_keep_indices(grid, rows);
    assert_invalid(from(&[&[0, 1], &[2, 4]]), "keep_indices", "4 in sample 1", "below 4");
    assert_invalid(
        from(&[&[0, u32::MAX]]),
        "keep_indices",
        &u32::MAX.to_string(),
        "below 4",
    );
    assert_invalid(
        from(&[&[0, 1], &[3, 3]]),
        "keep_indices",
        "3 twice in sample 1",
        "distinct",
    );
    assert_invalid(from(&[&[0, 1], &[3]]), "keep_indices", "sample 1", "as many");
    assert_invalid(from(&[&[], &[3]]), "keep_indices", "sample 1", "as many");
    assert_invalid(from(&[]), "keep_indices", "empty", "at least one");
    assert_invalid(from(&[&[], &[]]), "keep_indices", "empty", "at least one");
    assert_invalid(
        Mask::from_keep_indices(Grid::new(0, 2), &[[0]]),
        "grid",
        "0 x 2",
        "1 to",
    );
}

#[test]
fn from_noise() {
    let grid = Grid::new(2, 2);
    for shape in [vec![], vec![4], vec![2, 3], vec![0, 4], vec![1, 2, 2], vec![4, 2]] {
        let noise = randn(shape.clone(), "noise");
        assert_misshapen(Mask::from_noise(grid, &noise, 2), "noise", &shape, "[B, 4]");
    }
    let noise = randn((2, 4), "noise");
    for num_keep in [0, 5, usize::MAX] {
        assert_invalid(
            Mask::from_noise(grid, &noise, num_keep),
            "num_keep",
            &num_keep.to_string(),
            "1..=4",
        );
    }
    let nan = Tensor::new(&[[0f32, 1.0, f32::NAN, 2.0]], &CPU).unwrap();
    assert_invalid(Mask::from_noise(grid, &nan, 2), "noise", "NaN", "ordered");
}

#[test]
fn on_images_that_do_not_fit() {
    let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
    for shape in [
        vec![2, 3, 5, 6],
        vec![2, 3, 4, 7],
        vec![1, 3, 4, 6],
        vec![2, 3, 0, 6],
        vec![2, 4, 6],
        vec![],
        vec![2, 3, 4, 6, 1],
    ] {
        let images = randn(shape.clone(), "images");
        assert_misshapen(
            mask.fill(&images, &Fill::Zero, key()),
            "images",
            &shape,
            "multiple of 2",
        );
    }
    let fill = Fill::Value(vec![0.5, 0.5]);
    assert_invalid(
        mask.fill(&randn((2, 3, 4, 6), "images"), &fill, key()),
        "fill",
        "2 values",
        "3 in all",
    );
}

#[test]
fn on_images_without_channels() {
    let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
    let none = randn((2, 0, 4, 6), "none");
    for fill in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![])] {
        let filled = mask.fill(&none, &fill, key());
        assert_eq!(filled.unwrap().dims(), none.dims(), "{fill:?}");
    }
}

#[test]
fn on_integer_images() {
    let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
    let bytes = Tensor::full(200u8, (2, 3, 4, 6), &CPU).unwrap();
    // A mean of bytes overflows and noise is no byte; a value that was given is what was asked for.
    for fill in [Fill::Mean, Fill::Noise] {
        let error = error_of(mask.fill(&bytes, &fill, key()));
        assert!(
            matches!(
                error,
                Error::DType {
                    argument: "images",
                    got: DType::U8,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("float"), "{error}");
    }
    for (fill, value) in [(Fill::Zero, 0), (Fill::Value(vec![7.0; 3]), 7)] {
        let filled = mask.fill(&bytes, &fill, key()).unwrap();
        let pixels = filled.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert!(pixels.iter().all(|&pixel| pixel == 200 || pixel == value) && pixels.contains(&value));
    }
}

/// Of a grid of one position nothing could be hidden: the sub-branch would be the main branch.
#[test]
fn that_hide_nothing() {
    let one = Grid::new(1, 1);
    assert_invalid(half().generate(2, one, key()), "grid", "1 x 1", "at least 2 positions");
    let whole = BlockMasking::new(0.5, 4).unwrap();
    let message = "4 positions, one block for the whole grid, which is always kept";
    assert_invalid(
        whole.generate(2, Grid::new(4, 4), key()),
        "block",
        message,
        "such as 2 positions",
    );
    // At a ratio of 0 that is what is asked for.
    let nothing = RandomMasking::new(0.0).unwrap();
    assert_eq!(nothing.generate(2, one, key()).unwrap().num_keep(), 1);
}

/// The branches that hide blocks of an image name the block, and one that would do.
#[test]
fn of_one_block_for_the_whole_image() {
    let images = randn((2, 3, 32, 32), "images");
    let net = Plain(|xs: &Tensor| xs.flatten_from(1)?.narrow(1, 0, 2));
    let sub = |branch: &PatchDrop<RandomMasking>, xs: &Tensor| branch.sub(&net, xs, &mut Pass::train_sub(key()));
    let whole = PatchDrop::new(half(), 32).unwrap();
    let message = "32 pixels, one block for the whole grid, which is always kept";
    assert_invalid(sub(&whole, &images), "block", message, "such as 16 pixels");
    let (_, mask) = sub(&PatchDrop::new(half(), 16).unwrap(), &images).unwrap();
    assert_eq!(mask.unwrap().num_keep(), 2);
    let pixel = images
        .narrow(2, 0, 1)
        .unwrap()
        .narrow(3, 0, 1)
        .unwrap()
        .contiguous()
        .unwrap();
    assert_invalid(
        sub(&PatchDrop::new(half(), 1).unwrap(), &pixel),
        "block",
        "1 pixels",
        "smaller than the grid",
    );
    let nothing = PatchDrop::new(RandomMasking::new(0.0).unwrap(), 32).unwrap();
    assert!(sub(&nothing, &images).is_ok());

    let weights = Weights::seeded(Seed::new(0));
    let swin = SwinTransformer::new(&swin_of(32), weights.var_builder(DType::F32, &CPU)).unwrap();
    let branch = MaskToken::new(half(), 32).unwrap();
    let error = branch.sub(&swin, &images, &mut Pass::train_sub(key()));
    assert_invalid(error, "block", message, "such as 16 pixels");
}

fn swin_of(side: usize) -> swin::Config {
    swin::Config {
        image_size: (side, side),
        embed_dim: 8,
        depths: vec![1, 1],
        num_heads: vec![2, 2],
        window_size: 4,
        ..swin::Config::tiny(3)
    }
}
