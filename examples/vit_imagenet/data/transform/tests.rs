use super::*;
use crate::augment::pixels::{Area, Filter};

fn transform(image_size: usize, augment: Augment) -> Transform {
    Transform {
        image_size,
        channels: 3,
        normalization: Normalization {
            mean: [0.; 3],
            std: [1. / 255.; 3],
        },
        interpolation: Interpolation::Bicubic,
        crop_share: 1.,
        augment,
    }
}

const RESIZED_CROP: Crop = Crop::RandomResized(RandomResizedCrop {
    scale: (0.08, 1.),
    aspect: (0.75, 1.33),
});

fn everything() -> Augment {
    Augment {
        crop: RESIZED_CROP,
        flip: 0.5,
        auto: AutoAugment::Three,
        colour_jitter: 0.3,
        erasing: 0.25,
        repeats: 3,
    }
}

/// Every pixel tells where it is: red is x, green is y, blue is 7.
fn ramp(width: usize, height: usize) -> Pixels {
    let values = (0..width * height)
        .flat_map(|i| [(i % width) as u8, (i / width) as u8, 7])
        .collect();
    Pixels { width, height, values }
}

fn draw(index: usize) -> Draw {
    Draw::Train {
        seed: 1,
        epoch: 2,
        index,
        repeat: 0,
    }
}

fn apply(transform: &Transform, image: &Pixels, draw: Draw) -> Vec<f32> {
    let mut out = vec![f32::NAN; transform.len()];
    transform.apply(image, draw, &mut out).unwrap();
    out
}

#[test]
fn evaluation_takes_the_centre_channel_by_channel_and_draws_nothing() {
    // 12x8 at size 8: columns 2 to 9.
    let values = apply(&transform(8, everything()), &ramp(12, 8), Draw::Test);
    let (red, green, blue) = (&values[..64], &values[64..128], &values[128..]);
    for i in 0..64 {
        assert!((red[i] - (2 + i % 8) as f32).abs() < 1e-4);
        assert!((green[i] - (i / 8) as f32).abs() < 1e-4);
        assert!((blue[i] - 7.).abs() < 1e-4);
    }
}

#[test]
fn crop_share_leaves_a_margin() {
    let mut transform = transform(8, Augment::NONE);
    transform.crop_share = 0.5; // 16 pixels, of which the middle eight
    for draw in [Draw::Test, draw(0)] {
        let values = apply(&transform, &ramp(16, 16), draw);
        assert!((values[0] - 4.).abs() < 1e-4 && (values[63] - 11.).abs() < 1e-4);
    }
}

#[test]
fn every_part_of_the_key_counts_and_nothing_else() {
    let transform = transform(16, everything());
    let image = ramp(64, 48);
    let at = |seed, epoch, index, repeat| {
        let draw = Draw::Train {
            seed,
            epoch,
            index,
            repeat,
        };
        apply(&transform, &image, draw)
    };
    let first = at(1, 2, 3, 0);
    assert_eq!(first, at(1, 2, 3, 0));
    for other in [at(2, 2, 3, 0), at(1, 3, 3, 0), at(1, 2, 4, 0), at(1, 2, 3, 1)] {
        assert_ne!(first, other);
    }
}

#[test]
fn an_image_is_mirrored_with_its_probability() {
    let image = ramp(64, 48);
    for (flip, expected) in [(0., 0..1), (0.5, 150..250), (1., 400..401)] {
        let transform = transform(
            16,
            Augment {
                crop: RESIZED_CROP,
                flip,
                ..Augment::NONE
            },
        );
        let mirrored = |&i: &usize| {
            let red = apply(&transform, &image, draw(i));
            red[0] > red[15] // x falls from left to right
        };
        let n = (0..400).filter(mirrored).count();
        assert!(expected.contains(&n), "{n} of 400 at {flip}"); // standard deviation 10
    }
}

#[test]
fn shifts_stay_in_reach_and_repeat_the_edge() {
    let transform = transform(
        16,
        Augment {
            crop: Crop::Shift,
            ..Augment::NONE
        },
    );
    let mut seen = std::collections::BTreeSet::new();
    for index in 0..500 {
        let values = apply(&transform, &ramp(16, 16), draw(index));
        let middle = 8 * 16 + 8;
        let (right, down) = (8. - values[middle], 8. - values[256 + middle]);
        seen.insert((right.round() as i32, down.round() as i32));
        let corner = (0f32.max(-right), 0f32.max(-down));
        assert!((values[0] - corner.0).abs() < 1e-4 && (values[256] - corner.1).abs() < 1e-4);
    }
    assert_eq!(seen.len(), 25); // -2..=2 in both directions
}

