use super::*;

fn settings(image_size: usize, augment: Augment) -> Settings {
    Settings {
        image_size,
        channels: 3,
        normalize: Normalize::new([0.0; 3], [1.0 / 255.0; 3]).unwrap(),
        interpolation: Interpolation::Bicubic,
        crop_pct: 1.0,
        augment,
    }
}

fn transform(image_size: usize, augment: Augment) -> Transform {
    Transform::new(settings(image_size, augment)).unwrap()
}

fn everything() -> Augment {
    Augment {
        crop: Crop::Resized,
        flip: 0.5,
        auto: AutoAugment::Three,
        color_jitter: 0.3,
        erasing: 0.25,
        repeats: 3,
    }
}

/// Every pixel tells where it is: red is x, green is y, blue is 7.
fn ramp(width: usize, height: usize) -> Image {
    let pixels = (0..width * height)
        .flat_map(|i| [(i % width) as u8, (i / width) as u8, 7])
        .collect();
    Image::from_raw(width, height, pixels).unwrap()
}

fn draw(index: usize) -> Draw {
    Draw::Train {
        seed: 1,
        epoch: 2,
        index,
        repeat: 0,
    }
}

fn apply(transform: &Transform, image: &Image, draw: Draw) -> Vec<f32> {
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
        assert!((blue[i] - 7.0).abs() < 1e-4);
    }
}

#[test]
fn crop_pct_leaves_a_margin() {
    let half = Settings {
        crop_pct: 0.5, // 16 pixels, of which the middle eight
        ..settings(8, Augment::NONE)
    };
    let transform = Transform::new(half).unwrap();
    for draw in [Draw::Test, draw(0)] {
        let values = apply(&transform, &ramp(16, 16), draw);
        assert!((values[0] - 4.0).abs() < 1e-4 && (values[63] - 11.0).abs() < 1e-4);
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
    for (flip, expected) in [(0.0, 0..1), (0.5, 150..250), (1.0, 400..401)] {
        let transform = transform(
            16,
            Augment {
                crop: Crop::Resized,
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
        let (right, down) = (8.0 - values[middle], 8.0 - values[256 + middle]);
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
        crop: Crop::Resized,
        flip: 0.5,
        ..Augment::NONE
    };
    let erased = Augment { erasing: 1.0, ..base };
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
        (
            AutoAugment::Rand {
                magnitude: 9.0,
                increasing: true,
            },
            false,
        ),
    ] {
        let with = |color_jitter| {
            let augment = Augment {
                auto,
                color_jitter,
                ..Augment::NONE
            };
            let transform = transform(32, augment);
            (0..20).map(|i| apply(&transform, &image, draw(i))).collect::<Vec<_>>()
        };
        assert_eq!(with(0.0) != with(0.4), changes, "{auto:?}");
    }
}

/// Runs of every recipe: where their draws or pixels change, a run that goes on is no longer the one that was left off.
/// Recorded where sines, logarithms and exponentials are those of this platform's library.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_same_seed_gives_the_same_pictures_in_every_release() {
    let picture = |width: usize, height: usize| {
        let value = |i: usize| {
            let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
            let noise = ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59) as usize;
            ((x * (c + 1) * 3 + y * (5 - c)) % 224 + noise) as u8
        };
        let pixels = (0..width * height * 3).map(value).collect();
        Image::from_raw(width, height, pixels).unwrap()
    };
    let base = Augment {
        crop: Crop::Resized,
        flip: 0.5,
        ..Augment::NONE
    };
    let rand = |magnitude| AutoAugment::Rand {
        magnitude,
        increasing: true,
    };
    let simple = Augment {
        crop: Crop::Simple,
        flip: 0.25,
        ..base
    };
    let shift = Augment {
        crop: Crop::Shift,
        ..Augment::NONE
    };
    let deit3 = Augment {
        auto: AutoAugment::Three,
        color_jitter: 0.3,
        ..base
    };
    let mae = Augment {
        auto: rand(9.0),
        erasing: 0.25,
        ..base
    };
    let rsb = Augment {
        auto: rand(7.0),
        ..base
    };
    let erased = Augment {
        erasing: 1.0,
        color_jitter: 0.4,
        ..base
    };
    use Interpolation::{Bicubic, Bilinear, Random};
    for (name, augment, interpolation, channels, recorded) in [
        ("evaluation", Augment::NONE, Random, 3, 0x7ce6_005e_eb85_7a25_u64),
        ("crop", base, Bicubic, 3, 0x9dc4_dae2_eddf_f555),
        ("simple", simple, Random, 3, 0x6529_45a9_da3f_c61c),
        ("shift", shift, Bilinear, 1, 0x82e1_0e86_01dc_3b2a),
        ("deit3", deit3, Bicubic, 3, 0x059e_f92b_bf8a_4144),
        ("mae", mae, Bicubic, 3, 0xfb20_fa86_ef22_66be),
        ("rsb", rsb, Random, 3, 0xbae5_8473_358c_b197),
        ("erased", erased, Bilinear, 1, 0x3b49_86f6_d3fb_ff24),
    ] {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
        for image_size in [32, 96] {
            let settings = Settings {
                image_size,
                channels,
                normalize: Normalize::IMAGENET,
                interpolation,
                crop_pct: 0.875,
                augment,
            };
            let transform = Transform::new(settings).unwrap();
            for (index, (width, height)) in [(120, 88), (50, 75), (33, 400), (200, 200)].into_iter().enumerate() {
                let image = picture(width, height);
                let train = (0..15).map(|repeat| Draw::Train {
                    seed: 3,
                    epoch: 5,
                    index,
                    repeat,
                });
                for draw in train.chain([Draw::Test]) {
                    for byte in apply(&transform, &image, draw).into_iter().flat_map(f32::to_le_bytes) {
                        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
                    }
                }
            }
        }
        assert_eq!(hash, recorded, "{name}: {hash:#018x}");
    }
}