#[test]
fn switching_one_operation_on_leaves_the_draws_of_the_others() {
    let image = ramp(64, 48);
    let base = Augment {
        crop: RESIZED_CROP,
        flip: 0.5,
        ..Augment::NONE
    };
    let erased = Augment { erasing: 1., ..base };
    for index in 0..20 {
        let plain = apply(&transform(16, base), &image, draw(index));
        let erased = apply(&transform(16, erased), &image, draw(index));
        let same = plain.iter().zip(&erased).filter(|(a, b)| a == b).count();
        // At most a third of the area, and a little for rounding.
        assert!(
            (plain.len() / 2..plain.len()).contains(&same),
            "{same} of {}",
            plain.len()
        );
    }
}

// Beside RandAugment timm leaves it out.
#[test]
fn colours_are_jittered_except_beside_rand_augment() {
    let image = ramp(32, 32);
    for (auto, changes) in [
        (AutoAugment::None, true),
        (AutoAugment::Three, true),
        (AutoAugment::Rand(RandAugment::new(9.)), false),
    ] {
        let with = |colour_jitter| {
            let augment = Augment {
                auto,
                colour_jitter,
                ..Augment::NONE
            };
            let transform = transform(32, augment);
            (0..20).map(|i| apply(&transform, &image, draw(i))).collect::<Vec<_>>()
        };
        assert_eq!(with(0.) != with(0.4), changes, "{auto:?}");
    }
}

#[test]
fn a_recipe_can_be_read() {
    assert_eq!(
        everything().to_string(),
        "random resized crop 0.08-1, flip 0.5, 3-Augment, colour jitter 0.3, random erasing 0.25, repeated augmentation 3"
    );
    let swin = Augment {
        auto: AutoAugment::Rand(RandAugment::new(9.)),
        colour_jitter: 0.4,
        ..Augment::NONE
    };
    assert_eq!(swin.to_string(), "centre crop, RandAugment 9/0.5");
}

#[test]
fn resizing_is_antialiased_and_blind_to_what_lies_outside() {
    // Every eighth column is bright: an eighth of the light, wherever a pixel of the small image is sampled. Right of
    // the box all is bright, and must not leak in.
    let (width, height) = (64, 32);
    let bright = |x: usize| if x >= 32 || x.is_multiple_of(8) { 200 } else { 0 };
    let stripes = Pixels {
        width,
        height,
        values: (0..width * height).flat_map(|i| [bright(i % width); 3]).collect(),
    };
    let left = Area {
        left: 0,
        top: 0,
        width: 32,
        height: 32,
    };
    let small = stripes.resized(left, 4, 4, Filter::Bicubic).unwrap();
    let row: Vec<u8> = (0..4)
        .map(|at| widened_cubic(&|x| bright(x) as f64, 32, 4, at))
        .collect();
    assert!(row.iter().all(|v| (10..=40).contains(v)), "{row:?}");
    let off = |(at, v): (usize, &u8)| v.abs_diff(row[at / 3 % 4]);
    assert!(
        small.values.iter().enumerate().all(|pixel| off(pixel) <= 1),
        "{:?}",
        small.values
    );
}

/// Pixel `at` of `to`, from `from` pixels, by Pillow's rule: the cubic of Keys (a = -1/2), as wide as the reduction,
/// cut at the border and normalised.
fn widened_cubic(pixel: &dyn Fn(usize) -> f64, from: usize, to: usize, at: usize) -> u8 {
    let scale = from as f64 / to as f64;
    let cubic = |x: f64| match x.abs() {
        x if x < 1. => (1.5 * x - 2.5) * x * x + 1.,
        x if x < 2. => ((-0.5 * x + 2.5) * x - 4.) * x + 2.,
        _ => 0.,
    };
    let centre = (at as f64 + 0.5) * scale;
    let weights: Vec<f64> = (0..from).map(|x| cubic((x as f64 + 0.5 - centre) / scale)).collect();
    let sum: f64 = weights.iter().enumerate().map(|(x, w)| w * pixel(x)).sum();
    (sum / weights.iter().sum::<f64>()).round() as u8
}
